// What makes a function a kernel, and the shared memory of its block.
#pragma once

namespace qp::ptx {

// The block's shared memory, as large as the launch asks for. It is aligned for every copy that has an alignment.
__device__ inline unsigned char* shared_memory() {
  extern __shared__ __align__(1024) unsigned char qp_shared_memory[];
  return qp_shared_memory;
}

}  // namespace qp::ptx

namespace qp {

// How many blocks of the kernels with such a parameter an SM must hold at least. Where it is 1, a thread has the registers
// that it asks for; where it is 0, the compiler puts off loads, or spills, so that more blocks fit.
template <class Params> constexpr int least_blocks = 0;
// How many threads, where what counts is that each has few registers: 0 leaves it to the blocks.
template <class Params> constexpr int least_threads = 0;

// What a kernel asks for. A large block may be alone on its SM: otherwise the compiler would rather spill registers than
// let two of them not fit.
template <class Params>
constexpr int blocks_of(int threads) {
  return threads > 512 ? 1 : least_threads<Params> ? least_threads<Params> / threads : least_blocks<Params>;
}

}  // namespace qp

// An entry point of at most `threads` threads, whose only parameter is a struct, that calls one templated body:
//   QP_KERNEL(qp_quantize_f32_s8, 256, QuantizeParams, quantize_rows<f32, s8, 4>)
// The host appends one such line to a family's source for each kernel that it wants.
#define QP_KERNEL(name, threads, Params, ...)                                               \
  extern "C" __global__ void __launch_bounds__(threads, qp::blocks_of<Params>(threads))     \
      name(const __grid_constant__ Params params) {                                         \
    __VA_ARGS__(params);                                                                    \
  }

// The same for blocks that run in clusters of so many neighbours along the grid's x, whose extent is a multiple of it.
#define QP_CLUSTER_KERNEL(name, cluster, threads, Params, ...)                                           \
  extern "C" __global__ void __cluster_dims__(cluster)                                                   \
      __launch_bounds__(threads, qp::blocks_of<Params>(threads))                                         \
          name(const __grid_constant__ Params params) {                                                  \
    __VA_ARGS__(params);                                                                                 \
  }
