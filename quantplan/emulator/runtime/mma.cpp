// mma.sync: fragments of the lanes become matrices, each sum is formed as sums.h says, and goes back to its lane.
#include <emulated/matrix.h>

#include "runtime.h"
#include "sums.h"

namespace emulated {

namespace {

constexpr Cut f16_cut{8, 24, 24};   // Ampere and Ada
constexpr Cut bf16_cut{8, 24, 24};  // Ampere and Ada
constexpr Cut fp8_cut{16, 13, 14};  // Ada

template <class Element>
constexpr Cut cut_of = fp8_cut;
template <>
constexpr Cut cut_of<F16> = f16_cut;
template <>
constexpr Cut cut_of<Bf16> = bf16_cut;

// ---- the warp

template <class Sum>
struct Lane {
  Sum* sums;
  const unsigned *a, *b;
};

template <class A, class B>
void complete(void* const* lanes, unsigned) {
  constexpr int each = 32 / A::bits, half = 4 * each, depth = 2 * half;  // elements of a register, columns of A
  typename A::Value a[16][depth];
  typename B::Value b[8][depth];
  const auto code = [](unsigned packed, int e) { return packed >> e * A::bits & ((1u << A::bits) - 1); };
  for (int l = 0; l < 32; ++l) {
    const auto& lane = *static_cast<Lane<typename A::Sum>*>(lanes[l]);
    const int group = l / 4, first = l % 4 * each;
    for (int e = 0; e < each; ++e) {
      for (int r = 0; r < 4; ++r) a[group + r % 2 * 8][first + r / 2 * half + e] = A::decode(code(lane.a[r], e));
      for (int r = 0; r < 2; ++r) b[group][first + r * half + e] = B::decode(code(lane.b[r], e));
    }
  }
  for (int l = 0; l < 32; ++l) {
    const auto& lane = *static_cast<Lane<typename A::Sum>*>(lanes[l]);
    for (int r = 0; r < 4; ++r) {
      const int row = l / 4 + r / 2 * 8, column = l % 4 * 2 + r % 2;
      lane.sums[r] = add_products(lane.sums[r], a[row], b[column], depth, cut_of<A>);
    }
  }
}

// Lanes meet only in the same function, so each pairing has its own.
struct Pairing {
  Element a, b;
  Complete complete;
};
constexpr Pairing into_f32[] = {
    {Element::f16, Element::f16, complete<F16, F16>},      {Element::bf16, Element::bf16, complete<Bf16, Bf16>},
    {Element::e4m3, Element::e4m3, complete<E4m3, E4m3>},  {Element::e4m3, Element::e5m2, complete<E4m3, E5m2>},
    {Element::e5m2, Element::e4m3, complete<E5m2, E4m3>},  {Element::e5m2, Element::e5m2, complete<E5m2, E5m2>},
};
constexpr Pairing into_s32[] = {
    {Element::s8, Element::s8, complete<S8, S8>},
    {Element::s8, Element::u8, complete<S8, U8>},
    {Element::u8, Element::s8, complete<U8, S8>},
    {Element::u8, Element::u8, complete<U8, U8>},
};

template <class Sum, size_t count>
void meet_to_multiply(const Pairing (&pairings)[count], Element a_element, Element b_element, Lane<Sum> mine,
                      Where where) {
  for (const Pairing& pairing : pairings)
    if (pairing.a == a_element && pairing.b == b_element)
      return meet(Collective::matrix, ~0u, &mine, pairing.complete, where);
  fail_invalid("mma.sync has no such pair of elements", where);
}

}  // namespace

void multiply(Element a_element, Element b_element, float* sums, const unsigned* a, const unsigned* b, Where where) {
  meet_to_multiply(into_f32, a_element, b_element, Lane<float>{sums, a, b}, where);
}

void multiply(Element a_element, Element b_element, int* sums, const unsigned* a, const unsigned* b, Where where) {
  meet_to_multiply(into_s32, a_element, b_element, Lane<int>{sums, a, b}, where);
}

}  // namespace emulated
