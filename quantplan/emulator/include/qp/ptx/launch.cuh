// Emulation of kernels_cu/include/qp/ptx/launch.cuh.
#pragma once

namespace qp::ptx {

EMULATED_INSTRUCTION unsigned char* shared_memory() { return static_cast<unsigned char*>(emulated::shared_memory()); }

}  // namespace qp::ptx

namespace qp {

template <class Params> constexpr int least_blocks = 0;
template <class Params> constexpr int least_threads = 0;

}  // namespace qp

// A function of a pointer to the parameters, and beside it how many threads, and blocks of a cluster, it was built for.
#define QP_CLUSTER_KERNEL(name, cluster, threads, Params, ...)                              \
  extern "C" {                                                                              \
  __attribute__((visibility("default"))) extern const unsigned name##_threads;              \
  const unsigned name##_threads = threads;                                                  \
  __attribute__((visibility("default"))) extern const unsigned name##_cluster;              \
  const unsigned name##_cluster = cluster;                                                  \
  __attribute__((visibility("default"))) EMULATED_UNCHECKED void name(const void* params) { \
    __VA_ARGS__(*static_cast<const Params*>(params));                                       \
  }                                                                                         \
  }
#define QP_KERNEL(name, threads, Params, ...) QP_CLUSTER_KERNEL(name, 1, threads, Params, __VA_ARGS__)
