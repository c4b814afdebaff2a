// ldmatrix and stmatrix. Each row is accessed by the lane that gives its address; all of them move when the warp has met.
#include <emulated/matrix.h>

#include <cstring>

#include "runtime.h"

namespace emulated {

namespace {

struct Lane {
  unsigned* loaded;
  const unsigned* stored;
  char* row;
};

// The two elements that a lane holds of a matrix; the first is in the low half of its register.
template <bool transposed>
struct Pair {
  uint16_t *low, *high;
  Pair(uint16_t (&matrix)[8][8], int lane) {
    const int outer = lane / 4, inner = lane % 4 * 2;
    low = transposed ? &matrix[inner][outer] : &matrix[outer][inner];
    high = transposed ? &matrix[inner + 1][outer] : &matrix[outer][inner + 1];
  }
};

template <int count, bool transposed>
void load(void* const* lanes, unsigned) {
  for (int i = 0; i < count; ++i) {
    uint16_t matrix[8][8];
    for (int r = 0; r < 8; ++r) memcpy(matrix[r], static_cast<Lane*>(lanes[8 * i + r])->row, 16);
    for (int l = 0; l < 32; ++l) {
      const Pair<transposed> pair(matrix, l);
      static_cast<Lane*>(lanes[l])->loaded[i] = unsigned(*pair.high) << 16 | *pair.low;
    }
  }
}

template <int count, bool transposed>
void store(void* const* lanes, unsigned) {
  for (int i = 0; i < count; ++i) {
    uint16_t matrix[8][8];
    for (int l = 0; l < 32; ++l) {
      const Pair<transposed> pair(matrix, l);
      const unsigned both = static_cast<Lane*>(lanes[l])->stored[i];
      *pair.low = uint16_t(both);
      *pair.high = uint16_t(both >> 16);
    }
    for (int r = 0; r < 8; ++r) memcpy(static_cast<Lane*>(lanes[8 * i + r])->row, matrix[r], 16);
  }
}

// Lanes meet only in the same function, so each shape has its own.
template <bool transposed>
Complete loader(int count) {
  return count == 1 ? load<1, transposed> : count == 2 ? load<2, transposed> : load<4, transposed>;
}
template <bool transposed>
Complete storer(int count) {
  return count == 1 ? store<1, transposed> : count == 2 ? store<2, transposed> : store<4, transposed>;
}

void move(Lane mine, int count, Access kind, Complete complete, Where where) {
  if (int(lane()) < 8 * count) {
    touch(mine.row, 16, kind, 16, where);
    if (!is_shared(mine.row) || !is_shared(mine.row + 15))
      fail(Fault::out_of_bounds, site_of(where), 0, "lane %u gives a matrix row outside shared memory", lane());
  }
  meet(Collective::matrix, ~0u, &mine, complete, where);
}

}  // namespace

void load_matrices(unsigned* fragment, int count, bool transposed, const void* row, Where where) {
  const Lane mine{fragment, nullptr, const_cast<char*>(static_cast<const char*>(row))};
  move(mine, count, Access::read, transposed ? loader<true>(count) : loader<false>(count), where);
}

void store_matrices(void* row, const unsigned* fragment, int count, bool transposed, Where where) {
  const Lane mine{nullptr, fragment, static_cast<char*>(row)};
  move(mine, count, Access::write, transposed ? storer<true>(count) : storer<false>(count), where);
}

}  // namespace emulated
