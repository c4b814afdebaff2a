// RepackMarlin: weight_q = Marlin's words of the codes of qweight, whose rows may be taken in another order
//
//   qweight    GPTQ [K/8, N]: eight rows of a column in a word, or AWQ [K, N/8]: eight columns of a row, interleaved
//   perm       row k is the source's row perm[k]; an index outside of [0, K) reads nothing
//   weight_q   [K'/16, 2 N'], K' and N' multiples of 64; what lies behind K and N is code 8
//
// One read of the source and one write of the result, but for rows out of order: a word is then read for each of its codes,
// mostly from L2. A block takes 64 rows by 256 columns. Whatever the source, a thread makes the codes of 16 rows of a column,
// 8 bytes, and puts them where whoever packs finds them without two lanes asking one bank:
//
//     tile of 16 rows              column c is at row c%8, place c/8           a lane's four words of 64 columns need, for
//   ┌──────────────────── 34 ┐                                                each word j, columns 16j + lane/4 and 8 more:
//   │ 0   8  16  24 …        │     a row of columns, as GPTQ has them: 8 lanes  two neighbours, 16 bytes
//   │ 1   9  17  25 …        │     go down, 34 apart, the others to the right
//   8 ⋮                      │     eight columns of a word, as AWQ has them:
//   │ 7  15  23  31 …        │     all lanes go to the right
//   └────────────────────────┘
//
// Lane l of the packing warp keeps rows 2(l%4), + 1, + 8 and + 9 of its columns: see docs/formats.md, "Marlin".
#pragma once

#include <qp/element.cuh>
#include <qp/ptx/launch.cuh>
#include <qp/ptx/memory.cuh>

namespace qp {

enum class Source : int { gptq, gptq_sorted, awq };

struct RepackMarlinParams {
  const unsigned* qweight;
  const int* perm;  // null but for rows out of order
  unsigned* weight_q;
  int64 k, n, qweight_stride, weight_q_stride;  // strides in words
};

template <> constexpr int least_blocks<RepackMarlinParams> = 1;  // all loads of a thread at once

constexpr int repack_threads = 128;
constexpr int repack_rows = 64;
constexpr int repack_columns = 256;
constexpr int repack_tiles = repack_rows / 16;
constexpr int repack_pitch = 34;  // columns from one row in shared memory to the next: 2 modulo 16 banks of 8 bytes
constexpr unsigned repack_padding = 0x88888888u;

static_assert(repack_tiles * 32 == repack_threads, "a warp takes a tile of AWQ's rows, and a tile of 64 columns to pack");
static_assert(repack_columns == 2 * repack_threads, "a thread takes two columns of GPTQ's");
static_assert(repack_pitch >= repack_columns / 8 && repack_pitch % 16 == 2, "no two lanes ask one bank");

// The codes of a column in 16 rows: 0 to 7, and 8 to 15.
struct alignas(8) SixteenRows {
  unsigned low, high;
};

// Where column c of a tile of rows is.
__device__ inline int repack_place(int tile, int c) { return (tile * 8 + c % 8) * repack_pitch + c / 8; }

// Of the nibbles of AWQ's words, the one that holds column i of eight.
__device__ inline constexpr int awq_nibble(int i) { return i / 2 + 4 * (i % 2); }

// Loads a word that nothing writes; the padding's where there is none.
__device__ inline unsigned repack_word(const unsigned* from, bool there) {
  return there ? ptx::load_4(from) : repack_padding;
}

// GPTQ: a thread takes two columns, whose words are what shared memory wants.
__device__ inline void load_gptq(const RepackMarlinParams& p, int64 row, int64 column, SixteenRows* shared) {
  constexpr int words = repack_rows / 8;
  unsigned word[2][words];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int64 at = column + threadIdx.x + half * repack_threads;
#pragma unroll
    for (int i = 0; i < words; ++i) {
      const int64 from = row / 8 + i;
      word[half][i] = repack_word(p.qweight + from * p.qweight_stride + at, from < p.k / 8 && at < p.n);
    }
  }
#pragma unroll
  for (int half = 0; half < 2; ++half)
#pragma unroll
    for (int tile = 0; tile < repack_tiles; ++tile)
      shared[repack_place(tile, threadIdx.x + half * repack_threads)] = {word[half][2 * tile], word[half][2 * tile + 1]};
}

