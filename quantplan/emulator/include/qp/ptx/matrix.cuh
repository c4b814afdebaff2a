// Emulation of kernels_cu/include/qp/ptx/matrix.cuh.
#pragma once

#include <emulated/matrix.h>

namespace qp::ptx {

EMULATED_INSTRUCTION void ldmatrix_x1(unsigned (&fragment)[1], const void* row, EMULATED_CALLER) {
  emulated::load_matrices(fragment, 1, false, row, where);
}
EMULATED_INSTRUCTION void ldmatrix_x1_trans(unsigned (&fragment)[1], const void* row, EMULATED_CALLER) {
  emulated::load_matrices(fragment, 1, true, row, where);
}
EMULATED_INSTRUCTION void ldmatrix_x2(unsigned (&fragment)[2], const void* row, EMULATED_CALLER) {
  emulated::load_matrices(fragment, 2, false, row, where);
}
EMULATED_INSTRUCTION void ldmatrix_x2_trans(unsigned (&fragment)[2], const void* row, EMULATED_CALLER) {
  emulated::load_matrices(fragment, 2, true, row, where);
}
EMULATED_INSTRUCTION void ldmatrix_x4(unsigned (&fragment)[4], const void* row, EMULATED_CALLER) {
  emulated::load_matrices(fragment, 4, false, row, where);
}
EMULATED_INSTRUCTION void ldmatrix_x4_trans(unsigned (&fragment)[4], const void* row, EMULATED_CALLER) {
  emulated::load_matrices(fragment, 4, true, row, where);
}
template <int arch = 900>
EMULATED_INSTRUCTION void stmatrix_x1(void* row, const unsigned (&fragment)[1], EMULATED_CALLER) {
  static_assert(__CUDA_ARCH__ >= arch, "stmatrix needs sm_90 or newer");
  emulated::store_matrices(row, fragment, 1, false, where);
}
template <int arch = 900>
EMULATED_INSTRUCTION void stmatrix_x1_trans(void* row, const unsigned (&fragment)[1], EMULATED_CALLER) {
  static_assert(__CUDA_ARCH__ >= arch, "stmatrix needs sm_90 or newer");
  emulated::store_matrices(row, fragment, 1, true, where);
}
template <int arch = 900>
EMULATED_INSTRUCTION void stmatrix_x2(void* row, const unsigned (&fragment)[2], EMULATED_CALLER) {
  static_assert(__CUDA_ARCH__ >= arch, "stmatrix needs sm_90 or newer");
  emulated::store_matrices(row, fragment, 2, false, where);
}
template <int arch = 900>
EMULATED_INSTRUCTION void stmatrix_x2_trans(void* row, const unsigned (&fragment)[2], EMULATED_CALLER) {
  static_assert(__CUDA_ARCH__ >= arch, "stmatrix needs sm_90 or newer");
  emulated::store_matrices(row, fragment, 2, true, where);
}
template <int arch = 900>
EMULATED_INSTRUCTION void stmatrix_x4(void* row, const unsigned (&fragment)[4], EMULATED_CALLER) {
  static_assert(__CUDA_ARCH__ >= arch, "stmatrix needs sm_90 or newer");
  emulated::store_matrices(row, fragment, 4, false, where);
}
template <int arch = 900>
EMULATED_INSTRUCTION void stmatrix_x4_trans(void* row, const unsigned (&fragment)[4], EMULATED_CALLER) {
  static_assert(__CUDA_ARCH__ >= arch, "stmatrix needs sm_90 or newer");
  emulated::store_matrices(row, fragment, 4, true, where);
}

}  // namespace qp::ptx
