// ldmatrix and stmatrix: a warp moves 8x8 matrices of 16-bit elements (or 8x16 of 8-bit ones) between shared memory and
// the fragments that mma.sync wants. Lane 8i + r gives the address of row r of matrix i: 16 aligned bytes.
//
//   lane l holds in register i of its fragment:
//     plain       row l/4, elements 2(l%4) and 2(l%4)+1     of matrix i, the first in the low half
//     transposed  rows 2(l%4) and 2(l%4)+1, element l/4
#pragma once

#include <qp/ptx/address.cuh>

namespace qp::ptx {

// Loads one matrix; lanes 0 to 7 give the addresses.
__device__ inline void ldmatrix_x1(unsigned (&fragment)[1], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];"
               : "=r"(fragment[0])
               : "r"(shared_address(row))
               : "memory");
}

// Loads one matrix, transposed; lanes 0 to 7 give the addresses.
__device__ inline void ldmatrix_x1_trans(unsigned (&fragment)[1], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {%0}, [%1];"
               : "=r"(fragment[0])
               : "r"(shared_address(row))
               : "memory");
}

// Loads two matrices; lanes 0 to 15 give the addresses.
__device__ inline void ldmatrix_x2(unsigned (&fragment)[2], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
               : "=r"(fragment[0]), "=r"(fragment[1])
               : "r"(shared_address(row))
               : "memory");
}

// Loads two matrices, each transposed; lanes 0 to 15 give the addresses.
__device__ inline void ldmatrix_x2_trans(unsigned (&fragment)[2], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
               : "=r"(fragment[0]), "=r"(fragment[1])
               : "r"(shared_address(row))
               : "memory");
}

// Loads four matrices; all lanes give the addresses.
__device__ inline void ldmatrix_x4(unsigned (&fragment)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(fragment[0]), "=r"(fragment[1]), "=r"(fragment[2]), "=r"(fragment[3])
               : "r"(shared_address(row))
               : "memory");
}

// Loads four matrices, each transposed; all lanes give the addresses.
__device__ inline void ldmatrix_x4_trans(unsigned (&fragment)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(fragment[0]), "=r"(fragment[1]), "=r"(fragment[2]), "=r"(fragment[3])
               : "r"(shared_address(row))
               : "memory");
}

// Stores one matrix; lanes 0 to 7 give the addresses.
template <int arch = 900>
__device__ inline void stmatrix_x1(void* row, const unsigned (&fragment)[1]) {
  static_assert(__CUDA_ARCH__ >= arch, "stmatrix needs sm_90 or newer");
  asm volatile("stmatrix.sync.aligned.m8n8.x1.shared.b16 [%0], {%1};" ::"r"(shared_address(row)),
               "r"(fragment[0])
               : "memory");
}

// Stores one matrix, transposed; lanes 0 to 7 give the addresses.
template <int arch = 900>
__device__ inline void stmatrix_x1_trans(void* row, const unsigned (&fragment)[1]) {
  static_assert(__CUDA_ARCH__ >= arch, "stmatrix needs sm_90 or newer");
  asm volatile("stmatrix.sync.aligned.m8n8.x1.trans.shared.b16 [%0], {%1};" ::"r"(shared_address(row)),
               "r"(fragment[0])
               : "memory");
}

// Stores two matrices; lanes 0 to 15 give the addresses.
template <int arch = 900>
__device__ inline void stmatrix_x2(void* row, const unsigned (&fragment)[2]) {
  static_assert(__CUDA_ARCH__ >= arch, "stmatrix needs sm_90 or newer");
  asm volatile("stmatrix.sync.aligned.m8n8.x2.shared.b16 [%0], {%1, %2};" ::"r"(shared_address(row)),
               "r"(fragment[0]), "r"(fragment[1])
               : "memory");
}

// Stores two matrices, each transposed; lanes 0 to 15 give the addresses.
template <int arch = 900>
__device__ inline void stmatrix_x2_trans(void* row, const unsigned (&fragment)[2]) {
  static_assert(__CUDA_ARCH__ >= arch, "stmatrix needs sm_90 or newer");
  asm volatile("stmatrix.sync.aligned.m8n8.x2.trans.shared.b16 [%0], {%1, %2};" ::"r"(shared_address(row)),
               "r"(fragment[0]), "r"(fragment[1])
               : "memory");
}

// Stores four matrices; all lanes give the addresses.
template <int arch = 900>
__device__ inline void stmatrix_x4(void* row, const unsigned (&fragment)[4]) {
  static_assert(__CUDA_ARCH__ >= arch, "stmatrix needs sm_90 or newer");
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(shared_address(row)),
               "r"(fragment[0]), "r"(fragment[1]), "r"(fragment[2]), "r"(fragment[3])
               : "memory");
}

// Stores four matrices, each transposed; all lanes give the addresses.
template <int arch = 900>
__device__ inline void stmatrix_x4_trans(void* row, const unsigned (&fragment)[4]) {
  static_assert(__CUDA_ARCH__ >= arch, "stmatrix needs sm_90 or newer");
  asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(shared_address(row)),
               "r"(fragment[0]), "r"(fragment[1]), "r"(fragment[2]), "r"(fragment[3])
               : "memory");
}

}  // namespace qp::ptx
