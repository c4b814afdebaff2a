// Emulation of kernels_cu/include/qp/ptx/address.cuh.
#pragma once

namespace qp::ptx {

EMULATED_INSTRUCTION unsigned shared_address(const void* shared, EMULATED_CALLER) {
  if (!emulated::is_shared(shared)) emulated::fail_invalid("this pointer does not point into shared memory", where);
  return unsigned(static_cast<const char*>(shared) - static_cast<const char*>(emulated::shared_memory()));
}

}  // namespace qp::ptx
