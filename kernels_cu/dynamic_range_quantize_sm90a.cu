// DynamicRangeQuantize of a small tensor in one launch, which reads it once: by one cluster, whose blocks keep it in
// registers while they tell each other its range.
//
//   x  │ block 0 │ block 1 │ … │ block 7 │ block 0 │ …     chunks of V elements, one a thread, in turns; Keep of them
//          │  ▲                    │  ▲
//          ▼  │                    ▼  │                    each block puts its range into every block's shared memory,
//        8 ranges        …       8 ranges                  and joins the eight that it then has
#pragma once

#include <dynamic_range_quantize.cu>
#include <qp/ptx/cluster.cuh>
#include <qp/ptx/mbarrier.cuh>

namespace qp {

struct ClusterParams {
  const void* x;
  void* q;
  void* scale;
  int* zero_point;
  int64 x_stride, q_stride;
  int chunks, per_row;  // of the tensor, and of a row
  int q_min, q_max;
};

template <> constexpr int least_blocks<ClusterParams> = 1;

constexpr int cluster_blocks = 8;
constexpr int cluster_threads = 512;

// What a block keeps in shared memory. The others' ranges arrive by st.async: at a barrier of the cluster, each thread
// would wait for its stores first.
template <class Range>
struct ClusterShared {
  unsigned long long arrived;
  alignas(16) Range ranges[cluster_blocks];
  Range warps[cluster_threads / 32];

  // By all threads, which do something else before they go on: the other blocks may not have begun.
  __device__ void begin() {
    if (threadIdx.x == 0) {
      ptx::mbarrier_init(&arrived, 1);
      ptx::fence_mbarrier_init();
    }
    __syncwarp();
    ptx::cluster_arrive_relaxed();
  }

  // Reduces a state of each thread over the cluster.
  __device__ Range reduce_all(Range state) {
    struct Parts { unsigned word[sizeof(Range) / 4]; };
    const Parts parts = reinterpret<Parts>(reduce<cluster_threads>(state, warps));
    ptx::cluster_wait();
    if (threadIdx.x == 0) ptx::mbarrier_arrive_expect_tx(&arrived, sizeof(ranges));
    if (threadIdx.x < cluster_blocks) {
      const unsigned to = ptx::mapa(ranges + blockIdx.x, threadIdx.x), mbarrier = ptx::mapa(&arrived, threadIdx.x);
#pragma unroll
      for (unsigned i = 0; i < sizeof(parts) / 4; ++i) ptx::store_async_4(to + 4 * i, parts.word[i], mbarrier);
    }
    while (!ptx::mbarrier_try_wait_parity_cluster(&arrived, 0)) {}
    Range range = ranges[0];
#pragma unroll
    for (int block = 1; block < cluster_blocks; ++block) range.merge(ranges[block]);
    return range;
  }
};

// Rows end with a chunk. Single elements (V = 1) may be more than what is kept: these are read a second time.
template <class In, class Out, class Scale, bool Asymmetric, bool Saturate, int V, int Keep>
__device__ void quantize_in_cluster(const ClusterParams& p) {
  using W = wide<In>;
  using Range = State<Asymmetric, W>;
  constexpr unsigned lanes = cluster_blocks * cluster_threads;
  const unsigned first = blockIdx.x * cluster_threads + threadIdx.x;
  const unsigned chunks = static_cast<unsigned>(p.chunks), per_row = static_cast<unsigned>(p.per_row);
  auto* const shared = reinterpret_cast<ClusterShared<Range>*>(ptx::shared_memory());
  shared->begin();

  const auto at = [&](auto* matrix, int64 stride, unsigned chunk) {
    const unsigned row = chunk < per_row ? 0 : chunk / per_row;  // dense rows count as one
    return matrix + (row * stride + static_cast<int64>(chunk - row * per_row) * V);
  };
  const auto load = [&](unsigned chunk) {
    return load_whole<In, V>(at(static_cast<const In*>(p.x), p.x_stride, chunk), chunk < chunks);
  };
  Chunk<In, V> kept[Keep];
#pragma unroll
  for (int i = 0; i < Keep; ++i) kept[i] = load(first + i * lanes);
  Gather<In, Range> gather;
#pragma unroll
  for (int i = 0; i < Keep; ++i) gather.add(unpack<In, V>(kept[i]));
  const auto rest = [&](auto use) {
    if constexpr (V == 1)
      for (unsigned chunk = first + Keep * lanes; chunk < chunks; chunk += lanes) use(chunk, load(chunk));
  };
  rest([&](unsigned, Chunk<In, V> chunk) { gather.add(unpack<In, V>(chunk)); });

  const Range range = shared->reduce_all(gather.state());
  const auto chosen = Choose<Scale, W>::from(range, symmetric_limit<Out, W>(p.q_max), p.q_min, p.q_max);
  if (first == 0) {
    *static_cast<Scale*>(p.scale) = chosen.stored;
    if constexpr (Asymmetric) *p.zero_point = chosen.zero_point;
  }
  round_each<In, Out, Saturate, Asymmetric, V>(chosen, p.q_min, p.q_max, [&](auto round) {
    const auto put = [&](unsigned chunk, const Chunk<In, V>& values) {
      store<Out, V>(at(static_cast<Out*>(p.q), p.q_stride, chunk), round(values), V);
    };
#pragma unroll
    for (int i = 0; i < Keep; ++i)
      if (first + i * lanes < chunks) put(first + i * lanes, kept[i]);
    rest(put);
  });
}

}  // namespace qp
