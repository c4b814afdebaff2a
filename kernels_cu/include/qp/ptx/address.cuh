// Addresses: pointers are generic, and instructions on shared memory want offsets into it.
#pragma once

namespace qp::ptx {

// Returns where a pointer into shared memory points to, as instructions on shared memory name it.
__device__ inline unsigned shared_address(const void* shared) {
  unsigned long long address;
  asm("cvta.to.shared.u64 %0, %1;" : "=l"(address) : "l"(shared));
  return static_cast<unsigned>(address);
}

}  // namespace qp::ptx
