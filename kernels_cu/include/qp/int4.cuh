// 4-bit weights in Marlin's words, as tensor cores multiply them: turned about, so that a weight's columns are the rows of
// the instruction, and tokens its columns. One word of a lane is then one fragment of 16 columns by 16 rows of K:
//
//   word j of a tile of 64 columns       k = 2(lane%4), +1     … +8, +9
//     column 16j + lane/4                 nibbles 0, 4          1, 5
//     column 16j + lane/4 + 8             nibbles 2, 6          3, 7
//
// Codes become 16-bit floats without a conversion: a nibble in the last bits of the mantissa of a power of two is added to
// it. From there q − z is one exact fused multiply-add away, for both of a register's codes:
//
//   f16   1024 + q  in bits 0-3,  1024 + 16q  in bits 4-7         bf16   128 + q  in bits 0-3
//
// Scales meet sums, in f32, and never a weight: q − z is an integer of 5 bits, so that weights are not rounded at all.
#pragma once

#include <qp/epilogue.cuh>
#include <qp/ptx/half2.cuh>
#include <qp/ptx/mma.cuh>

namespace qp {

constexpr int marlin_k = 16;  // rows and columns of a tile
constexpr int marlin_n = 64;
constexpr int marlin_tile_bytes = 512;
constexpr int int4_run = 64;  // rows of K that a warp has of a stage: a line of activations
constexpr unsigned symmetric_zeros = 0x00080008;  // of two columns

// Rows after which sums meet their scale: those of a group, which is all of K if they are 0, and at most those of a run.
template <int Group> constexpr int fold_rows = Group == 0 || Group > int4_run ? int4_run : Group;
template <int Group> constexpr int group_rows = Group == 0 ? 1 << 30 : Group;  // longer than any K

struct Int4Params {
  const void* act;
  const void* weight_q;
  const void* weight_scale;
  const void* weight_zero_point;  // null: 8 everywhere
  const int* perm;  // null: columns of act are in order
  const void* bias;  // null: none
  void* output;
  int64 m, n, padded_n, act_stride, weight_stride, scale_stride, zero_point_stride, output_stride;  // strides in bytes, but the output's
  int k, padded_k, act_aligned, output_aligned;  // aligned: every row to 16 bytes
};

// Both halves of a register, each twice in a register of its own.
__device__ inline void spread(unsigned pair, unsigned (&both)[2]) {
  both[0] = __byte_perm(pair, 0, 0x1010), both[1] = __byte_perm(pair, 0, 0x3232);
}

// Makes a fragment of a word. Zero points come in pairs: that of column lane/4 below, that of the one 8 further above.
template <class Act> struct Fragment;

template <> struct Fragment<f16> {
  unsigned from_low[2], from_high[2];  // −(1024 + z) and −(64 + z), of the two columns

  __device__ explicit Fragment(unsigned zeros) {
    spread(0xe400e400u | zeros, from_low);
    spread(0xd400d400u | zeros << 4, from_high);
  }
  __device__ void of(unsigned word, unsigned (&a)[4]) const {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const unsigned codes = word >> 8 * i;
      a[i] = ptx::fma_f16x2(ptx::and_or(codes, 0x000f000fu, 0x64006400u), 0x3c003c00u, from_low[i]);
      a[i + 2] = ptx::fma_f16x2(ptx::and_or(codes, 0x00f000f0u, 0x64006400u), 0x2c002c00u, from_high[i]);  // 1/16
    }
  }
};

template <> struct Fragment<bf16> {
  unsigned from[2];  // −(128 + z)

  __device__ explicit Fragment(unsigned zeros) { spread(0xc300c300u | zeros, from); }
  __device__ void of(unsigned word, unsigned (&a)[4]) const {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      a[i] = ptx::fma_bf16x2(ptx::and_or(word >> 8 * i, 0x000f000fu, 0x43004300u), 0x3f803f80u, from[i]);
      a[i + 2] = ptx::fma_bf16x2(ptx::and_or(word >> (8 * i + 4), 0x000f000fu, 0x43004300u), 0x3f803f80u, from[i]);
    }
  }
};

// The zero points of word j's two columns, of the eight that a lane's word of zero points holds.
__device__ inline unsigned zeros_of(unsigned zero_points, int j) { return zero_points >> 4 * j & 0x000f000fu; }

// Adds a product of 16-bit floats to f32 sums.
template <class Act>
__device__ inline void multiply_add_16(f32 (&sums)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
  if constexpr (same<Act, f16>) ptx::mma_m16n8k16_f16_f16(sums, a, b);
  else ptx::mma_m16n8k16_bf16_bf16(sums, a, b);
}

// Where the scale of a column lies, if all of K is one group.
__device__ inline int64 scale_place(int64 column) {
  const int c = static_cast<int>(column % 32);
  return column - c + 8 * (c % 8 / 2) + 2 * (c / 8) + c % 2;
}

// Sums in shared memory, perhaps several partial ones of each token and column, and what becomes of them. A lane's sums
// are of two tokens and two columns; tokens lie so that a warp's go to different banks.
template <int Tokens, int Columns>
struct TokenSums {
  static constexpr int pitch = Columns + 4;

  f32 (*const part)[Tokens][pitch];

  __device__ explicit TokenSums(void* shared) : part(static_cast<f32 (*)[Tokens][pitch]>(shared)) {}

  // The sums of the 16 columns from `column` on, and of the 8 tokens from `token` on.
  __device__ void put(int n, int token, int column, int lane, const f32 (&sums)[4]) const {
#pragma unroll
    for (int r = 0; r < 4; ++r) part[n][token + lane % 4 * 2 + r % 2][column + lane / 4 + r / 2 * 8] = sums[r];
  }
};

// Stores `rows` rows of outputs whose sums `sum(i, j)` returns, four neighbours of row i from column j on.
template <class Act, class Out, int Columns, int Threads, class Sum>
__device__ inline void finish_tokens(const Int4Params& p, int64 row, int rows, int64 column, int thread, const Sum& sum) {
  constexpr int V = outputs_at_once<Out>, across = Columns / V;
  static_assert(Threads % across == 0, "a thread stays in its columns");
  const int first = thread % across * V, count = left(static_cast<int>(min(p.n - column, int64(Columns))) - first, V);
  if (count == 0) return;
  f32 bias[V];
#pragma unroll
  for (int j = 0; j < V; ++j)  // to add −0 changes nothing
    bias[j] = p.bias ? widen<f32>(static_cast<const Act*>(p.bias)[column + first + (j < count ? j : 0)]) : -0.0f;
  for (int i = thread / across; i < rows; i += Threads / across) {
    Vec<Out, V> result;
#pragma unroll
    for (int j = 0; j < V; j += 4) {
      const Vec<f32, 4> some = sum(i, first + j);
#pragma unroll
      for (int n = 0; n < 4; ++n) result.item[j + n] = Round<Out>::from(add(some.item[n], bias[j + n]));
    }
    store_outputs<Out>(p, row + i, column + first, result, count);
  }
}

}  // namespace qp
