// Emulation of kernels_cu/include/qp/ptx/wgmma.cuh.
#pragma once

#include <emulated/warp_group.h>
#include <qp/architecture.cuh>
#include <qp/wgmma_operands.cuh>

namespace emulated {

constexpr Element element_of(qp::ptx::MatrixElement e) {
  using qp::ptx::MatrixElement;
  switch (e) {
    case MatrixElement::f16: return Element::f16;
    case MatrixElement::bf16: return Element::bf16;
    case MatrixElement::e4m3: return Element::e4m3;
    case MatrixElement::e5m2: return Element::e5m2;
    case MatrixElement::s8: return Element::s8;
    default: return Element::u8;
  }
}

}  // namespace emulated

namespace qp::ptx {

template <class T, int count>
EMULATED_INSTRUCTION void wgmma_fence_operand(T (&registers)[count]) {
  emulated::wgmma_fence_operand(registers, sizeof registers);
}
template <bool there = is_sm_90a>
EMULATED_INSTRUCTION void wgmma_fence(EMULATED_CALLER) {
  static_assert(there, "wgmma needs sm_90a");
  emulated::wgmma_fence(where);
}
template <bool there = is_sm_90a>
EMULATED_INSTRUCTION void wgmma_commit_group(EMULATED_CALLER) {
  static_assert(there, "wgmma needs sm_90a");
  emulated::wgmma_commit(where);
}
template <int groups, bool there = is_sm_90a>
EMULATED_INSTRUCTION void wgmma_wait_group(EMULATED_CALLER) {
  static_assert(there, "wgmma needs sm_90a");
  static_assert(groups >= 0 && groups < 8, "wgmma.wait_group counts up to 7 groups");
  emulated::wgmma_wait(groups, where);
}
template <MatrixElement a_element, MatrixElement b_element, int columns, bool there = is_sm_90a, class Sum>
EMULATED_INSTRUCTION void wgmma(Sum (&sums)[columns / 2], MatrixDescriptor a, MatrixDescriptor b, bool accumulate,
                                EMULATED_CALLER) {
  static_assert(there, "wgmma needs sm_90a");
  static_assert(wgmma_pairs(a_element, b_element), "wgmma multiplies no such pair of elements");
  static_assert(wgmma_has_columns(a_element, columns), "wgmma has no such number of columns");
  static_assert(wgmma_sums_into<a_element, Sum>, "wgmma adds integers in int, floats in float");
  emulated::wgmma({emulated::element_of(a_element), emulated::element_of(b_element), columns,
                   reinterpret_cast<uint32_t*>(sums), nullptr, a.bits, b.bits, accumulate},
                  where);
}
template <MatrixElement a_element, MatrixElement b_element, int columns, bool there = is_sm_90a, class Sum>
EMULATED_INSTRUCTION void wgmma_registers(Sum (&sums)[columns / 2], const unsigned (&a)[4], MatrixDescriptor b,
                                          bool accumulate, EMULATED_CALLER) {
  static_assert(there, "wgmma needs sm_90a");
  static_assert(wgmma_pairs(a_element, b_element), "wgmma multiplies no such pair of elements");
  static_assert(wgmma_has_columns(a_element, columns), "wgmma has no such number of columns");
  static_assert(wgmma_sums_into<a_element, Sum>, "wgmma adds integers in int, floats in float");
  emulated::wgmma({emulated::element_of(a_element), emulated::element_of(b_element), columns,
                   reinterpret_cast<uint32_t*>(sums), a, 0, b.bits, accumulate},
                  where);
}

}  // namespace qp::ptx
