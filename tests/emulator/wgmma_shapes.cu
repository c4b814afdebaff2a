// A warp group multiplies tiles that lie in shared memory as the host has laid them out, in steps of 32 bytes along K.
// What stands for A_ELEMENT, B_ELEMENT and CASES, one for each n, is the test's.
#include <qp/ptx/address.cuh>
#include <qp/ptx/bulk.cuh>
#include <qp/ptx/wgmma.cuh>

using namespace qp::ptx;
struct P {
  const uint4* image;        // of shared memory
  const unsigned *a, *sums;  // of each thread: four registers a step; n/2 sums
  unsigned* out;
  long long n, image_bytes, b_at, swizzle, stride, leading, base_offset, steps, advance, from_registers, accumulate;
};

template <int n>
__device__ void run(const P& p) {
  using Sum = SUM;
  const unsigned t = threadIdx.x;
  for (unsigned i = t; i < p.image_bytes / 16; i += 128) reinterpret_cast<uint4*>(shared_memory())[i] = p.image[i];
  fence_proxy_async_shared();
  __syncthreads();
  Sum sums[n / 2];
  unsigned a[4][4] = {};
  for (int i = 0; i < n / 2; ++i) sums[i] = reinterpret_cast<const Sum*>(p.sums)[t * (n / 2) + i];
  for (int k = 0; k < p.steps; ++k)
    for (int r = 0; r < 4; ++r) a[k][r] = p.a[(t * p.steps + k) * 4 + r];
  const unsigned base = shared_address(shared_memory()), stride = unsigned(p.stride), leading = unsigned(p.leading);
  const auto swizzle = static_cast<Swizzle>(p.swizzle);
  const auto behind = unsigned(p.base_offset);
  const auto describe = [&](unsigned at) { return describe_matrix(at, swizzle, stride, leading, behind); };
  const MatrixDescriptor of_a = describe(base + (behind << 7)), of_b = describe(base + unsigned(p.b_at));
  wgmma_fence_operand(sums);
  for (int k = 0; k < 4; ++k) wgmma_fence_operand(a[k]);
  wgmma_fence();
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    if (k >= p.steps) break;
    const auto along = unsigned(k * p.advance);
    const bool accumulate = k > 0 || p.accumulate;
    if (p.from_registers) wgmma_registers<A_ELEMENT, B_ELEMENT, n>(sums, a[k], of_b.advanced(along), accumulate);
    else wgmma<A_ELEMENT, B_ELEMENT, n>(sums, of_a.advanced(along), of_b.advanced(along), accumulate);
  }
  wgmma_commit_group();
  wgmma_wait_group<0>();
  wgmma_fence_operand(sums);
  for (int i = 0; i < n / 2; ++i) reinterpret_cast<Sum*>(p.out)[t * (n / 2) + i] = sums[i];
}

__device__ void body(const P& p) {
  switch (p.n) { CASES }
}
