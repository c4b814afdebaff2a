// The matrices of a wgmma, taken out of shared memory, and their product.
#pragma once
#include <emulated/matrix.h>

namespace emulated {

constexpr int tile_rows = 64, most_columns = 256, row_bytes = 32;

using Row = uint8_t[row_bytes];

// sums[row][column] += a[row] · b[column], where sums are ints or floats.
void multiply_tiles(Element a_element, Element b_element, int columns, const Row* a, const Row* b, uint32_t* sums);

}  // namespace emulated
