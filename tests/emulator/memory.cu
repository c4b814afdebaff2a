// Kernels that touch memory in an order that barriers enforce, or, with a flaw, do not; see units.py.
#include <qp/ptx/memory.cuh>

// ---- races

__device__ void write_write(const P& p) {
  shared()[p.flaw ? 0 : threadIdx.x] = int(threadIdx.x);  // @write_write
}

// The sum of 64 numbers, halved in steps.
__device__ void tree(const P& p) {
  const unsigned t = threadIdx.x;
  shared()[t] = p.in[t];
  __syncthreads();
  for (unsigned step = blockDim.x / 2; step; step /= 2) {
    if (t < step) shared()[t] += shared()[t + step];  // @tree
    if (!p.flaw) __syncthreads();
  }
  if (t == 0) p.out[blockIdx.x] = shared()[0];
}

// An 8 × 8 matrix, transposed through rows of 9.
__device__ void transpose(const P& p) {
  const unsigned row = threadIdx.x / 8, column = threadIdx.x % 8;
  shared()[row * 9 + column] = p.in[threadIdx.x];
  if (!p.flaw) __syncthreads();
  p.out[threadIdx.x] = shared()[column * 9 + row];  // @transpose
}

// One thread writes what all then read, again and again.
__device__ void produce_consume(const P& p) {
  int sum = 0;
  for (int i = 0; i < 4; ++i) {
    if (threadIdx.x == 0) shared()[0] = p.in[i];  // @produces
    __syncthreads();
    sum += shared()[0];  // @consumes
    if (!p.flaw) __syncthreads();
  }
  p.out[threadIdx.x] = sum;
}

// A warp's lanes read what their neighbours wrote: shuffles and votes do not order that.
__device__ void neighbours(const P& p) {
  shared()[threadIdx.x] = p.in[threadIdx.x];
  switch (p.flaw) {
    case 0: __syncwarp(); break;
    case 1: __shfl_sync(~0u, 0, 0); break;
    case 2: __ballot_sync(~0u, 1); break;
    case 3: __match_any_sync(~0u, 0); break;
  }
  p.out[threadIdx.x] = shared()[threadIdx.x ^ 1];  // @neighbours
}

// A warp's barrier does not order other warps.
__device__ void across_warps(const P& p) {
  shared()[threadIdx.x] = p.in[threadIdx.x];
  if (p.flaw) __syncwarp();
  else __syncthreads();
  p.out[threadIdx.x] = shared()[threadIdx.x ^ 32];  // @across_warps
}

__device__ void blocks_write(const P& p) {
  if (threadIdx.x == 0) p.out[p.flaw ? 0 : blockIdx.x] = int(blockIdx.x);  // @blocks_write
}

__device__ void blocks_read(const P& p) {
  const unsigned mine = blockIdx.x, other = blockIdx.x ^ 1;
  if (threadIdx.x == 0) p.out[mine] = 1;  // @block_writes
  __syncthreads();
  if (threadIdx.x == 1) p.out[gridDim.x + mine] = p.out[p.flaw ? other : mine];  // @block_reads
}

__device__ void count(const P& p) {
  if (p.flaw && threadIdx.x == 3) p.out[0] += 1;  // @plain
  else atomicAdd(&p.out[0], 1);  // @atomic
}

__device__ void count_and_read(const P& p) {
  if (threadIdx.x == 0) shared()[0] = 0;
  __syncthreads();
  atomicAdd(shared(), 1);  // @counts
  if (!p.flaw) __syncthreads();
  p.out[threadIdx.x] = shared()[0];  // @reads_count
}

// Many readers, over many barriers, before somebody writes.
__device__ void broadcast(const P& p) {
  if (threadIdx.x == 0) shared()[0] = p.in[5];
  __syncthreads();
  int sum = 0;
  for (int i = 0; i < 20; ++i) {
    sum += shared()[0];  // @reads_broadcast
    if (i % 7 == 0) __syncthreads();
  }
  if (!p.flaw) __syncthreads();
  if (threadIdx.x == 1) shared()[0] = 0;  // @overwrites
  p.out[threadIdx.x] = sum;
}

