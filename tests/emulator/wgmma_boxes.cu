// Boxes of a matrix that tensor maps bring, multiplied where they land: both agree about swizzles.
#include <qp/ptx/address.cuh>
#include <qp/ptx/bulk.cuh>
#include <qp/ptx/mbarrier.cuh>
#include <qp/ptx/wgmma.cuh>

enum Scenario { product };
enum Step { nothing };

// The 64 rows from c0 on times those from c1 on, transposed. A box is 64 rows of c2 bytes.
template <int span>
__device__ void multiply(const P& p) {
  constexpr auto s8 = MatrixElement::s8;
  constexpr auto swizzle = span == 128 ? Swizzle::b128 : span == 64 ? Swizzle::b64 : Swizzle::b32;
  constexpr unsigned box = 64 * span;
  auto* mbarrier = reinterpret_cast<unsigned long long*>(shared_memory() + 2 * box);
  if (threadIdx.x == 0) {
    mbarrier_init(mbarrier, 1);
    fence_mbarrier_init();
    mbarrier_arrive_expect_tx(mbarrier, 2 * box);
    cp_async_bulk_tensor_load_2d(shared_memory(), &p.in_map, 0, int(p.c0), mbarrier);
    cp_async_bulk_tensor_load_2d(shared_memory() + box, &p.in_map, 0, int(p.c1), mbarrier);
  }
  __syncthreads();
  while (!mbarrier_try_wait_parity(mbarrier, 0)) {}
  const MatrixDescriptor a = describe_matrix(shared_address(shared_memory()), swizzle, 8 * span);
  const MatrixDescriptor b = describe_matrix(shared_address(shared_memory() + box), swizzle, 8 * span);
  int sums[32];
  wgmma_fence_operand(sums);
  wgmma_fence();
#pragma unroll
  for (int k = 0; k < span / 32; ++k) wgmma<s8, s8, 64>(sums, a.advanced(32 * k), b.advanced(32 * k), k > 0);
  wgmma_commit_group();
  wgmma_wait_group<0>();
  wgmma_fence_operand(sums);
  for (int i = 0; i < 32; ++i) reinterpret_cast<int*>(p.out)[threadIdx.x * 32 + i] = sums[i];
}

__device__ void body(const P& p) {
  if (p.c2 == 128) multiply<128>(p);
  else if (p.c2 == 64) multiply<64>(p);
  else multiply<32>(p);
}
