// mma.sync: a warp multiplies two matrices in its registers and adds the product to a third, sums += A x B.
//
// With g = lane/4, t = lane%4, and E elements in a register, from the low bits up (2 of 16 bits, or 4 of 8):
//   A, 16 rows, K = 8E columns   a[r]     row g + 8(r%2), columns tE + 4E(r/2) and E-1 more
//   B, K rows, 8 columns         b[r]     rows tE + 4Er and E-1 more, column g
//   sums, 16 rows, 8 columns     sums[r]  row g + 8(r/2), column 2t + r%2
// ldmatrix loads such fragments of an A that lies in memory row by row, and of a B that lies there column by column.
//
// Sums of floats are cut, not rounded. FP8 is one instruction on sm_89 and sm_12x, and Ada keeps 14 bits of its sums;
// sm_90 and sm_100 convert to f16, multiply that, and add the product to the sums with an f32 addition of its own.
#pragma once

namespace qp::ptx {

// Adds the product of two f16 matrices to f32 sums.
__device__ inline void mma_m16n8k16_f16_f16(float (&sums)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
               "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
               : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Adds the product of two bf16 matrices to f32 sums.
__device__ inline void mma_m16n8k16_bf16_bf16(float (&sums)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
               "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
               : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Adds the product of two s8 matrices to s32 sums, modulo 2^32.
__device__ inline void mma_m16n8k32_s8_s8(int (&sums)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
  asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 "
               "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
               : "+r"(sums[0]), "+r"(sums[1]), "+r"(sums[2]), "+r"(sums[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Adds the product of a u8 and an s8 matrix to s32 sums, modulo 2^32.
__device__ inline void mma_m16n8k32_u8_s8(int (&sums)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
  asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 "
               "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
               : "+r"(sums[0]), "+r"(sums[1]), "+r"(sums[2]), "+r"(sums[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Adds the product of an s8 and a u8 matrix to s32 sums, modulo 2^32.
__device__ inline void mma_m16n8k32_s8_u8(int (&sums)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
  asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8.u8.s32 "
               "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
               : "+r"(sums[0]), "+r"(sums[1]), "+r"(sums[2]), "+r"(sums[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Adds the product of two u8 matrices to s32 sums, modulo 2^32.
__device__ inline void mma_m16n8k32_u8_u8(int (&sums)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
  asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.u8.u8.s32 "
               "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
               : "+r"(sums[0]), "+r"(sums[1]), "+r"(sums[2]), "+r"(sums[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Adds the product of two e4m3 matrices to f32 sums.
template <int arch = 890>
__device__ inline void mma_m16n8k32_e4m3_e4m3(float (&sums)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
  static_assert(__CUDA_ARCH__ >= arch, "mma.sync of FP8 needs sm_89 or newer");
  asm volatile("mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3.f32 "
               "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
               : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Adds the product of an e4m3 and an e5m2 matrix to f32 sums.
template <int arch = 890>
__device__ inline void mma_m16n8k32_e4m3_e5m2(float (&sums)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
  static_assert(__CUDA_ARCH__ >= arch, "mma.sync of FP8 needs sm_89 or newer");
  asm volatile("mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e5m2.f32 "
               "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
               : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Adds the product of an e5m2 and an e4m3 matrix to f32 sums.
template <int arch = 890>
__device__ inline void mma_m16n8k32_e5m2_e4m3(float (&sums)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
  static_assert(__CUDA_ARCH__ >= arch, "mma.sync of FP8 needs sm_89 or newer");
  asm volatile("mma.sync.aligned.m16n8k32.row.col.f32.e5m2.e4m3.f32 "
               "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
               : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Adds the product of two e5m2 matrices to f32 sums.
template <int arch = 890>
__device__ inline void mma_m16n8k32_e5m2_e5m2(float (&sums)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
  static_assert(__CUDA_ARCH__ >= arch, "mma.sync of FP8 needs sm_89 or newer");
  asm volatile("mma.sync.aligned.m16n8k32.row.col.f32.e5m2.e5m2.f32 "
               "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
               : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

}  // namespace qp::ptx