// Bytes of one word have histories of their own.
__device__ void bytes(const P& p) {
  auto* b = reinterpret_cast<unsigned char*>(shared());
  b[p.flaw ? threadIdx.x / 2 : threadIdx.x] = static_cast<unsigned char>(p.in[threadIdx.x]);  // @bytes
  __syncthreads();
  p.out[threadIdx.x] = b[threadIdx.x];
}

// ---- reads of what nothing has written

__device__ void half_written(const P& p) {
  if (!p.flaw || threadIdx.x < 32) shared()[threadIdx.x] = 1;
  __syncthreads();
  p.out[threadIdx.x] = shared()[threadIdx.x];  // @half_written
}

// Shared memory does not outlive a block.
__device__ void left_over(const P& p) {
  if (!p.flaw || blockIdx.x == 0) shared()[threadIdx.x] = 1;
  __syncthreads();
  p.out[64 * blockIdx.x + threadIdx.x] = shared()[threadIdx.x];  // @left_over
}

__device__ void uncleared_counter(const P& p) {
  if (!p.flaw && threadIdx.x == 0) shared()[0] = 0;
  __syncthreads();
  atomicAdd(shared(), 1);  // @uncleared
  __syncthreads();
  p.out[threadIdx.x] = shared()[0];
}

__device__ void accumulate(const P& p) {
  if (!p.flaw) p.out[threadIdx.x] = 0;
  p.out[threadIdx.x] += 1;  // @accumulate
}

// ---- bounds

__device__ void shared_end(const P& p) {
  shared()[threadIdx.x + p.flaw] = 1;  // @shared_end
}

__device__ void operand_end(const P& p) {
  p.out[threadIdx.x] = p.in[threadIdx.x + p.flaw];  // @operand_end
}

// A struct of a byte, which is loaded where it is passed by value.
struct Code { unsigned char bits; };
__device__ inline int value_of(Code code) { return code.bits == 0xff ? -1 : code.bits; }
__device__ void code_end(const P& p) {
  p.out[threadIdx.x] = value_of(reinterpret_cast<const Code*>(p.in)[threadIdx.x + (p.flaw ? 200 : 0)]);  // @code_end
}

__device__ void operand_start(const P& p) {
  p.out[threadIdx.x] = (p.in - p.flaw)[threadIdx.x];  // @operand_start
}

// Four rows of eight numbers, twelve apart.
__device__ void row_gap(const P& p) {
  const unsigned row = threadIdx.x / 8;
  p.out[threadIdx.x] = p.in[12 * row + threadIdx.x % 8 + p.flaw];  // @row_gap
}

__device__ void stray(const P& p) {
  const int* where = p.flaw == 1 ? reinterpret_cast<const int*>(64) : p.flaw ? nullptr : p.in;
  p.out[threadIdx.x] = where[0];  // @stray
}

// Local memory is a thread's own, though a host's pointers reach it.
__device__ void local(const P& p) {
  volatile int mine = int(threadIdx.x);
  auto* pointers = reinterpret_cast<volatile int* volatile*>(shared());
  pointers[threadIdx.x] = &mine;
  __syncthreads();
  p.out[threadIdx.x] = *pointers[threadIdx.x ^ p.flaw];  // @local
  __syncthreads();
}

__device__ void local_array(const P& p) {
  int values[4] = {1, 2, 3, 4};
  p.out[threadIdx.x] = values[threadIdx.x % 4 + p.flaw];  // @local_array
}

struct Eight { int v[8]; };
__device__ void local_member(const P& p) {
  const Eight values{{1, 2, 3, 4, 5, 6, 7, 8}};
  p.out[threadIdx.x] = values.v[threadIdx.x % 8 + p.flaw];  // @local_member
}
__device__ void local_structs(const P& p) {
  Eight values[4] = {};
  values[threadIdx.x % 4 + p.flaw] = Eight{{int(threadIdx.x)}};  // @local_structs
  p.out[threadIdx.x] = values[threadIdx.x % 4].v[0];
}

