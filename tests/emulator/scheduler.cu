// Kernels about who runs, when, and who waits for whom; see units.py.

__device__ inline unsigned volume(::emulated::Index d) { return d.x * d.y * d.z; }
__device__ inline unsigned place(::emulated::Index i, ::emulated::Index d) { return (i.z * d.y + i.y) * d.x + i.x; }

// Who each thread is: twelve numbers.
__device__ void indices(const P& p) {
  const unsigned block = place(blockIdx, gridDim), thread = place(threadIdx, blockDim);
  int* out = p.out + 12 * (block * volume(blockDim) + thread);
  const ::emulated::Index four[] = {threadIdx, blockIdx, blockDim, gridDim};
  for (const auto i : four) {
    *out++ = int(i.x);
    *out++ = int(i.y);
    *out++ = int(i.z);
  }
}

// In which order the threads of a block come by, before a barrier and after it.
__device__ void tickets(const P& p) {
  if (threadIdx.x == 0) shared()[0] = 0;
  __syncthreads();
  p.out[threadIdx.x] = atomicAdd(shared(), 1);
  __syncthreads();
  p.out[blockDim.x + threadIdx.x] = atomicAdd(shared(), 1);
}

// In which order the blocks come by; the counter is behind the tickets.
__device__ void block_tickets(const P& p) {
  const unsigned blocks = volume(gridDim);
  if (threadIdx.x == 0) p.out[place(blockIdx, gridDim)] = atomicAdd(&p.out[blocks], 1);
}

// ---- barriers

__device__ void counting_barriers(const P& p) {
  int* out = p.out + 6 * threadIdx.x;
  const int few = threadIdx.x % 3 == 0;
  *out++ = __syncthreads_count(few);
  *out++ = __syncthreads_and(few);
  *out++ = __syncthreads_or(few);
  *out++ = __syncthreads_and(7);
  *out++ = __syncthreads_or(0);
  *out++ = __syncthreads_count(-1);
}

__device__ void early_exit(const P& p) {
  if (p.flaw && threadIdx.x == 5) return;
  __syncthreads();  // @early_exit
  p.out[threadIdx.x] = 1;
}

__device__ void one_branch(const P& p) {
  if (!p.flaw || threadIdx.x < 32) __syncthreads();  // @one_branch
  p.out[threadIdx.x] = 1;
}

// Lanes of a warp at two instructions.
__device__ void both_branches(const P& p) {
  if (p.flaw && threadIdx.x % 2)
    __syncthreads();  // @odd
  else
    __syncthreads();  // @even
  p.out[threadIdx.x] = 1;
}

// Warps may part, if each of them stays whole.
__device__ void warps_part(const P& p) {
  if (threadIdx.x < 32)
    __syncthreads();
  else
    __syncthreads();
  p.out[threadIdx.x] = 1;
}

__device__ void two_votes(const P& p) {
  if (threadIdx.x < 32)
    __syncthreads_and(1);  // @and
  else if (p.flaw)
    __syncthreads_or(1);  // @or
  else
    __syncthreads_and(1);
  p.out[threadIdx.x] = 1;
}

// One warp waits at a barrier, a lane of the other for its warp.
__device__ void two_waits(const P& p) {
  if (p.flaw && threadIdx.x == 40) __syncwarp();  // @warp
  __syncthreads();  // @block
  p.out[threadIdx.x] = 1;
}

// ---- warps

