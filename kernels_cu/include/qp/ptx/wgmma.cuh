// wgmma: the four warps of a warp group multiply two matrices, in the background, and add the product to a third in
// their registers: sums (+)= A x B, 64 rows, n columns. What A and B are, wgmma_operands.cuh says.
//
// Thread t of the group's 128 holds n/2 of the sums: sums[i] is at
//
//   row   16 (t/32) + t%32/4 + 8 (i/2%2)        column   8 (i/4) + 2 (t%4) + i%2
//
//   column     0   1   2   3   4   5   6   7 │ 8   9  …
//            ┌───────────────────────────────┼─────────
//   row  0   │ 0   0   1   1   2   2   3   3 │ 0   0  …     thread
//   row  1   │ 4   4   5   5   6   6   7   7 │ 4   4
//    …       │                               │
//   row  7   │28  28  29  29  30  30  31  31 │28  28
//       i =  │ 0   1   0   1   0   1   0   1 │ 4   5
//            ├───────────────────────────────┼─────────
//   row  8   │ 0   0   1   1   2   2   3   3 │ 0   0
//    …  i =  │ 2   3   2   3   2   3   2   3 │ 6   7
//            ├───────────────────────────────┼─────────
//   row 16   │32  32  33  33  34  34  35  35 │32  32        the next warp, and so on to row 63
//
// An A in registers lies there like that of mma.sync, 16 rows a warp: a[r] has row 16 (t/32) + t%32/4 + 8 (r%2), and of
// the row's 32 bytes the four from 4 (t%4) + 16 (r/2) on.
//
// The order of things:
//   wgmma_fence_operand(sums); wgmma_fence();   what was done to the registers, before what wgmma does to them
//   wgmma<…>(sums, a, b, accumulate); …         issued: sums, an A in registers, and shared memory are in use
//   wgmma_commit_group();
//   wgmma_wait_group<0>();                      done: shared memory and an A in registers may be overwritten
//   wgmma_fence_operand(sums);                  and the compiler too takes the sums from here on
// Between, the arrays stay where they are and as they are; another wgmma of the same shape may add to the same sums. What
// threads have written to shared memory needs fence_proxy_async_shared(), then a barrier, before a wgmma reads it.
//
// All threads of a group execute the same instructions with the same descriptors. Arrays become registers only where
// every index into them is known when compiling. NVRTC must know the constraint "C": 12.9 does, and 12.4 does not.
#pragma once

#include <qp/architecture.cuh>
#include <qp/wgmma_operands.cuh>

namespace qp::ptx::wgmma_text {

// What stands in the instruction for elements, and behind its operands: no negation, no transposition.
template <MatrixElement> struct Name;
template <> struct Name<MatrixElement::f16> { static constexpr char text[] = "f16"; };
template <> struct Name<MatrixElement::bf16> { static constexpr char text[] = "bf16"; };
template <> struct Name<MatrixElement::e4m3> { static constexpr char text[] = "e4m3"; };
template <> struct Name<MatrixElement::e5m2> { static constexpr char text[] = "e5m2"; };
template <> struct Name<MatrixElement::s8> { static constexpr char text[] = "s8"; };
template <> struct Name<MatrixElement::u8> { static constexpr char text[] = "u8"; };

struct IntegerEnd { static constexpr char text[] = ""; };
struct Fp8End { static constexpr char text[] = ", 1, 1"; };
struct F16End { static constexpr char text[] = ", 1, 1, 0, 0"; };
struct F16RegistersEnd { static constexpr char text[] = ", 1, 1, 0"; };
struct Depth16 { static constexpr char text[] = "k16"; };
struct Depth32 { static constexpr char text[] = "k32"; };

template <bool which, class A, class B> struct Either { using type = A; };
template <class A, class B> struct Either<false, A, B> { using type = B; };
template <bool which, class A, class B> using either = typename Either<which, A, B>::type;

template <MatrixElement e> using Depth = either<matrix_depth(e) == 16, Depth16, Depth32>;
template <MatrixElement e>
using End = either<is_8_bit_integer(e), IntegerEnd, either<is_8_bit_float(e), Fp8End, F16End>>;
template <MatrixElement e> using RegistersEnd = either<matrix_depth(e) == 16, F16RegistersEnd, End<e>>;

}  // namespace qp::ptx::wgmma_text