__device__ void range_end(const P& p) {
  if (threadIdx.x) return;
  reinterpret_cast<Eight*>(p.out)[7] = reinterpret_cast<const Eight*>(p.in + 4 * p.flaw)[7];  // @range_end
}

static const int table[4] = {10, 11, 12, 13};
__device__ void constants(const P& p) {
  if (p.flaw) const_cast<volatile int*>(table)[threadIdx.x % 4] = 0;  // @constants
  p.out[threadIdx.x] = table[threadIdx.x % 4];
}

__device__ void parameters(const P& p) {
  if (p.flaw) const_cast<P&>(p).out = nullptr;  // @parameters
  p.out[threadIdx.x] = int(p.flaw);
}

__device__ void input_written(const P& p) {
  (p.flaw ? const_cast<int*>(p.in) : p.out)[threadIdx.x] = int(threadIdx.x);  // @input_written
}

// ---- alignment

__device__ void misaligned(const P& p) {
  *reinterpret_cast<long long*>(shared() + 2 * threadIdx.x + p.flaw) = 1;  // @misaligned
}

__device__ void misaligned_struct(const P& p) {
  auto* wide = reinterpret_cast<uint4*>(shared() + 4 * threadIdx.x + p.flaw);
  *wide = uint4{1, 2, 3, 4};  // @misaligned_struct
}

__device__ void misaligned_instruction(const P& p) {
  const uint4 v = qp::ptx::load_16(p.in + (threadIdx.x ? 0 : p.flaw));  // @instruction
  p.out[threadIdx.x] = int(v.x);
}

// The launch may write all of out, whether it does or not.
__device__ void constant(const P& p) {
  const int* const from = p.flaw ? p.out : p.in;
  const unsigned v = qp::ptx::load_4(from + threadIdx.x);  // @constant
  if (!p.flaw) p.out[threadIdx.x] = int(v);
}

// What promises no alignment may be anywhere: bytes, packed structs, structs of smaller members.
struct __attribute__((packed)) Packed { char c; long long n; };
struct Pair { long long a, b; };
__device__ void unaligned(const P& p) {
  auto* b = reinterpret_cast<unsigned char*>(shared() + 8 * threadIdx.x);
  const long long n = p.in[threadIdx.x];
  memcpy(b + 1, &n, sizeof n);
  reinterpret_cast<Packed*>(b + 12)->n = n;
  long long back;
  memcpy(&back, b + 1, sizeof back);
  p.out[threadIdx.x] = int(back + reinterpret_cast<Packed*>(b + 12)->n);
}
__device__ void pairs(const P& p) {
  auto* pairs = reinterpret_cast<Pair*>(reinterpret_cast<long long*>(shared()) + 1);
  pairs[threadIdx.x] = Pair{p.in[threadIdx.x], 1};
  const Pair back = pairs[threadIdx.x];
  p.out[threadIdx.x] = int(back.a + back.b);
}

// ---- what each thread does is written in `in`: steps of two accesses and a barrier

struct Step { int access[2], barrier; };
__device__ void script(const P& p) {
  constexpr int steps = 4;
  const Step* mine = reinterpret_cast<const Step*>(p.in) + steps * threadIdx.x;
  if (threadIdx.x < 4) shared()[threadIdx.x] = 0;
  __syncthreads();
  int sum = 0;
  for (int i = 0; i < steps; ++i) {
    for (const int access : mine[i].access) {
      if (access > 0) shared()[access - 1] = i;
      if (access < 0) sum += shared()[-access - 1];
    }
    if (mine[i].barrier == 1) __syncthreads();
    if (mine[i].barrier == 2) __syncwarp(threadIdx.x < 32 ? ~0u : 0xffu);
  }
  p.out[threadIdx.x] = sum;
}
