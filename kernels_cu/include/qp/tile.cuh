// Tiles: blocks of two row-major matrices on their way through shared memory to the tensor cores.
//
// A tile has Rows rows of Bytes bytes, in chunks of 16. ldmatrix reads the same chunk of 8 rows at once, so those must lie
// in different banks: within a row, chunks are permuted by an XOR with the row. Of rows of 8 chunks or more, 128 bytes
// apart in the banks, all 8 have another key; shorter rows share a line of 128 bytes, and its rows share a key:
//
//      8 chunks a row                                   4 chunks a row: two rows a line
//   row 0   0 1 2 3 4 5 6 7                            row 0, 1   0 1 2 3 │ 0 1 2 3
//   row 1   1 0 3 2 5 4 7 6                            row 2, 3   1 0 3 2 │ 1 0 3 2
//   row 2   2 3 0 1 6 7 4 5                            row 4, 5   2 3 0 1 │ 2 3 0 1
//   …                                                  row 6, 7   3 2 1 0 │ 3 2 1 0
#pragma once

#include <qp/ptx/copy_async.cuh>
#include <qp/vec.cuh>

namespace qp {

template <int Rows, int Bytes>
struct TileLayout {
  static_assert(Bytes == 64 || Bytes % 128 == 0, "rows of 4 chunks, or whole lines");
  static constexpr int rows = Rows, chunks = Bytes / 16, size = Rows * Bytes;
  static constexpr int rows_per_key = chunks < 8 ? 8 / chunks : 1, keys = chunks < 8 ? chunks : 8;

  // Where a chunk of a row begins.
  __device__ static int offset(int row, int chunk) {
    return row * Bytes + ((chunk ^ (row / rows_per_key % keys)) << 4);
  }
};

// Copies tiles of a matrix of bytes, from one place in its rows after the other. What lies outside of it becomes zero.
// The threads of a block lie over a tile as follows, and `step` rows further down again:
//
//      chunk 0    chunk 1   …
//   row 0   t 0        t 1                              a thread's chunks are all in one column, and their rows have
//   row 1   t chunks   …                                one key, for `step` is a multiple of 8
template <class Layout, int Threads>
struct TileLoader {
  static constexpr int step = Threads / Layout::chunks, count = Layout::rows / step;
  static_assert(step % 8 == 0 && Layout::rows % step == 0, "a thread's rows have one key, and all threads as many rows");

  const unsigned char *matrix, *from;  // and the thread's chunk in its first row of the tile
  int64 stride;
  int column, rows, to;
  bool wide;

  // The tile begins at `row`; the matrix has `all_rows` of them, of which the last may be within the tile. `wide`: every
  // row is aligned to 16 bytes.
  __device__ TileLoader(const void* matrix, int64 stride, int64 row, int64 all_rows, bool wide)
      : matrix(static_cast<const unsigned char*>(matrix)),
        stride(stride),
        column(threadIdx.x % Layout::chunks * 16),
        wide(wide) {
    const int first = threadIdx.x / Layout::chunks;
    from = this->matrix + (row + first) * stride + column;
    rows = static_cast<int>(min(all_rows - row, int64(Layout::rows))) - first;
    to = Layout::offset(first, threadIdx.x % Layout::chunks);
  }

  // Starts to copy what begins at byte k of the rows, which have `length` bytes.
  __device__ void load(unsigned char* tile, int k, int length) const {
    const int bytes = left(length - k - column, 16);
    if (wide) {
#pragma unroll
      for (int i = 0; i < count; ++i) {  // even what is not read must have an aligned address
        const bool inside = i * step < rows;
        ptx::cp_async_zero_fill<16>(target(tile, i), inside ? source(i, k) : matrix, inside ? bytes : 0);
      }
    } else {
#pragma unroll 1
      for (int i = 0; i < count; ++i) {
        Vec<u8, 16> piece = {};
#pragma unroll
        for (int j = 0; j < 16; ++j)
          if (i * step < rows && j < bytes) piece.item[j] = source(i, k)[j];
        *reinterpret_cast<Vec<u8, 16>*>(target(tile, i)) = piece;
      }
    }
  }

 private:
  __device__ const unsigned char* source(int i, int k) const { return from + i * step * stride + k; }
  __device__ unsigned char* target(unsigned char* tile, int i) const {
    return tile + to + i * (step * Layout::chunks * 16);
  }
};

// Which tile of the output a block works on. Blocks that run at the same time share rows and columns of the operands:
// they go down a strip of 8 tiles before they go right.
struct Place2d {
  unsigned m, n;
};

__device__ inline Place2d raster(unsigned block, unsigned tiles_m, unsigned tiles_n) {
  constexpr unsigned strip = 8;
  const unsigned per_strip = strip * tiles_n, first = block / per_strip * strip;
  const unsigned high = min(tiles_m - first, strip), within = block % per_strip;
  return {first + within % high, within / high};
}

}  // namespace qp
