// Products of whole tiles, in loops that a compiler makes vector instructions of. Decoded tiles are too large for the
// stack of a fiber, and there is one at a time.
#include "tiles.h"

#include "sums.h"

namespace emulated {

namespace {

// ---- integers: products of what fits into 16 bits, added in pairs

template <class A, class B>
void multiply_integers(int columns, const Row* a, const Row* b, uint32_t* sums) {
  static int16_t wide_a[row_bytes], wide_b[most_columns][row_bytes];
  for (int c = 0; c < columns; ++c)
    for (int k = 0; k < row_bytes; ++k) wide_b[c][k] = int16_t(B::decode(b[c][k]));
  for (int r = 0; r < tile_rows; ++r) {
    for (int k = 0; k < row_bytes; ++k) wide_a[k] = int16_t(A::decode(a[r][k]));
    for (int c = 0; c < columns; ++c) {
      int sum = 0;
      for (int k = 0; k < row_bytes; ++k) sum += wide_a[k] * wide_b[c][k];
      sums[r * columns + c] += uint32_t(sum);
    }
  }
}

// ---- floats: Hopper's

template <class A>
constexpr Cut cut_of = A::bits == 8 ? Cut{32, 13, 14} : Cut{16, 25, 24};

template <class T, int depth>
void decode(const Row& row, Real (&values)[depth]) {
  for (int k = 0; k < depth; ++k) {
    constexpr int bytes = T::bits / 8;
    values[k] = T::decode(bytes == 1 ? row[k] : row[2 * k] | unsigned(row[2 * k + 1]) << 8);
  }
}

template <class A, class B>
void multiply_floats(int columns, const Row* a, const Row* b, uint32_t* sums) {
  constexpr int depth = 8 * row_bytes / A::bits;
  constexpr Cut cut = cut_of<A>;
  static Real of_a[depth], of_b[most_columns][depth];
  static double transposed[depth][most_columns];
  for (int c = 0; c < columns; ++c) {
    decode<B>(b[c], of_b[c]);
    for (int k = 0; k < depth; ++k) transposed[k][c] = of_b[c][k].value;
  }
  auto* of_row = reinterpret_cast<float*>(sums);
  for (int r = 0; r < tile_rows; ++r, of_row += columns) {
    decode<A>(a[r], of_a);
    // Mostly f64 holds each partial sum: then it is exact, and rounded once here. `lost` says where it does not.
    double plain[most_columns], lost[most_columns] = {};
    for (int c = 0; c < columns; ++c) plain[c] = of_row[c];
    for (int k = 0; k < depth; ++k) {
      const double x = of_a[k].value;
      for (int c = 0; c < columns; ++c) {
        const double product = x * transposed[k][c], sum = plain[c] + product, of_product = sum - plain[c];
        lost[c] += std::fabs(plain[c] - (sum - of_product)) + std::fabs(product - of_product);
        plain[c] = sum;
      }
    }
    const bool exact = !truncates_accumulation();
    for (int c = 0; c < columns; ++c)
      of_row[c] = exact && lost[c] == 0 ? float(plain[c]) : add_products(of_row[c], of_a, of_b[c], depth, cut);
  }
}

using Multiply = void (*)(int, const Row*, const Row*, uint32_t*);

template <class A>
Multiply of_integers(Element b) {
  return b == Element::s8 ? multiply_integers<A, S8> : multiply_integers<A, U8>;
}

template <class A>
Multiply of_fp8(Element b) {
  return b == Element::e4m3 ? multiply_floats<A, E4m3> : multiply_floats<A, E5m2>;
}

Multiply product_of(Element a, Element b) {
  switch (a) {
    case Element::f16: return multiply_floats<F16, F16>;
    case Element::bf16: return multiply_floats<Bf16, Bf16>;
    case Element::e4m3: return of_fp8<E4m3>(b);
    case Element::e5m2: return of_fp8<E5m2>(b);
    case Element::s8: return of_integers<S8>(b);
    default: return of_integers<U8>(b);
  }
}

}  // namespace

void multiply_tiles(Element a_element, Element b_element, int columns, const Row* a, const Row* b, uint32_t* sums) {
  product_of(a_element, b_element)(columns, a, b, sums);
}

}  // namespace emulated
