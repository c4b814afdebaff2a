// Vectors: a few neighbouring elements of a row, moved as wide as their alignment allows.
//
// A row of k elements is cut into chunks of V. The host picks V so that every chunk is aligned to its own size, or V = 1.
// The last chunk of a row may be short: it is moved element by element, and nothing outside of the row is touched.
//
// A load gives words, and elements are taken out of them by `unpack` where they are used: a load that ended in elements
// would wait for its data before the next one is issued.
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
template <> struct Words<1> { unsigned char v; };

template <class T, int V> using Chunk = Words<sizeof(T) * V>;  // V elements, packed

// The same bytes under another type.
template <class To, class From>
__device__ inline To reinterpret(const From& from) {
  static_assert(sizeof(To) == sizeof(From), "the bytes stay the same");
  union { From from; To to; } both = {from};
  return both.to;
}

template <class T, int V>
__device__ inline Vec<T, V> unpack(const Chunk<T, V>& words) { return reinterpret<Vec<T, V>>(words); }

// The elements of a chunk, in the arithmetic that they are worked with in.
template <class W, class T, int V>
__device__ inline Vec<W, V> widen_all(const Chunk<T, V>& words) {
  Vec<W, V> wide;
  if constexpr (same<T, bf16> && V > 1) {  // an element is half of a word: taken alone, the upper one costs three moves
    struct Pairs { unsigned pair[V / 2]; };
    const Pairs pairs = reinterpret<Pairs>(words);
#pragma unroll
    for (int i = 0; i < V; ++i)
      wide.item[i] = static_cast<W>(__uint_as_float(i % 2 ? pairs.pair[i / 2] & 0xffff0000u : pairs.pair[i / 2] << 16));
  } else {
    const Vec<T, V> narrow = unpack<T, V>(words);
#pragma unroll
    for (int i = 0; i < V; ++i) wide.item[i] = widen<W>(narrow.item[i]);
  }
  return wide;
}

// Loads `count` ≤ V elements; the others are zero.
template <class T, int V>
__device__ inline Chunk<T, V> load(const T* p, int count) {
  Vec<T, V> v = {};
  if constexpr (V == 1) {
    if (count > 0) v.item[0] = *p;
  } else {
    if (count >= V) return Chunk<T, V>::load(p);
#pragma unroll
    for (int i = 0; i < V; ++i) if (i < count) v.item[i] = p[i];
  }
  return reinterpret<Chunk<T, V>>(v);
}

// Loads a chunk that is there as a whole, or not at all: then it is zeros.
template <class T, int V>
__device__ inline Chunk<T, V> load_whole(const T* p, bool there) {
  if constexpr (V == 1) return load<T, 1>(p, there);
  else return there ? Chunk<T, V>::load(p) : Chunk<T, V>{};
}

// Stores the first `count` elements, at least one and at most V.
template <class T, int V>
__device__ inline void store(T* p, const Vec<T, V>& v, int count) {
  if constexpr (V == 1) {
    *p = v.item[0];
  } else if (count >= V) {
    reinterpret<Words<sizeof(T) * V>>(v).store(p);
  } else {
#pragma unroll
    for (int i = 0; i < V; ++i) if (i < count) p[i] = v.item[i];
  }
}

// Stores a whole chunk.
template <class T, int V>
__device__ inline void store_whole(T* p, const Chunk<T, V>& chunk) {
  if constexpr (sizeof(T) * V == 1) *p = unpack<T, V>(chunk).item[0];
  else chunk.store(p);
}

// How many of a chunk's V elements there are, where `rest` are left of the row from its first on, or fewer than none.
__device__ inline int left(int rest, int v) { return max(0, min(rest, v)); }

}  // namespace qp