// GPTQ with rows out of order: a thread gathers the codes of two columns, a tile at a time.
__device__ inline void load_gptq_sorted(const RepackMarlinParams& p, int64 row, int64 column, SixteenRows* shared) {
  int* const from = reinterpret_cast<int*>(shared + repack_tiles * 8 * repack_pitch);
  if (threadIdx.x < repack_rows) from[threadIdx.x] = row + threadIdx.x < p.k ? p.perm[row + threadIdx.x] : -1;
  __syncthreads();
#pragma unroll 1
  for (int part = 0; part < 2 * repack_tiles; ++part) {
    const int tile = part / 2, c = threadIdx.x + part % 2 * repack_threads;
    unsigned word[16], code[2] = {};
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      const int source = from[16 * tile + i];
      const bool there = 0 <= source && source < p.k && column + c < p.n;
      word[i] = repack_word(p.qweight + source / 8 * p.qweight_stride + column + c, there);
    }
#pragma unroll
    for (int i = 0; i < 16; ++i) code[i / 8] |= (word[i] >> 4 * (from[16 * tile + i] & 7) & 0xfu) << 4 * (i % 8);
    shared[repack_place(tile, c)] = {code[0], code[1]};
  }
}

// AWQ: a warp takes a tile of rows, and each lane a column of words, which is turned about.
__device__ inline void load_awq(const RepackMarlinParams& p, int64 row, int64 column, SixteenRows* shared) {
  const int tile = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int64 at = column / 8 + lane;
  unsigned word[16];
#pragma unroll
  for (int i = 0; i < 16; ++i) {
    const int64 from = row + 16 * tile + i;
    word[i] = repack_word(p.qweight + from * p.qweight_stride + at, from < p.k && at < p.n / 8);
  }
#pragma unroll
  for (int c = 0; c < 8; ++c) {
    unsigned code[2] = {};
#pragma unroll
    for (int i = 0; i < 16; ++i) code[i / 8] |= (word[i] >> 4 * awq_nibble(c) & 0xfu) << 4 * (i % 8);
    shared[repack_place(tile, 8 * lane + c)] = {code[0], code[1]};
  }
}

// Marlin's word of a lane: rows 2i, 2i + 1 and those 8 further down, i = lane % 4, of a column and of the one 8 to its right.
__device__ inline unsigned marlin_word(uint4 pair, int lane) {
  const int shift = 8 * (lane % 4);
  const unsigned a = pair.x >> shift & 0xffu, b = pair.y >> shift & 0xffu;  // rows 2i and 2i + 1; 8 further down
  const unsigned c = pair.z >> shift & 0xffu, d = pair.w >> shift & 0xffu;
  const unsigned even = (a & 0xfu) | (b & 0xfu) << 4 | (c & 0xfu) << 8 | (d & 0xfu) << 12;
  const unsigned odd = a >> 4 | (b & 0xf0u) | (c & 0xf0u) << 4 | (d & 0xf0u) << 8;
  return even | odd << 16;
}

template <Source S>
__device__ void repack_marlin(const RepackMarlinParams& p) {
  SixteenRows* const shared = reinterpret_cast<SixteenRows*>(ptx::shared_memory());
  const int64 padded_n = (p.n + 63) / 64 * 64;
  const int64 across = (padded_n + repack_columns - 1) / repack_columns, down = blockIdx.x / across;
  const int64 row = down * repack_rows, column = (blockIdx.x - down * across) * repack_columns;
  if constexpr (S == Source::gptq) load_gptq(p, row, column, shared);
  if constexpr (S == Source::gptq_sorted) load_gptq_sorted(p, row, column, shared);
  if constexpr (S == Source::awq) load_awq(p, row, column, shared);
  __syncthreads();

  const int strip = threadIdx.x / 32, lane = threadIdx.x % 32;  // a warp packs 64 columns
  if (column + 64 * strip >= padded_n) return;
#pragma unroll
  for (int tile = 0; tile < repack_tiles; ++tile) {
    unsigned word[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int place = repack_place(tile, 64 * strip + 16 * j + lane / 4);
      word[j] = marlin_word(*reinterpret_cast<const uint4*>(shared + place), lane);
    }
    unsigned* const to = p.weight_q + (row / 16 + tile) * p.weight_q_stride + 2 * (column + 64 * strip) + 4 * lane;
    ptx::store_16(to, uint4{word[0], word[1], word[2], word[3]});
  }
}

}  // namespace qp
