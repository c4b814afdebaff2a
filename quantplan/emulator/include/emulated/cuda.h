// CUDA C++ for a host compiler: included before every kernel source, which stays as NVRTC sees it.
// What NVRTC offers and neither quantplan's kernels nor the emulator's tests use is missing on purpose: it fails to
// compile.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include <emulated/api.h>

#if __CUDA_ARCH__ == 900  // an emulated GPU has all that is its own architecture's
#define __CUDA_ARCH_FEAT_SM90_ALL
#endif

#define __global__
#define __device__
#define __launch_bounds__(...)
#define __grid_constant__

#define threadIdx (::emulated::current.thread)
#define blockIdx (::emulated::current.block)
#define blockDim (::emulated::current.block_dim)
#define gridDim (::emulated::current.grid_dim)

#define EMULATED_INSTRUCTION EMULATED_UNCHECKED inline
#define EMULATED_CALLER ::emulated::Where where = ::emulated::Where::here()

struct alignas(8) uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };

// ---- barriers and fences

EMULATED_INSTRUCTION void __syncthreads(EMULATED_CALLER) {
  emulated::barrier(0, emulated::whole_block, true, emulated::Vote::none, false, where);
}
EMULATED_INSTRUCTION int __syncthreads_and(int predicate, EMULATED_CALLER) {
  return emulated::barrier(0, emulated::whole_block, true, emulated::Vote::all, predicate != 0, where);
}
EMULATED_INSTRUCTION int __syncthreads_or(int predicate, EMULATED_CALLER) {
  return emulated::barrier(0, emulated::whole_block, true, emulated::Vote::any, predicate != 0, where);
}
EMULATED_INSTRUCTION int __syncthreads_count(int predicate, EMULATED_CALLER) {
  return emulated::barrier(0, emulated::whole_block, true, emulated::Vote::count, predicate != 0, where);
}
EMULATED_INSTRUCTION void __syncwarp(unsigned mask = ~0u, EMULATED_CALLER) { emulated::sync_warp(mask, where); }
// Accesses are ordered by barriers here, never by fences alone: blocks run one after the other.
EMULATED_INSTRUCTION void __threadfence() {}

// ---- shuffles and votes

namespace emulated {

template <class T>
struct Shuffle {
  T value, result;
  unsigned source;  // lane, or none of the mask: the value stays
  bool valid;
  EMULATED_UNCHECKED static void complete(void* const* lanes, unsigned mask) {
    for (unsigned i = 0; i < 32; ++i) {
      if (!(mask >> i & 1)) continue;
      auto& mine = *static_cast<Shuffle*>(lanes[i]);
      mine.valid = mask >> mine.source & 1;
      if (mine.valid) mine.result = static_cast<Shuffle*>(lanes[mine.source])->value;
    }
  }
};

template <class T>
EMULATED_INSTRUCTION T shuffle(unsigned mask, T value, unsigned source, Where where) {
  static_assert(std::is_arithmetic<T>::value, "shuffles move numbers");
  Shuffle<T> mine{value, value, source, true};
  meet(Collective::shuffle, mask, &mine, Shuffle<T>::complete, where);
  if (!mine.valid) fail_invalid("a shuffle reads a lane outside of its mask", where);
  return mine.result;
}

struct Ballot {
  bool predicate;
  unsigned result;
  EMULATED_UNCHECKED static void complete(void* const* lanes, unsigned mask) {
    unsigned votes = 0;
    for (unsigned i = 0; i < 32; ++i)
      if (mask >> i & 1) votes |= unsigned(static_cast<Ballot*>(lanes[i])->predicate) << i;
    for (unsigned i = 0; i < 32; ++i)
      if (mask >> i & 1) static_cast<Ballot*>(lanes[i])->result = votes;
  }
};

struct Match {
  uint64_t value;
  unsigned result;
  EMULATED_UNCHECKED static void complete(void* const* lanes, unsigned mask) {
    for (unsigned i = 0; i < 32; ++i) {
      if (!(mask >> i & 1)) continue;
      auto& mine = *static_cast<Match*>(lanes[i]);
      mine.result = 0;
      for (unsigned j = 0; j < 32; ++j)
        if (mask >> j & 1) mine.result |= unsigned(static_cast<Match*>(lanes[j])->value == mine.value) << j;
    }
  }
};

EMULATED_INSTRUCTION unsigned segment_start(unsigned width) { return lane() & ~(width - 1); }

}  // namespace emulated

