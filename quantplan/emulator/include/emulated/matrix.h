// What emulated matrix instructions are made of. They need all 32 lanes of a warp, in the same instruction.
#pragma once
#include <emulated/api.h>

#pragma GCC visibility push(default)

namespace emulated {

// `count` matrices of 8 rows of 16 bytes, from or to shared memory; the layout of fragments is in qp/ptx/matrix.cuh.
void load_matrices(unsigned* fragment, int count, bool transposed, const void* row, Where where);
void store_matrices(void* row, const unsigned* fragment, int count, bool transposed, Where where);

enum class Element : int { f16, bf16, e4m3, e5m2, s8, u8 };

// sums += A·B, 16×8; K is 16 for elements of 16 bits and 32 for those of 8. Layout: qp/ptx/mma.cuh; rounding: mma.cpp.
void multiply(Element a_element, Element b_element, float* sums, const unsigned* a, const unsigned* b, Where where);
void multiply(Element a_element, Element b_element, int* sums, const unsigned* a, const unsigned* b, Where where);

}  // namespace emulated

#pragma GCC visibility pop
