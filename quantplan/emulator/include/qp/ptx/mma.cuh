// Emulation of kernels_cu/include/qp/ptx/mma.cuh.
#pragma once

#include <emulated/matrix.h>

namespace qp::ptx {

EMULATED_INSTRUCTION void mma_m16n8k16_f16_f16(float (&sums)[4], const unsigned (&a)[4], const unsigned (&b)[2],
                                               EMULATED_CALLER) {
  emulated::multiply(emulated::Element::f16, emulated::Element::f16, sums, a, b, where);
}
EMULATED_INSTRUCTION void mma_m16n8k16_bf16_bf16(float (&sums)[4], const unsigned (&a)[4], const unsigned (&b)[2],
                                                 EMULATED_CALLER) {
  emulated::multiply(emulated::Element::bf16, emulated::Element::bf16, sums, a, b, where);
}
EMULATED_INSTRUCTION void mma_m16n8k32_s8_s8(int (&sums)[4], const unsigned (&a)[4], const unsigned (&b)[2],
                                             EMULATED_CALLER) {
  emulated::multiply(emulated::Element::s8, emulated::Element::s8, sums, a, b, where);
}
EMULATED_INSTRUCTION void mma_m16n8k32_u8_s8(int (&sums)[4], const unsigned (&a)[4], const unsigned (&b)[2],
                                             EMULATED_CALLER) {
  emulated::multiply(emulated::Element::u8, emulated::Element::s8, sums, a, b, where);
}
EMULATED_INSTRUCTION void mma_m16n8k32_s8_u8(int (&sums)[4], const unsigned (&a)[4], const unsigned (&b)[2],
                                             EMULATED_CALLER) {
  emulated::multiply(emulated::Element::s8, emulated::Element::u8, sums, a, b, where);
}
EMULATED_INSTRUCTION void mma_m16n8k32_u8_u8(int (&sums)[4], const unsigned (&a)[4], const unsigned (&b)[2],
                                             EMULATED_CALLER) {
  emulated::multiply(emulated::Element::u8, emulated::Element::u8, sums, a, b, where);
}
template <int arch = 890>
EMULATED_INSTRUCTION void mma_m16n8k32_e4m3_e4m3(float (&sums)[4], const unsigned (&a)[4], const unsigned (&b)[2],
                                                 EMULATED_CALLER) {
  static_assert(__CUDA_ARCH__ >= arch, "mma.sync of FP8 needs sm_89 or newer");
  emulated::multiply(emulated::Element::e4m3, emulated::Element::e4m3, sums, a, b, where);
}
template <int arch = 890>
EMULATED_INSTRUCTION void mma_m16n8k32_e4m3_e5m2(float (&sums)[4], const unsigned (&a)[4], const unsigned (&b)[2],
                                                 EMULATED_CALLER) {
  static_assert(__CUDA_ARCH__ >= arch, "mma.sync of FP8 needs sm_89 or newer");
  emulated::multiply(emulated::Element::e4m3, emulated::Element::e5m2, sums, a, b, where);
}
template <int arch = 890>
EMULATED_INSTRUCTION void mma_m16n8k32_e5m2_e4m3(float (&sums)[4], const unsigned (&a)[4], const unsigned (&b)[2],
                                                 EMULATED_CALLER) {
  static_assert(__CUDA_ARCH__ >= arch, "mma.sync of FP8 needs sm_89 or newer");
  emulated::multiply(emulated::Element::e5m2, emulated::Element::e4m3, sums, a, b, where);
}
template <int arch = 890>
EMULATED_INSTRUCTION void mma_m16n8k32_e5m2_e5m2(float (&sums)[4], const unsigned (&a)[4], const unsigned (&b)[2],
                                                 EMULATED_CALLER) {
  static_assert(__CUDA_ARCH__ >= arch, "mma.sync of FP8 needs sm_89 or newer");
  emulated::multiply(emulated::Element::e5m2, emulated::Element::e5m2, sums, a, b, where);
}

}  // namespace qp::ptx