template <class T>
__device__ inline void shuffle_all(int* out, T value, int width) {
  const unsigned lane = threadIdx.x % 32;
  for (int i = 0; i < 32; ++i) out[i] = int(__shfl_sync(~0u, value, i, width));
  for (int i = 0; i < 32; ++i) out[32 + i] = int(__shfl_up_sync(~0u, value, unsigned(i), width));
  for (int i = 0; i < 32; ++i) out[64 + i] = int(__shfl_down_sync(~0u, value, unsigned(i), width));
  for (int i = 0; i < 32; ++i) out[96 + i] = int(__shfl_xor_sync(~0u, value, i, width));
  out[128] = int(__shfl_sync(~0u, value, int(31 - lane), width));
  out[129] = int(__shfl_sync(~0u, value, -1, width));
}
__device__ void shuffles(const P& p) { shuffle_all(p.out + 130 * threadIdx.x, p.in[threadIdx.x], int(p.flaw)); }
__device__ void float_shuffles(const P& p) {
  shuffle_all(p.out + 130 * threadIdx.x, float(p.in[threadIdx.x]), int(p.flaw));
}
__device__ void long_shuffles(const P& p) {
  shuffle_all(p.out + 130 * threadIdx.x, static_cast<long long>(p.in[threadIdx.x]), int(p.flaw));
}

__device__ void votes(const P& p) {
  const int t = int(threadIdx.x);
  int* out = p.out + 6 * t;
  *out++ = int(__ballot_sync(~0u, t % 3 == 0));
  *out++ = __any_sync(~0u, t == 40);
  *out++ = __all_sync(~0u, t < 32);
  *out++ = int(__match_any_sync(~0u, t % 4));
  *out++ = int(__match_any_sync(~0u, static_cast<long long>(t % 2) << 40));
  if (t % 2) *out = int(__ballot_sync(0xaaaaaaaau, t % 32 > 16));
  else *out = int(__ballot_sync(0x55555555u, 1));
}

// A part of a warp is a mask.
__device__ void part_of_warp(const P& p) {
  if (threadIdx.x < 16) p.out[threadIdx.x] = __shfl_xor_sync(0xffffu, p.in[threadIdx.x], 1);
  else p.out[threadIdx.x] = __shfl_sync(0xffff0000u, p.in[threadIdx.x], p.flaw ? 3 : 20);  // @part_of_warp
}

__device__ void left_out(const P& p) {
  const unsigned mask = p.flaw && threadIdx.x == 7 ? ~(1u << 7) : ~0u;
  p.out[threadIdx.x] = __shfl_sync(mask, 3, 0);  // @left_out
}

// The last warp of 48 threads has sixteen lanes.
__device__ void short_warp(const P& p) {
  const unsigned mask = !p.flaw && threadIdx.x >= 32 ? 0xffffu : ~0u;
  p.out[threadIdx.x] = int(__ballot_sync(mask, 1));  // @short_warp
}

__device__ void lane_returns(const P& p) {
  if (p.flaw && threadIdx.x == 3) return;
  p.out[threadIdx.x] = __shfl_sync(~0u, 1, 0);  // @lane_returns
}

__device__ void lanes_part(const P& p) {
  if (p.flaw && threadIdx.x % 2)
    __syncwarp();  // @odd_lanes
  else
    __shfl_sync(~0u, 1, 0);  // @even_lanes
  p.out[threadIdx.x] = 1;
}

// ---- atomics

__device__ void atomics(const P& p) {
  const int t = int(threadIdx.x);
  atomicAdd(p.out + 0, t);
  atomicMax(p.out + 1, t);
  atomicMin(p.out + 2, -t);
  atomicOr(p.out + 3, 1 << t % 31);
  atomicAnd(p.out + 4, ~(1 << t % 31));
  if (atomicCAS(p.out + 5, 0, 1) == 0) atomicExch(p.out + 6, 9);
  atomicAdd(reinterpret_cast<unsigned long long*>(p.out + 8), 1ull << 33);
  atomicAdd(reinterpret_cast<float*>(p.out + 10), 0.5f);
}

// ---- loops that end only when they are interrupted

__device__ void spins(const P& p) {
  while (atomicAdd(p.out, 0) == 0) {}  // @spins
}
__device__ void meets_forever(const P& p) {
  while (*static_cast<volatile const int*>(p.in) == 0) __syncthreads();  // @meets_forever
}
