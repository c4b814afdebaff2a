// What matrix instructions compute. Integers are exact modulo 2³². Sums of floats follow one of two models:
//
//   exact      the sum of all products and the accumulator, rounded once to f32, to nearest, ties to even
//   truncated  what tensor cores do (Xie et al., arXiv:2511.10909): a few products at a time and the accumulator are
//              aligned to the largest exponent among them, cut behind some fractional bits, added, and cut again
//
// Both give NaN for NaN, 0·∞ and ∞ − ∞, and an infinity for another infinity or a sum of 2¹²⁸ and more.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#include <emulated/api.h>

namespace emulated {

// ---- elements

struct Real {
  double value;
  int exponent;  // of the leading digit; subnormals have the smallest normal one
};

inline double power_of_two(int exponent) {  // of a normal f64
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
inline float round_once(double high, double low) {
  uint64_t bits;
  memcpy(&bits, &high, sizeof bits);
  if (low != 0 && !(bits & 1)) high = std::nextafter(high, low > 0 ? INFINITY : -INFINITY);
  return float(high);
}

// Adds without any error: the rounding error of each addition becomes a partial sum of its own (Shewchuk 1997). All
// partials are multiples of the smallest term's last digit, and none is near an end of f64's range.
inline float exact_sum(const double* terms, int count) {
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

constexpr int least_exponent = -126;  // of a normal f32
constexpr int no_exponent = std::numeric_limits<int>::min();

inline float cut_to(double sum, int significant) {
  if (sum == 0) return 0;
  const double quantum = power_of_two(std::max(std::ilogb(sum), least_exponent) - (significant - 1));
  return float(std::trunc(sum / quantum) * quantum);
}

inline float truncated_sum(float sum, const Real* a, const Real* b, const Cut& cut) {
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

inline float add_products(float sum, const Real* a, const Real* b, int depth, const Cut& cut) {
  double terms[most_terms] = {sum}, plain = sum;
  for (int k = 0; k < depth; ++k) plain += terms[k + 1] = a[k].value * b[k].value;
  if (std::isnan(plain)) {
    constexpr uint32_t canonical = 0x7fffffff;
    memcpy(&sum, &canonical, sizeof sum);
    return sum;
  }
  if (std::isinf(plain)) return float(plain);
  if (!truncates_accumulation()) return exact_sum(terms, depth + 1);
  for (int k = 0; k < depth && !std::isinf(sum); k += cut.step) sum = truncated_sum(sum, a + k, b + k, cut);
  return sum;
}

inline int add_products(int sum, const unsigned* a, const unsigned* b, int depth, const Cut&) {
  auto total = unsigned(sum);
  for (int k = 0; k < depth; ++k) total += a[k] * b[k];
  return int(total);
}

}  // namespace emulated
