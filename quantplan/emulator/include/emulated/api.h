// What emulated instructions are made of: calls from a kernel into the runtime.
// A `Where` defaults to the caller's place: a fault names the line in the kernel that the instruction stands on.
#pragma once
#include <cstddef>
#include <cstdint>

#if defined(__GNUC__)
#define EMULATED_UNCHECKED __attribute__((no_sanitize("thread")))
#else
#error "the emulated device needs g++ or clang++"
#endif

// The runtime is one library, which every library of kernels links.
#pragma GCC visibility push(default)

namespace emulated {

struct Where {
  const char* file;
  int line;
  static constexpr Where here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) { return {file, line}; }
};

struct Index {
  unsigned x, y, z;
};

struct Current {
  Index thread, block, block_dim, grid_dim;
  unsigned linear;  // of the thread in its block
};
// Of the thread that runs; the runtime rewrites it at each switch. For a thread it never changes, and as a constant it
// is read without a check.
#ifdef EMULATED_RUNTIME
extern Current current;
#else
extern const Current current;
#endif

EMULATED_UNCHECKED inline unsigned lane() { return current.linear % 32; }

// ---- memory

enum class Access : int { read, write, atomic };

void* shared_memory();
unsigned shared_bytes();

// Announces an access that the compiler's instrumentation cannot see; `alignment` is checked in every build.
void touch(const void* pointer, size_t bytes, Access access, size_t alignment, Where where);
// The same of a load for which memory is constant: what the launch may write is not.
void touch_constant(const void* pointer, size_t bytes, Where where);
bool is_shared(const void* pointer);

// A read-modify-write that no other thread can interrupt.
template <class T, class F>
EMULATED_UNCHECKED T atomic(T* pointer, F update, Where where) {
  touch(pointer, sizeof(T), Access::atomic, sizeof(T), where);
  T old = *pointer;
  *pointer = update(old);
  return old;
}

// ---- blocks and warps

enum class Vote : int { none, all, any, count };

constexpr unsigned whole_block = 0;  // as a barrier's count of threads

// Waits at (or only arrives at) one of the 16 named barriers; returns the vote over the predicates.
int barrier(int id, unsigned count, bool wait, Vote vote, bool predicate, Where where);

enum class Collective : int { sync, shuffle, ballot, match, matrix, warp_group };

// Meets the lanes of a mask. `complete` runs once, when all have arrived, with one entry per lane; it orders no memory.
using Complete = void (*)(void* const* lanes, unsigned mask);
void meet(Collective kind, unsigned mask, void* mine, Complete complete, Where where);
// As __syncwarp: orders memory too.
void sync_warp(unsigned mask, Where where);

// ---- asynchronous copies

void copy_async(void* shared, const void* global, int bytes, int source_bytes, Where where);
void copy_async_commit();
void copy_async_wait(int groups_in_flight, Where where);

void barrier_init(uint64_t* barrier, unsigned count, Where where);
void barrier_invalidate(uint64_t* barrier, Where where);
// `cluster`: at the cluster's scope, where what is written reaches other blocks.
void barrier_arrive(uint64_t* barrier, unsigned count, bool cluster, Where where);
void barrier_expect(uint64_t* barrier, unsigned bytes, Where where);
bool barrier_try_wait(uint64_t* barrier, unsigned parity, bool cluster, Where where);
void copy_async_arrive(uint64_t* barrier, bool no_increment, Where where);

void bulk_load(void* shared, const void* global, unsigned bytes, uint64_t* barrier, Where where);
void bulk_send(unsigned to, const void* shared, unsigned bytes, unsigned barrier, Where where);
void store_async(unsigned to, const void* value, size_t bytes, unsigned barrier, Where where);
void bulk_store(void* global, const void* shared, unsigned bytes, Where where);
void bulk_commit();
void bulk_wait(int groups_in_flight, bool read_only, Where where);

struct Coordinates {
  int at[3];
};
void tensor_prefetch(const void* map, Where where);
// Each bit of the mask stands for a block of the cluster that gets the box, at the same place.
void tensor_load(void* shared, const void* map, unsigned rank, Coordinates from, uint64_t* barrier, unsigned mask,
                 Where where);
void tensor_store(const void* map, unsigned rank, Coordinates to, const void* shared, Where where);

void fence_async_proxy();
void fence_barrier_init();

// ---- clusters: neighbouring blocks that are resident together and reach each other's shared memory

unsigned cluster_rank();
unsigned cluster_size();
void cluster_arrive(bool release, Where where);
void cluster_wait(Where where);
// The address that instructions on a cluster's shared memory want: of a block's own, or of the same place in another's.
unsigned cluster_address(const void* shared, unsigned rank, Where where);
void* cluster_pointer(unsigned address, size_t bytes, Where where);  // and back

// ---- the rest

bool truncates_accumulation();
uint64_t random_bits();
[[noreturn]] void fail_invalid(const char* message, Where where);

}  // namespace emulated

#pragma GCC visibility pop