template <class T>
EMULATED_INSTRUCTION T __shfl_sync(unsigned mask, T value, int source, int width = 32, EMULATED_CALLER) {
  const unsigned inside = unsigned(source) & unsigned(width - 1);
  return emulated::shuffle(mask, value, emulated::segment_start(unsigned(width)) + inside, where);
}
template <class T>
EMULATED_INSTRUCTION T __shfl_xor_sync(unsigned mask, T value, int with, int width = 32, EMULATED_CALLER) {
  const unsigned source = emulated::lane() ^ unsigned(with);
  const bool inside = source < emulated::segment_start(unsigned(width)) + unsigned(width);
  return emulated::shuffle(mask, value, inside ? source : emulated::lane(), where);
}
template <class T>
EMULATED_INSTRUCTION T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, EMULATED_CALLER) {
  const unsigned source = emulated::lane() + delta;
  const bool inside = source < emulated::segment_start(unsigned(width)) + unsigned(width);
  return emulated::shuffle(mask, value, inside ? source : emulated::lane(), where);
}
template <class T>
EMULATED_INSTRUCTION T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, EMULATED_CALLER) {
  const bool inside = emulated::lane() >= emulated::segment_start(unsigned(width)) + delta;
  return emulated::shuffle(mask, value, inside ? emulated::lane() - delta : emulated::lane(), where);
}

// The largest of a whole warp's, in five exchanges.
EMULATED_INSTRUCTION unsigned __reduce_max_sync(unsigned mask, unsigned value, EMULATED_CALLER) {
  for (unsigned with = 16; with > 0; with /= 2) {
    const unsigned other = emulated::shuffle(mask, value, emulated::lane() ^ with, where);
    value = other > value ? other : value;
  }
  return value;
}

EMULATED_INSTRUCTION unsigned __ballot_sync(unsigned mask, int predicate, EMULATED_CALLER) {
  emulated::Ballot mine{predicate != 0, 0};
  emulated::meet(emulated::Collective::ballot, mask, &mine, emulated::Ballot::complete, where);
  return mine.result;
}
EMULATED_INSTRUCTION int __any_sync(unsigned mask, int predicate, EMULATED_CALLER) {
  return __ballot_sync(mask, predicate, where) != 0;
}
EMULATED_INSTRUCTION int __all_sync(unsigned mask, int predicate, EMULATED_CALLER) {
  return __ballot_sync(mask, predicate, where) == mask;
}
template <class T>
EMULATED_INSTRUCTION unsigned __match_any_sync(unsigned mask, T value, EMULATED_CALLER) {
  static_assert(std::is_integral<T>::value, "matches compare bits");
  emulated::Match mine{uint64_t(value), 0};
  emulated::meet(emulated::Collective::match, mask, &mine, emulated::Match::complete, where);
  return mine.result;
}

// ---- atomics

template <class T>
EMULATED_INSTRUCTION T atomicAdd(T* p, T value, EMULATED_CALLER) {
  return emulated::atomic(p, [&](T old) { return T(old + value); }, where);
}
template <class T>
EMULATED_INSTRUCTION T atomicMax(T* p, T value, EMULATED_CALLER) {
  return emulated::atomic(p, [&](T old) { return old > value ? old : value; }, where);
}
template <class T>
EMULATED_INSTRUCTION T atomicMin(T* p, T value, EMULATED_CALLER) {
  return emulated::atomic(p, [&](T old) { return old < value ? old : value; }, where);
}
template <class T>
EMULATED_INSTRUCTION T atomicOr(T* p, T value, EMULATED_CALLER) {
  return emulated::atomic(p, [&](T old) { return T(old | value); }, where);
}
template <class T>
EMULATED_INSTRUCTION T atomicAnd(T* p, T value, EMULATED_CALLER) {
  return emulated::atomic(p, [&](T old) { return T(old & value); }, where);
}
template <class T>
EMULATED_INSTRUCTION T atomicExch(T* p, T value, EMULATED_CALLER) {
  return emulated::atomic(p, [&](T) { return value; }, where);
}
template <class T>
EMULATED_INSTRUCTION T atomicCAS(T* p, T compare, T value, EMULATED_CALLER) {
  return emulated::atomic(p, [&](T old) { return old == compare ? value : old; }, where);
}

