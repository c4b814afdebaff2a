// Vectors: a few neighbouring elements of a row, moved as wide as their alignment allows.
//
// A row of k elements is cut into chunks of V. The host picks V so that every chunk is aligned to its own size, or V = 1.
// The last chunk of a row may be short: it is moved element by element, and nothing outside of the row is touched.
#pragma once

#include <qp/element.cuh>
#include <qp/ptx/memory.cuh>

namespace qp {

template <class T, int V>
struct alignas(sizeof(T) * V) Vec {
  T item[V];
};

template <int Bytes> struct Words;  // how many bytes travel
template <> struct Words<16> {
  uint4 v;
  __device__ static Words load(const void* p) { return {ptx::load_16(p)}; }
  __device__ void store(void* p) const { ptx::store_16(p, v); }
};
template <> struct Words<8> {
  uint2 v;
  __device__ static Words load(const void* p) { return {ptx::load_8(p)}; }
  __device__ void store(void* p) const { ptx::store_8(p, v); }
};
template <> struct Words<4> {
  unsigned v;
  __device__ static Words load(const void* p) { return {ptx::load_4(p)}; }
  __device__ void store(void* p) const { ptx::store_4(p, v); }
};
template <> struct Words<2> {
  unsigned short v;
  __device__ static Words load(const void* p) { return {ptx::load_2(p)}; }
  __device__ void store(void* p) const { ptx::store_2(p, v); }
};

// The same bytes under another type.
template <class To, class From>
__device__ inline To reinterpret(const From& from) {
  static_assert(sizeof(To) == sizeof(From), "the bytes stay the same");
  union { From from; To to; } both = {from};
  return both.to;
}

// Loads `count` ≤ V elements; the others are zero.
template <class T, int V>
__device__ inline Vec<T, V> load(const T* p, int count) {
  if constexpr (V == 1) {
    return count > 0 ? Vec<T, V>{*p} : Vec<T, V>{};
  } else {
    if (count >= V) return reinterpret<Vec<T, V>>(Words<sizeof(T) * V>::load(p));
    Vec<T, V> v = {};
#pragma unroll
    for (int i = 0; i < V; ++i)
      if (i < count) v.item[i] = p[i];
    return v;
  }
}

// Stores the first `count` ≤ V elements.
template <class T, int V>
__device__ inline void store(T* p, const Vec<T, V>& v, int count) {
  if constexpr (V == 1) {
    if (count > 0) *p = v.item[0];
  } else if (count >= V) {
    reinterpret<Words<sizeof(T) * V>>(v).store(p);
  } else {
#pragma unroll
    for (int i = 0; i < V; ++i)
      if (i < count) p[i] = v.item[i];
  }
}

// How many of the V elements from `column` on lie below `end`.
__device__ inline int left(int64 column, int64 end, int v) {
  const int64 rest = end - column;
  return rest >= v ? v : rest > 0 ? static_cast<int>(rest) : 0;
}

}  // namespace qp
