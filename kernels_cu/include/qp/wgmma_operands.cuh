// What wgmma multiplies: elements, shapes, and how a matrix in shared memory is described.
//
// Both matrices lie row by row along K, the dimension that is summed over: A has 64 rows, B has one for each column of
// the product. An instruction takes 32 bytes of each row, two pieces of 16. Eight rows are a group. Where pieces lie
// follows from the descriptor's start address, its stride, and its swizzle:
//
//   swizzle of 128, 64 or 32 B: rows of so many bytes      no swizzle: cores, 8 rows of one piece, 128 B
//
//     start ───▶ row 0 │ 0 1 │ 2 3 │ 4 5 │ 6 7 │             start ─────▶ rows 0-7, piece 0
//                row 1 │ 1 0 │ 3 2 │ 5 4 │ 7 6 │             + leading ─▶ rows 0-7, piece 1
//                row 2 │ 2 3 │ 0 1 │ 6 7 │ 4 5 │
//                 …    pieces, as a swizzle of 128 B
//                      moves them
//     + stride ▶ row 8, the next group                       + stride ──▶ rows 8-15, piece 0
//
// The swizzle is that of tensor maps: bits 4-6 (4-5, 4) of an address ^= its bits 7-9 (7-8, 7). It acts on addresses, not
// on offsets into a tile, so tiles begin at multiples of 1024 (512, 256) bytes. To go on along K within a row, advance a
// descriptor by 32 bytes; from rows to rows, by multiples of the stride.
//
// Bits of a descriptor, with addresses and distances in units of 16 bytes:
//   0-13 start    16-29 leading    32-45 stride    49-51 base offset    62-63 swizzle
#pragma once

namespace qp::ptx {

enum class MatrixElement : int { f16, bf16, e4m3, e5m2, s8, u8 };

enum class Swizzle : unsigned { none, b128, b64, b32 };  // as a descriptor has it

struct MatrixDescriptor {
  unsigned long long bits;

  // The same matrix from so many bytes further on: a multiple of 16.
  __device__ constexpr MatrixDescriptor advanced(unsigned bytes) const { return {bits + (bytes >> 4)}; }
};

// Describes a matrix from a shared address on, as shared_address() returns it. `stride` is the distance of groups of 8
// rows: 8 rows' bytes where tiles are dense. `leading` is the distance of an instruction's two pieces, and without
// meaning where there is a swizzle. `base_offset` is bits 7-9 of where a tile's swizzle begins, instead of at 0.
__device__ constexpr MatrixDescriptor describe_matrix(unsigned address, Swizzle swizzle, unsigned stride,
                                                      unsigned leading = 0, unsigned base_offset = 0) {
  const auto field = [](unsigned bytes, int at) { return (bytes >> 4 & 0x3fffull) << at; };
  return {field(address, 0) | field(leading, 16) | field(stride, 32) | (base_offset & 7ull) << 49 |
          static_cast<unsigned long long>(swizzle) << 62};
}

__device__ constexpr bool is_8_bit_integer(MatrixElement e) { return e == MatrixElement::s8 || e == MatrixElement::u8; }
__device__ constexpr bool is_8_bit_float(MatrixElement e) {
  return e == MatrixElement::e4m3 || e == MatrixElement::e5m2;
}

// Elements of an instruction's 32 bytes of a row.
__device__ constexpr int matrix_depth(MatrixElement e) { return is_8_bit_integer(e) || is_8_bit_float(e) ? 32 : 16; }

__device__ constexpr bool wgmma_pairs(MatrixElement a, MatrixElement b) {
  return a == b || (is_8_bit_integer(a) && is_8_bit_integer(b)) || (is_8_bit_float(a) && is_8_bit_float(b));
}

__device__ constexpr bool wgmma_has_columns(MatrixElement a, int n) {
  return n >= 8 && n <= 256 && n % 8 == 0 && (!is_8_bit_integer(a) || n % 16 == 0 || n == 8 || n == 24);
}

template <class T> constexpr bool is_f32 = false;
template <> inline constexpr bool is_f32<float> = true;
template <class T> constexpr bool is_s32 = false;
template <> inline constexpr bool is_s32<int> = true;

template <MatrixElement a, class Sum> constexpr bool wgmma_sums_into = is_8_bit_integer(a) ? is_s32<Sum> : is_f32<Sum>;

}  // namespace qp::ptx