// Lists of the sums for n columns: as the instruction names them, and as operands with a constraint.
#define QP_NAMES_8 "%0, %1, %2, %3"
#define QP_NAMES_16 QP_NAMES_8 ", %4, %5, %6, %7"
#define QP_NAMES_24 QP_NAMES_16 ", %8, %9, %10, %11"
#define QP_NAMES_32 QP_NAMES_24 ", %12, %13, %14, %15"
#define QP_NAMES_40 QP_NAMES_32 ", %16, %17, %18, %19"
#define QP_NAMES_48 QP_NAMES_40 ", %20, %21, %22, %23"
#define QP_NAMES_56 QP_NAMES_48 ", %24, %25, %26, %27"
#define QP_NAMES_64 QP_NAMES_56 ", %28, %29, %30, %31"
#define QP_NAMES_72 QP_NAMES_64 ", %32, %33, %34, %35"
#define QP_NAMES_80 QP_NAMES_72 ", %36, %37, %38, %39"
#define QP_NAMES_88 QP_NAMES_80 ", %40, %41, %42, %43"
#define QP_NAMES_96 QP_NAMES_88 ", %44, %45, %46, %47"
#define QP_NAMES_104 QP_NAMES_96 ", %48, %49, %50, %51"
#define QP_NAMES_112 QP_NAMES_104 ", %52, %53, %54, %55"
#define QP_NAMES_120 QP_NAMES_112 ", %56, %57, %58, %59"
#define QP_NAMES_128 QP_NAMES_120 ", %60, %61, %62, %63"
#define QP_NAMES_136 QP_NAMES_128 ", %64, %65, %66, %67"
#define QP_NAMES_144 QP_NAMES_136 ", %68, %69, %70, %71"
#define QP_NAMES_152 QP_NAMES_144 ", %72, %73, %74, %75"
#define QP_NAMES_160 QP_NAMES_152 ", %76, %77, %78, %79"
#define QP_NAMES_168 QP_NAMES_160 ", %80, %81, %82, %83"
#define QP_NAMES_176 QP_NAMES_168 ", %84, %85, %86, %87"
#define QP_NAMES_184 QP_NAMES_176 ", %88, %89, %90, %91"
#define QP_NAMES_192 QP_NAMES_184 ", %92, %93, %94, %95"
#define QP_NAMES_200 QP_NAMES_192 ", %96, %97, %98, %99"
#define QP_NAMES_208 QP_NAMES_200 ", %100, %101, %102, %103"
#define QP_NAMES_216 QP_NAMES_208 ", %104, %105, %106, %107"
#define QP_NAMES_224 QP_NAMES_216 ", %108, %109, %110, %111"
#define QP_NAMES_232 QP_NAMES_224 ", %112, %113, %114, %115"
#define QP_NAMES_240 QP_NAMES_232 ", %116, %117, %118, %119"
#define QP_NAMES_248 QP_NAMES_240 ", %120, %121, %122, %123"
#define QP_NAMES_256 QP_NAMES_248 ", %124, %125, %126, %127"
#define QP_SUMS_8(c) c(sums[0]), c(sums[1]), c(sums[2]), c(sums[3])
#define QP_SUMS_16(c) QP_SUMS_8(c), c(sums[4]), c(sums[5]), c(sums[6]), c(sums[7])
#define QP_SUMS_24(c) QP_SUMS_16(c), c(sums[8]), c(sums[9]), c(sums[10]), c(sums[11])
#define QP_SUMS_32(c) QP_SUMS_24(c), c(sums[12]), c(sums[13]), c(sums[14]), c(sums[15])
#define QP_SUMS_40(c) QP_SUMS_32(c), c(sums[16]), c(sums[17]), c(sums[18]), c(sums[19])
#define QP_SUMS_48(c) QP_SUMS_40(c), c(sums[20]), c(sums[21]), c(sums[22]), c(sums[23])
#define QP_SUMS_56(c) QP_SUMS_48(c), c(sums[24]), c(sums[25]), c(sums[26]), c(sums[27])
#define QP_SUMS_64(c) QP_SUMS_56(c), c(sums[28]), c(sums[29]), c(sums[30]), c(sums[31])
#define QP_SUMS_72(c) QP_SUMS_64(c), c(sums[32]), c(sums[33]), c(sums[34]), c(sums[35])
#define QP_SUMS_80(c) QP_SUMS_72(c), c(sums[36]), c(sums[37]), c(sums[38]), c(sums[39])
#define QP_SUMS_88(c) QP_SUMS_80(c), c(sums[40]), c(sums[41]), c(sums[42]), c(sums[43])
#define QP_SUMS_96(c) QP_SUMS_88(c), c(sums[44]), c(sums[45]), c(sums[46]), c(sums[47])
#define QP_SUMS_104(c) QP_SUMS_96(c), c(sums[48]), c(sums[49]), c(sums[50]), c(sums[51])
#define QP_SUMS_112(c) QP_SUMS_104(c), c(sums[52]), c(sums[53]), c(sums[54]), c(sums[55])
#define QP_SUMS_120(c) QP_SUMS_112(c), c(sums[56]), c(sums[57]), c(sums[58]), c(sums[59])
#define QP_SUMS_128(c) QP_SUMS_120(c), c(sums[60]), c(sums[61]), c(sums[62]), c(sums[63])
#define QP_SUMS_136(c) QP_SUMS_128(c), c(sums[64]), c(sums[65]), c(sums[66]), c(sums[67])
#define QP_SUMS_144(c) QP_SUMS_136(c), c(sums[68]), c(sums[69]), c(sums[70]), c(sums[71])
#define QP_SUMS_152(c) QP_SUMS_144(c), c(sums[72]), c(sums[73]), c(sums[74]), c(sums[75])
#define QP_SUMS_160(c) QP_SUMS_152(c), c(sums[76]), c(sums[77]), c(sums[78]), c(sums[79])
#define QP_SUMS_168(c) QP_SUMS_160(c), c(sums[80]), c(sums[81]), c(sums[82]), c(sums[83])
#define QP_SUMS_176(c) QP_SUMS_168(c), c(sums[84]), c(sums[85]), c(sums[86]), c(sums[87])
#define QP_SUMS_184(c) QP_SUMS_176(c), c(sums[88]), c(sums[89]), c(sums[90]), c(sums[91])
#define QP_SUMS_192(c) QP_SUMS_184(c), c(sums[92]), c(sums[93]), c(sums[94]), c(sums[95])
#define QP_SUMS_200(c) QP_SUMS_192(c), c(sums[96]), c(sums[97]), c(sums[98]), c(sums[99])
#define QP_SUMS_208(c) QP_SUMS_200(c), c(sums[100]), c(sums[101]), c(sums[102]), c(sums[103])
#define QP_SUMS_216(c) QP_SUMS_208(c), c(sums[104]), c(sums[105]), c(sums[106]), c(sums[107])
#define QP_SUMS_224(c) QP_SUMS_216(c), c(sums[108]), c(sums[109]), c(sums[110]), c(sums[111])
#define QP_SUMS_232(c) QP_SUMS_224(c), c(sums[112]), c(sums[113]), c(sums[114]), c(sums[115])
#define QP_SUMS_240(c) QP_SUMS_232(c), c(sums[116]), c(sums[117]), c(sums[118]), c(sums[119])
#define QP_SUMS_248(c) QP_SUMS_240(c), c(sums[120]), c(sums[121]), c(sums[122]), c(sums[123])
#define QP_SUMS_256(c) QP_SUMS_248(c), c(sums[124]), c(sums[125]), c(sums[126]), c(sums[127])

