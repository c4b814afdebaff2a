// Each block multiplies one pair of fragments with the instruction that `which` counts to.
#include <qp/ptx/mma.cuh>

using namespace qp::ptx;
struct P { const unsigned *a, *b, *c; unsigned* d; long long which; };

template <class Sum>
__device__ void run(const P& p, void (*multiply)(Sum (&)[4], const unsigned (&)[4], const unsigned (&)[2])) {
  const unsigned lane = blockIdx.x * 32 + threadIdx.x;
  unsigned a[4], b[2];
  Sum sums[4];
  for (int r = 0; r < 4; ++r) a[r] = p.a[lane * 4 + r];
  for (int r = 0; r < 2; ++r) b[r] = p.b[lane * 2 + r];
  for (int r = 0; r < 4; ++r) sums[r] = reinterpret_cast<const Sum*>(p.c)[lane * 4 + r];
  multiply(sums, a, b);
  for (int r = 0; r < 4; ++r) reinterpret_cast<Sum*>(p.d)[lane * 4 + r] = sums[r];
}

#define CASE(number, Sum, name)                                                                     \
  case number:                                                                                      \
    return run<Sum>(p, [](Sum (&sums)[4], const unsigned (&a)[4], const unsigned (&b)[2]) { \
      name(sums, a, b);                                                                             \
    })

__device__ void body(const P& p) {
  switch (p.which) {
    CASE(0, float, mma_m16n8k16_f16_f16);
    CASE(1, float, mma_m16n8k16_bf16_bf16);
    CASE(2, int, mma_m16n8k32_s8_s8);
    CASE(3, int, mma_m16n8k32_u8_s8);
    CASE(4, int, mma_m16n8k32_s8_u8);
    CASE(5, int, mma_m16n8k32_u8_u8);
    CASE(6, float, mma_m16n8k32_e4m3_e4m3);
    CASE(7, float, mma_m16n8k32_e4m3_e5m2);
    CASE(8, float, mma_m16n8k32_e5m2_e4m3);
    CASE(9, float, mma_m16n8k32_e5m2_e5m2);
  }
}