// ---- bits

template <class To, class From>
EMULATED_INSTRUCTION To emulated_bit_cast(From value) {
  static_assert(sizeof(To) == sizeof(From), "a bit cast keeps the size");
  To to;
  memcpy(&to, &value, sizeof to);
  return to;
}
EMULATED_INSTRUCTION unsigned __float_as_uint(float x) { return emulated_bit_cast<unsigned>(x); }
EMULATED_INSTRUCTION int __float_as_int(float x) { return emulated_bit_cast<int>(x); }
EMULATED_INSTRUCTION float __uint_as_float(unsigned x) { return emulated_bit_cast<float>(x); }
EMULATED_INSTRUCTION float __int_as_float(int x) { return emulated_bit_cast<float>(x); }
EMULATED_INSTRUCTION long long __double_as_longlong(double x) { return emulated_bit_cast<long long>(x); }
EMULATED_INSTRUCTION double __longlong_as_double(long long x) { return emulated_bit_cast<double>(x); }
EMULATED_INSTRUCTION unsigned __byte_perm(unsigned a, unsigned b, unsigned selector) {
  const uint64_t both = uint64_t(b) << 32 | a;
  unsigned result = 0;
  for (int i = 0; i < 4; ++i) result |= unsigned(both >> 8 * (selector >> 4 * i & 7) & 0xff) << 8 * i;
  return result;
}

EMULATED_INSTRUCTION int __dp4a(int a, int b, int sum) {
  unsigned result = unsigned(sum);
  for (int i = 0; i < 4; ++i) result += unsigned(int8_t(a >> 8 * i) * int8_t(b >> 8 * i));
  return int(result);
}

// ---- arithmetic with a stated rounding; the library is compiled without contraction

EMULATED_INSTRUCTION float __fadd_rn(float a, float b) { return a + b; }
EMULATED_INSTRUCTION float __fsub_rn(float a, float b) { return a - b; }
EMULATED_INSTRUCTION float __fmul_rn(float a, float b) { return a * b; }
EMULATED_INSTRUCTION float __fdiv_rn(float a, float b) { return a / b; }
EMULATED_INSTRUCTION float __fsqrt_rn(float x) { return sqrtf(x); }
EMULATED_INSTRUCTION float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
EMULATED_INSTRUCTION double __dadd_rn(double a, double b) { return a + b; }
EMULATED_INSTRUCTION double __dsub_rn(double a, double b) { return a - b; }
EMULATED_INSTRUCTION double __dmul_rn(double a, double b) { return a * b; }
EMULATED_INSTRUCTION double __ddiv_rn(double a, double b) { return a / b; }
EMULATED_INSTRUCTION double __fma_rn(double a, double b, double c) { return fma(a, b, c); }

// ---- conversions

EMULATED_INSTRUCTION int __float2int_rn(float x) {  // saturates, and is zero for NaN, as the hardware's
  if (!(x == x)) return 0;
  return x >= 0x1p31f ? INT32_MAX : x <= -0x1p31f ? INT32_MIN : int(rintf(x));
}
EMULATED_INSTRUCTION float __double2float_rn(double x) { return float(x); }
EMULATED_INSTRUCTION float __double2float_rz(double x) {  // truncates, so a finite value never becomes infinite
  const float nearest = float(x);
  if (!(fabs(double(nearest)) > fabs(x))) return nearest;
  return __uint_as_float(__float_as_uint(nearest) - 1);
}

template <class T>
EMULATED_INSTRUCTION T min(T a, T b) {
  static_assert(std::is_integral<T>::value, "min and max of floats differ in what they do with NaN: select explicitly");
  return b < a ? b : a;
}
template <class T>
EMULATED_INSTRUCTION T max(T a, T b) {
  static_assert(std::is_integral<T>::value, "min and max of floats differ in what they do with NaN: select explicitly");
  return a < b ? b : a;
}