// For each n, the numbers of the operands behind the sums.
#define QP_SHAPES(SHAPE) \
  SHAPE(8, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13) \
  SHAPE(16, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17) \
  SHAPE(24, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21) \
  SHAPE(32, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25) \
  SHAPE(40, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29) \
  SHAPE(48, 24, 25, 26, 27, 28, 29, 30, 31, 32, 33) \
  SHAPE(56, 28, 29, 30, 31, 32, 33, 34, 35, 36, 37) \
  SHAPE(64, 32, 33, 34, 35, 36, 37, 38, 39, 40, 41) \
  SHAPE(72, 36, 37, 38, 39, 40, 41, 42, 43, 44, 45) \
  SHAPE(80, 40, 41, 42, 43, 44, 45, 46, 47, 48, 49) \
  SHAPE(88, 44, 45, 46, 47, 48, 49, 50, 51, 52, 53) \
  SHAPE(96, 48, 49, 50, 51, 52, 53, 54, 55, 56, 57) \
  SHAPE(104, 52, 53, 54, 55, 56, 57, 58, 59, 60, 61) \
  SHAPE(112, 56, 57, 58, 59, 60, 61, 62, 63, 64, 65) \
  SHAPE(120, 60, 61, 62, 63, 64, 65, 66, 67, 68, 69) \
  SHAPE(128, 64, 65, 66, 67, 68, 69, 70, 71, 72, 73) \
  SHAPE(136, 68, 69, 70, 71, 72, 73, 74, 75, 76, 77) \
  SHAPE(144, 72, 73, 74, 75, 76, 77, 78, 79, 80, 81) \
  SHAPE(152, 76, 77, 78, 79, 80, 81, 82, 83, 84, 85) \
  SHAPE(160, 80, 81, 82, 83, 84, 85, 86, 87, 88, 89) \
  SHAPE(168, 84, 85, 86, 87, 88, 89, 90, 91, 92, 93) \
  SHAPE(176, 88, 89, 90, 91, 92, 93, 94, 95, 96, 97) \
  SHAPE(184, 92, 93, 94, 95, 96, 97, 98, 99, 100, 101) \
  SHAPE(192, 96, 97, 98, 99, 100, 101, 102, 103, 104, 105) \
  SHAPE(200, 100, 101, 102, 103, 104, 105, 106, 107, 108, 109) \
  SHAPE(208, 104, 105, 106, 107, 108, 109, 110, 111, 112, 113) \
  SHAPE(216, 108, 109, 110, 111, 112, 113, 114, 115, 116, 117) \
  SHAPE(224, 112, 113, 114, 115, 116, 117, 118, 119, 120, 121) \
  SHAPE(232, 116, 117, 118, 119, 120, 121, 122, 123, 124, 125) \
  SHAPE(240, 120, 121, 122, 123, 124, 125, 126, 127, 128, 129) \
  SHAPE(248, 124, 125, 126, 127, 128, 129, 130, 131, 132, 133) \
  SHAPE(256, 128, 129, 130, 131, 132, 133, 134, 135, 136, 137)

