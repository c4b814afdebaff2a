// Kernels that move matrices between shared memory and registers, with steps to leave out; see scenarios.py.
#include <qp/ptx/matrix.cuh>
#include <qp/ptx/mma.cuh>

enum Scenario { load, store, multiply, mistake };
enum Step {
  nothing, load_barrier, reuse_barrier, store_barrier, misaligned_row, global_row, row_beyond, unwritten_row,
  shared_by_two, absent_lane, other_shape, other_transposition, lone_multiplier
};

// Which shape: 1, 2 or 4 matrices, each plain or transposed.
template <int count, bool transposed>
__device__ void load_one(unsigned (&fragment)[count], const void* row) {
  if constexpr (count == 1 && !transposed) ldmatrix_x1(fragment, row);
  if constexpr (count == 1 && transposed) ldmatrix_x1_trans(fragment, row);
  if constexpr (count == 2 && !transposed) ldmatrix_x2(fragment, row);
  if constexpr (count == 2 && transposed) ldmatrix_x2_trans(fragment, row);
  if constexpr (count == 4 && !transposed) ldmatrix_x4(fragment, row);  // @loads
  if constexpr (count == 4 && transposed) ldmatrix_x4_trans(fragment, row);
}
template <int count, bool transposed>
__device__ void store_one(void* row, const unsigned (&fragment)[count]) {
  if constexpr (count == 1 && !transposed) stmatrix_x1(row, fragment);
  if constexpr (count == 1 && transposed) stmatrix_x1_trans(row, fragment);
  if constexpr (count == 2 && !transposed) stmatrix_x2(row, fragment);
  if constexpr (count == 2 && transposed) stmatrix_x2_trans(row, fragment);
  if constexpr (count == 4 && !transposed) stmatrix_x4(row, fragment);  // @stores
  if constexpr (count == 4 && transposed) stmatrix_x4_trans(row, fragment);
}

// Rows lie scattered, 37 slots being prime to 5; lanes that give no address give a wrong one.
__device__ uint4* scattered(unsigned lane, int count) { return lane < 8 * count ? &slots()[lane * 5 % 37] : nullptr; }

// Each shape in turn leaves its fragments in 32 * 4 words of the output.
template <int count, bool transposed>
__device__ void load_shape(const P& p, int number) {
  unsigned fragment[count];
  load_one<count, transposed>(fragment, scattered(threadIdx.x, count));
  for (int i = 0; i < count; ++i)
    reinterpret_cast<unsigned*>(p.out)[(number * 32 + threadIdx.x) * 4 + i] = fragment[i];
}
__device__ void run_load(const P& p) {
  for (unsigned i = threadIdx.x; i < 37; i += 32) slots()[i] = input(p)[i];
  UNLESS(load_barrier) __syncwarp();
  load_shape<4, false>(p, 0);
  load_shape<4, true>(p, 1);
  load_shape<2, false>(p, 2);
  load_shape<2, true>(p, 3);
  load_shape<1, false>(p, 4);
  load_shape<1, true>(p, 5);
  UNLESS(reuse_barrier) __syncwarp();
  *scattered((threadIdx.x + 1) % 32, 4) = uint4{0, 0, 0, 0};  // @reuses
}

// Each shape in turn leaves its 37 slots in the output; those that it did not write hold zeros.
template <int count, bool transposed>
__device__ void store_shape(const P& p, int number) {
  unsigned fragment[count];
  for (int i = 0; i < count; ++i) fragment[i] = reinterpret_cast<const unsigned*>(p.in)[threadIdx.x * 4 + i];
  for (unsigned i = threadIdx.x; i < 37; i += 32) slots()[i] = uint4{0, 0, 0, 0};
  __syncwarp();
  store_one<count, transposed>(scattered(threadIdx.x, count), fragment);
  UNLESS(store_barrier) __syncwarp();
  for (unsigned i = threadIdx.x; i < 37; i += 32) output(p)[number * 37 + i] = slots()[i];  // @reads_stored
  __syncwarp();
}
__device__ void run_store(const P& p) {
  store_shape<4, false>(p, 0);
  store_shape<4, true>(p, 1);
  store_shape<2, false>(p, 2);
  store_shape<2, true>(p, 3);
  store_shape<1, false>(p, 4);
  store_shape<1, true>(p, 5);
}

// A is 16 rows of 32 bytes in slots 0 to 31, the columns of B are 8 rows of 32 bytes in slots 32 to 47.
__device__ void run_multiply(const P& p) {
  const unsigned lane = threadIdx.x;
  for (unsigned i = lane; i < 48; i += 32) slots()[i] = input(p)[i];
  __syncwarp();
  unsigned a[4], b[2];
  ldmatrix_x4(a, &slots()[lane % 16 * 2 + lane / 16]);
  ldmatrix_x2(b, &slots()[32 + lane % 8 * 2 + lane / 8 % 2]);
  int sums[4] = {};
  mma_m16n8k32_s8_s8(sums, a, b);
  for (int r = 0; r < 4; ++r)
    reinterpret_cast<int*>(p.out)[(lane / 4 + r / 2 * 8) * 8 + lane % 4 * 2 + r % 2] = sums[r];
}

__device__ void run_mistake(const P& p) {
  const unsigned lane = threadIdx.x;
  unsigned four[4] = {}, two[2] = {};
  int sums[4] = {};
  if (p.without != unwritten_row) slots()[lane] = input(p)[lane];
  __syncwarp();
  unsigned char* row = reinterpret_cast<unsigned char*>(&slots()[lane]);
  switch (p.without) {
    case misaligned_row: ldmatrix_x4(four, row + (lane == 9 ? 8 : 0)); break;  // @misaligned_row
    case global_row: ldmatrix_x4(four, lane == 9 ? p.in : row); break;  // @global_row
    case row_beyond: ldmatrix_x4(four, lane == 9 ? shared_memory() + 1024 : row); break;  // @row_beyond
    case unwritten_row: ldmatrix_x2(two, row); break;  // @unwritten_row
    case shared_by_two: stmatrix_x2(lane == 9 ? row - 16 : row, two); break;  // @shared_by_two
    case absent_lane: if (lane != 9) ldmatrix_x2(two, row); break;  // @absent_lane
    case other_shape:
      if (lane < 16) ldmatrix_x4(four, row);  // @other_shape
      else ldmatrix_x2(two, row);
      break;
    case other_transposition:
      if (lane < 16) ldmatrix_x2(two, row);  // @other_transposition
      else ldmatrix_x2_trans(two, row);
      break;
    case lone_multiplier: if (lane == 9) mma_m16n8k32_s8_s8(sums, four, two); break;  // @lone_multiplier
  }
}

__device__ void body(const P& p) {
  switch (p.scenario) {
    case load: return run_load(p);
    case store: return run_store(p);
    case multiply: return run_multiply(p);
    case mistake: return run_mistake(p);
  }
}
