// mma.sync. Integers are exact modulo 2³². Sums of floats follow one of two models:
//
//   exact      the sum of all products and the accumulator, rounded once to f32, to nearest, ties to even
//   truncated  what tensor cores do (Xie et al., arXiv:2511.10909): a few products at a time and the accumulator are
//              aligned to the largest exponent among them, cut behind some fractional bits, added, and cut again
//
// Both give NaN for NaN, 0·∞ and ∞ − ∞, and an infinity for another infinity or a sum of 2¹²⁸ and more.
#include <emulated/matrix.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "runtime.h"

namespace emulated {

namespace {

// ---- elements

struct Real {
  double value;
  int exponent;  // of the leading digit; subnormals have the smallest normal one
};

double power_of_two(int exponent) {  // of a normal f64
  const uint64_t bits = uint64_t(exponent + 1023) << 52;
  double value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

template <int exponent_bits, int mantissa_bits, bool has_infinity>
struct Float {
  using Value = Real;
  using Sum = float;
  static constexpr int bits = 1 + exponent_bits + mantissa_bits;
  static Real decode(unsigned code) {
    constexpr unsigned top = (1u << exponent_bits) - 1, full = (1u << mantissa_bits) - 1;
    constexpr int bias = int(top >> 1);
    const unsigned biased = code >> mantissa_bits & top, mantissa = code & full;
    const double sign = code >> (bits - 1) & 1 ? -1 : 1;
    if (biased == top && mantissa == full && !has_infinity) return {NAN, 0};
    if (biased == top && has_infinity) return {mantissa ? NAN : sign * INFINITY, 0};
    const int exponent = int(std::max(biased, 1u)) - bias;
    const unsigned digits = mantissa | (biased ? full + 1 : 0);
    return {sign * digits * power_of_two(exponent - mantissa_bits), exponent};
  }
};

template <class T>
struct Integer {
  using Value = unsigned;  // modulo 2³²
  using Sum = int;
  static constexpr int bits = 8;
  static unsigned decode(unsigned code) { return unsigned(int(T(code))); }
};

using F16 = Float<5, 10, true>;
using Bf16 = Float<8, 7, true>;
using E4m3 = Float<4, 3, false>;
using E5m2 = Float<5, 2, true>;
using S8 = Integer<int8_t>;
using U8 = Integer<uint8_t>;

// ---- the exact model

constexpr int most_terms = 33;

// Rounds high + low, where |low| ≤ ulp(high)/2 tells what is left, as one number: to odd first, which the second
// rounding cannot mistake for a tie.
float round_once(double high, double low) {
  uint64_t bits;
  memcpy(&bits, &high, sizeof bits);
  if (low != 0 && !(bits & 1)) high = std::nextafter(high, low > 0 ? INFINITY : -INFINITY);
  return float(high);
}

// Adds without any error: the rounding error of each addition becomes a partial sum of its own (Shewchuk 1997). All
// partials are multiples of the smallest term's last digit, and none is near an end of f64's range.
float exact_sum(const double* terms, int count) {
  double partials[most_terms];
  int held = 0;
  for (int i = 0; i < count; ++i) {
    double x = terms[i];
    int kept = 0;
    for (int j = 0; j < held; ++j) {
      const double y = partials[j], sum = x + y, of_y = sum - x;
      const double error = (x - (sum - of_y)) + (y - of_y);
      if (error != 0) partials[kept++] = error;
      x = sum;
    }
    partials[kept++] = x;
    held = kept;
  }
  double high = partials[--held], low = 0;
  while (held > 0 && low == 0) {
    const double x = high, y = partials[--held];
    high = x + y;
    low = y - (high - x);
  }
  return round_once(high, low);
}

// ---- the truncated model

struct Cut {
  int step;         // products that are added at a time
  int fraction;     // bits kept behind the digit of the largest exponent
  int significant;  // bits kept of the sum
};
constexpr Cut f16_cut{8, 24, 24};   // Ampere and Ada
constexpr Cut bf16_cut{8, 24, 24};  // Ampere and Ada
constexpr Cut fp8_cut{16, 13, 14};  // Ada

template <class Element>
constexpr Cut cut_of = fp8_cut;
template <>
constexpr Cut cut_of<F16> = f16_cut;
template <>
constexpr Cut cut_of<Bf16> = bf16_cut;

constexpr int least_exponent = -126;  // of a normal f32
constexpr int no_exponent = std::numeric_limits<int>::min();

float cut_to(double sum, int significant) {
  if (sum == 0) return 0;
  const double quantum = power_of_two(std::max(std::ilogb(sum), least_exponent) - (significant - 1));
  return float(std::trunc(sum / quantum) * quantum);
}

float truncated_sum(float sum, const Real* a, const Real* b, const Cut& cut) {
  int largest = sum == 0 ? no_exponent : std::max(std::ilogb(sum), least_exponent);
  for (int k = 0; k < cut.step; ++k)
    if (a[k].value * b[k].value != 0) largest = std::max(largest, a[k].exponent + b[k].exponent);
  if (largest == no_exponent) return 0;
  const double scale = power_of_two(cut.fraction - largest);
  auto total = int64_t(sum * scale);
  for (int k = 0; k < cut.step; ++k) total += int64_t(a[k].value * b[k].value * scale);
  return cut_to(double(total) / scale, cut.significant);
}

// ---- one sum

template <class A, class B>
float add_products(float sum, const Real* a, const Real* b, int depth) {
  double terms[most_terms] = {sum}, plain = sum;
  for (int k = 0; k < depth; ++k) plain += terms[k + 1] = a[k].value * b[k].value;
  if (std::isnan(plain)) {
    constexpr uint32_t canonical = 0x7fffffff;
    memcpy(&sum, &canonical, sizeof sum);
    return sum;
  }
  if (std::isinf(plain)) return float(plain);
  if (!truncates_accumulation()) return exact_sum(terms, depth + 1);
  constexpr Cut cut = cut_of<A>;
  for (int k = 0; k < depth && !std::isinf(sum); k += cut.step) sum = truncated_sum(sum, a + k, b + k, cut);
  return sum;
}

template <class A, class B>
int add_products(int sum, const unsigned* a, const unsigned* b, int depth) {
  auto total = unsigned(sum);
  for (int k = 0; k < depth; ++k) total += a[k] * b[k];
  return int(total);
}

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
      lane.sums[r] = add_products<A, B>(lane.sums[r], a[row], b[column], depth);
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