#define QP_AS_FLOAT(sum) "+f"(sum)
#define QP_AS_INT(sum) "+r"(sum)

namespace qp::ptx {

// Has the compiler finish what it does to an array of registers before, and begin what it does to it after. There is no
// instruction.
template <class T, int count>
__device__ inline void wgmma_fence_operand(T (&registers)[count]) {
#pragma unroll
  for (T& value : registers) {
    if constexpr (is_f32<T>) asm volatile("" : "+f"(value)::"memory");
    else asm volatile("" : "+r"(value)::"memory");
  }
}

// Orders what the threads have done to registers before what wgmma does to them. Needed before the first wgmma, and
// before one that uses registers that were accessed since.
template <bool there = is_sm_90a>
__device__ inline void wgmma_fence() {
  static_assert(there, "wgmma needs sm_90a");
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

// Closes the group of what was issued since the last one.
template <bool there = is_sm_90a>
__device__ inline void wgmma_commit_group() {
  static_assert(there, "wgmma needs sm_90a");
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

// Waits until at most the newest `groups` groups are in flight: the others have read their operands, and made their
// sums.
template <int groups, bool there = is_sm_90a>
__device__ inline void wgmma_wait_group() {
  static_assert(there, "wgmma needs sm_90a");
  static_assert(groups >= 0 && groups < 8, "wgmma.wait_group counts up to 7 groups");
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(groups) : "memory");
}

#define QP_WGMMA(as, sum, n, m0, m1, m2, m3, m4, m5, m6)                                                  \
  asm volatile("{ .reg .pred accumulate; setp.ne.b32 accumulate, %" #m2 ", 0; "                           \
               "wgmma.mma_async.sync.aligned.m64n" #n "%" #m3 "." sum ".%" #m4 ".%" #m5 " "               \
               "{" QP_NAMES_##n "}, %" #m0 ", %" #m1 ", accumulate%" #m6 "; }"                            \
               : QP_SUMS_##n(as)                                                                          \
               : "l"(a.bits), "l"(b.bits), "r"(int(accumulate)), "C"(wgmma_text::Depth<a_element>::text), \
                 "C"(wgmma_text::Name<a_element>::text), "C"(wgmma_text::Name<b_element>::text),          \
                 "C"(wgmma_text::End<a_element>::text)                                                    \
               : "memory")
#define QP_SHAPE(n, m0, m1, m2, m3, m4, m5, m6, m7, m8, m9)                                        \
  if constexpr (columns == n) {                                                                    \
    if constexpr (is_f32<Sum>) QP_WGMMA(QP_AS_FLOAT, "f32", n, m0, m1, m2, m3, m4, m5, m6); \
    else QP_WGMMA(QP_AS_INT, "s32", n, m0, m1, m2, m3, m4, m5, m6);                                \
  }

// Starts to multiply two matrices in shared memory, into sums that it overwrites, or adds to.
template <MatrixElement a_element, MatrixElement b_element, int columns, bool there = is_sm_90a, class Sum>
__device__ inline void wgmma(Sum (&sums)[columns / 2], MatrixDescriptor a, MatrixDescriptor b, bool accumulate) {
  static_assert(there, "wgmma needs sm_90a");
  static_assert(wgmma_pairs(a_element, b_element), "wgmma multiplies no such pair of elements");
  static_assert(wgmma_has_columns(a_element, columns), "wgmma has no such number of columns");
  static_assert(wgmma_sums_into<a_element, Sum>, "wgmma adds integers in int, floats in float");
  QP_SHAPES(QP_SHAPE)
}

#undef QP_WGMMA
#undef QP_SHAPE
#define QP_WGMMA(as, sum, n, m0, m1, m2, m3, m4, m5, m6, m7, m8, m9)                                       \
  asm volatile("{ .reg .pred accumulate; setp.ne.b32 accumulate, %" #m5 ", 0; "                            \
               "wgmma.mma_async.sync.aligned.m64n" #n "%" #m6 "." sum ".%" #m7 ".%" #m8 " "                \
               "{" QP_NAMES_##n "}, {%" #m0 ", %" #m1 ", %" #m2 ", %" #m3 "}, %" #m4 ", accumulate%" #m9 "; }" \
               : QP_SUMS_##n(as)                                                                           \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b.bits), "r"(int(accumulate)),            \
                 "C"(wgmma_text::Depth<a_element>::text), "C"(wgmma_text::Name<a_element>::text),          \
                 "C"(wgmma_text::Name<b_element>::text), "C"(wgmma_text::RegistersEnd<a_element>::text)    \
               : "memory")
#define QP_SHAPE(n, ...)                                                                         \
  if constexpr (columns == n) {                                                                  \
    if constexpr (is_f32<Sum>) QP_WGMMA(QP_AS_FLOAT, "f32", n, __VA_ARGS__);        \
    else QP_WGMMA(QP_AS_INT, "s32", n, __VA_ARGS__);                                              \
  }

// Starts to multiply a matrix in registers by one in shared memory.
template <MatrixElement a_element, MatrixElement b_element, int columns, bool there = is_sm_90a, class Sum>
__device__ inline void wgmma_registers(Sum (&sums)[columns / 2], const unsigned (&a)[4], MatrixDescriptor b,
                                       bool accumulate) {
  static_assert(there, "wgmma needs sm_90a");
  static_assert(wgmma_pairs(a_element, b_element), "wgmma multiplies no such pair of elements");
  static_assert(wgmma_has_columns(a_element, columns), "wgmma has no such number of columns");
  static_assert(wgmma_sums_into<a_element, Sum>, "wgmma adds integers in int, floats in float");
  QP_SHAPES(QP_SHAPE)
}

#undef QP_WGMMA
#undef QP_SHAPE
#undef QP_SHAPES
#undef QP_AS_FLOAT
#undef QP_AS_INT

}  // namespace qp::ptx
