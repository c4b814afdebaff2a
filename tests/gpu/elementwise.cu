// Each thread runs the instruction that `which` names on some elements, every one in 64 bits of its own.
#include <qp/ptx/convert.cuh>
#include <qp/ptx/half2.cuh>
#include <qp/ptx/memory.cuh>
#include <qp/ptx/minmax.cuh>

using namespace qp::ptx;
using Word = unsigned long long;
struct P { const Word *a, *b; Word* out; long long count, which; };

enum Instruction {
  widen_f16, to_f16_from_f32, to_f16_from_f64, to_bf16, min_f32, max_f32, min_f16x2, max_f16x2, min_bf16x2, max_bf16x2,
  fused_f16x2, fused_bf16x2, fused_bits, to_e4m3x2, to_e5m2x2, move_16, move_8, move_4, move_2
};

__device__ inline float as_float(Word a) { return __uint_as_float(unsigned(a)); }

// PTX promises that NaN becomes a NaN, and not which: here it is the one without a sign and with all bits set.
__device__ inline unsigned one_nan(unsigned bits, unsigned sign, unsigned most) {
  return (bits & (sign - 1)) > most ? sign - 1 : bits;
}
__device__ inline unsigned one_nan_of_halves(unsigned pair, unsigned most) {
  return one_nan(pair & 0xffff, 0x8000, most) | one_nan(pair >> 16, 0x8000, most) << 16;
}
__device__ inline unsigned one_nan_x2(unsigned pair, unsigned most) {
  return one_nan(pair & 0xff, 0x80, most) | one_nan(pair >> 8, 0x80, most) << 8;
}

__device__ inline Word compute(long long which, Word a, Word b) {
  switch (which) {
    case widen_f16: return one_nan(__float_as_uint(f32_from_f16((unsigned short)a)), 0x80000000, 0x7f800000);
    case to_f16_from_f32: return one_nan(f16_from_f32(as_float(a)), 0x8000, 0x7c00);
    case to_f16_from_f64: return one_nan(f16_from_f64(__longlong_as_double((long long)a)), 0x8000, 0x7c00);
    case to_bf16: return one_nan(bf16_from_f32(as_float(a)), 0x8000, 0x7f80);
    case min_f32: return __float_as_uint(min_nan(as_float(a), as_float(b)));
    case max_f32: return __float_as_uint(max_nan(as_float(a), as_float(b)));
    case min_f16x2: return min_nan_f16x2((unsigned)a, (unsigned)b);
    case max_f16x2: return max_nan_f16x2((unsigned)a, (unsigned)b);
    case min_bf16x2: return min_nan_bf16x2((unsigned)a, (unsigned)b);
    case max_bf16x2: return max_nan_bf16x2((unsigned)a, (unsigned)b);
    case fused_f16x2: return one_nan_of_halves(fma_f16x2((unsigned)a, (unsigned)b, (unsigned)(a >> 32)), 0x7c00);
    case fused_bf16x2: return one_nan_of_halves(fma_bf16x2((unsigned)a, (unsigned)b, (unsigned)(a >> 32)), 0x7f80);
    case fused_bits: return and_or((unsigned)a, (unsigned)b, (unsigned)(a >> 32));
#if __CUDA_ARCH__ >= 890
    case to_e4m3x2: return one_nan_x2(e4m3x2_from_f32(as_float(a), as_float(b)), 0x7e);
    case to_e5m2x2: return one_nan_x2(e5m2x2_from_f32(as_float(a), as_float(b)), 0x7c);
#endif
  }
  return 0;
}

// Moves the 16 bytes from element i on, by some width.
__device__ inline void move(const P& p, long long i) {
  const unsigned char* from = reinterpret_cast<const unsigned char*>(p.a + i);
  unsigned char* to = reinterpret_cast<unsigned char*>(p.out + i);
  if (p.which == move_16) store_16(to, load_16(from));
  for (int b = 0; b < 16; b += 2) {
    if (p.which == move_8 && b % 8 == 0) store_8(to + b, load_8(from + b));
    if (p.which == move_4 && b % 4 == 0) store_4(to + b, load_4(from + b));
    if (p.which == move_2) store_2(to + b, load_2(from + b));
  }
}

__device__ void body(const P& p) {
  const long long first = (long long)blockIdx.x * blockDim.x + threadIdx.x, step = (long long)gridDim.x * blockDim.x;
  for (long long i = first; i < p.count; i += step) {
    if (p.which < move_16) p.out[i] = compute(p.which, p.a[i], p.b[i]);
    else if (i % 2 == 0) move(p, i);
  }
}
