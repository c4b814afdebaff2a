// Arithmetic on the two 16-bit floats of a register, the first in the low half, and on their bits.
#pragma once

namespace qp::ptx {

// a·b + c of f16, rounded once.
__device__ inline unsigned fma_f16x2(unsigned a, unsigned b, unsigned c) {
  unsigned result;
  asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(result) : "r"(a), "r"(b), "r"(c));
  return result;
}

// a·b + c of bf16, rounded once.
__device__ inline unsigned fma_bf16x2(unsigned a, unsigned b, unsigned c) {
  unsigned result;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(result) : "r"(a), "r"(b), "r"(c));
  return result;
}

// (a & b) | c. Of what C++ says the same with, the compiler makes a constant b anew for each use: an instruction takes one
// constant. Here b stays in a register.
__device__ inline unsigned and_or(unsigned a, unsigned b, unsigned c) {
  unsigned result;
  asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(result) : "r"(a), "r"(b), "r"(c));
  return result;
}

}  // namespace qp::ptx
