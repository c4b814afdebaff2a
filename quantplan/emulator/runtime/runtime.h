// The emulated device's state, shared by the runtime's files. One launch runs at a time in one library.
//
//   launch ─▶ for each block, or cluster: one fiber per thread ─▶ scheduler resumes fibers until all are done
//                                 │
//                    instruction ─┤ barrier, warp, copies: may wait, i.e. switch back to the scheduler
//                    access ──────┘ memory: checked against regions and shadow; a fault ends the launch
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

#include <emulated/abi.h>
#include <emulated/api.h>

// Marks what other libraries call.
#define EMULATED_HOOK __attribute__((visibility("default")))

namespace emulated {

constexpr unsigned none = ~0u, most_threads = 1024, most_cluster = 8;
constexpr size_t stack_bytes = 128 * 1024;
extern const size_t guard_bytes;  // without access, below each stack

enum class State : uint8_t { ready, at_barrier, at_warp, at_cluster, polling, done };

struct Fiber {
  void* sp = nullptr;
  char* stack = nullptr;  // lowest address; guard_bytes without access lie below it
  Index index{};          // threadIdx
  State state = State::done;
  Where where{};      // of the instruction that waits
  int barrier = 0;    // of the barrier that it waits at
  int vote = 0;       // what the barrier answered
  Collective kind = Collective::sync;
  unsigned mask = 0;  // of the collective that it waits in
  void* mine = nullptr;
  Complete complete = nullptr;
  const char* awaited = nullptr;  // what it polls for, unless that is an mbarrier
};

// A place in the kernel: an offset into its library, or an index into the places that instructions named; 0: unknown.
using Site = uint32_t;
void places_begin_launch(const void* kernel);
Site site_of(Where where);
Site site_of_call(const void* return_address);
Site site_of_pc(uintptr_t pc);
void describe_place(Place& place, Site site);
bool in_library(uintptr_t address, size_t bytes);  // code and constants of the kernel

// What is resident: one block, or those of a cluster, whose threads and shared memories then have numbers and addresses
// in common. A block's numbers begin at a multiple of a warp group's 128, so some of them stand for no thread.
struct Block {
  unsigned threads = 0;  // of one block
  unsigned cluster = 1;  // blocks
  unsigned stride = 0;   // from one block's first thread to the next one's
  unsigned slots = 0;    // numbers of threads
  unsigned clocks = 0;   // of threads and agents
  unsigned row = 0;      // of `clocks`: in a cluster, two numbers for each of them
  unsigned linear = 0;   // index of the cluster in its grid
  unsigned running = none;
  unsigned rank = 0;       // of the running thread's block in its cluster
  char* shared = nullptr;  // of the running thread's block
  char* arena = nullptr;   // of the first block
  size_t window = 0;       // from one block's shared memory to the next one's
  size_t shared_bytes = 0;
  std::vector<Fiber> fibers;
};

extern Block block;
extern const Launch* launch;
extern Report* report;

inline bool checked() { return launch->checked != 0; }
inline Fiber& running() { return block.fibers[block.running]; }
inline unsigned rank_of(unsigned thread) { return block.cluster == 1 ? 0 : thread / block.stride; }
inline unsigned index_in_block(unsigned thread) { return thread - rank_of(thread) * block.stride; }

using Text = char[96];
void name_thread(unsigned thread, unsigned linear, Text& text);  // "thread 3", "thread 3 of block 5", or what an agent stands for

// Ends the launch: fills the report and never returns.
[[noreturn]] void fail(Fault fault, Site site, Site other, const char* format, ...)
    __attribute__((format(printf, 4, 5)));

// ---- scheduler.cpp

void wait(State state, Where where);  // switches away until another thread makes this one ready
uint64_t random_below(uint64_t bound);
extern uint64_t progress;  // grows with whatever a thread that polls may be waiting for

// ---- signals.cpp: what no check foresaw still comes back as a report

bool guarded(void (*work)());       // runs it; false when a signal ended it, which the report then describes
extern volatile bool interrupted;  // Ctrl-C was pressed: the launch shall end

// ---- clocks.cpp: who is ordered after whom. Threads from `block.slots` on are agents of asynchronous copies, one
// for each mbarrier that copies report to: who has waited for one mbarrier knows nothing of another's copies.

constexpr unsigned agents = 16;  // of a block; mbarriers beyond share them: it hides some missing waits and invents none
constexpr unsigned group_threads = 128;  // of a warp group, which has an agent too: it reads for its wgmmas
constexpr unsigned most_clocks = (most_threads + most_threads / group_threads + agents) * most_cluster;
extern std::vector<uint32_t> clocks;  // row t: the latest moment of each thread that thread t knows to be over
inline uint32_t& known(unsigned thread, unsigned other) {
  return clocks[size_t(thread) * block.row + other];
}
// In a cluster, also the latest moment up to which its loads, or its copies, are known to be over: what they have read
// or written may be overwritten, and not be read.
inline uint32_t& known_over(unsigned thread, unsigned other) {
  return clocks[size_t(thread) * block.row + (block.row - block.clocks) + other];
}
inline uint32_t clock_of(unsigned thread) { return known(thread, thread); }
inline bool happened_before(unsigned thread, uint32_t clock) { return clock <= known(block.running, thread); }
void clocks_reset();
using Clock = std::vector<uint32_t>;
void clock_release(Clock& into, unsigned thread);        // into ← max(into, thread's), and the thread moves on
void clock_acquire(unsigned thread, const Clock& from);
void clock_release_over(Clock& into, unsigned thread);  // only what is over, see known_over
void clock_join(Clock& into, const Clock& from);
Clock clock_at(unsigned thread, uint32_t clock);  // that moment, and nothing that it comes after
uint32_t clock_tick_agent(unsigned agent, Clock& into);  // a moment of an agent's, known to who acquires `into`

// ---- memory.cpp

bool memory_begin_launch();  // false: out of memory
void memory_begin_block();
void memory_end_launch();
void access(uintptr_t address, size_t bytes, Access kind, Site site);
bool in_arena(const void* pointer);  // the shared memory of any resident block
bool is_parameter(const void* pointer, size_t bytes);
[[noreturn]] void fail_misaligned(uintptr_t address, const char* what, size_t alignment, Site site);
// Asynchronous copies own their destination from issue to completion, and write as `thread` at `clock`.
void memory_in_flight(const void* shared, size_t bytes, Site site);
void memory_landed(const void* shared, size_t bytes, unsigned thread, uint32_t clock, Site site);
// A bulk store reads its source until it is waited for; what it reads, its writers must have fenced.
void memory_begin_reading(const void* shared, size_t bytes, Site site);
void memory_end_reading(const void* shared, size_t bytes, unsigned thread, uint32_t clock, Site site);
// A wgmma reads as an agent, at a moment that who waits for it will come after. All threads of its warp group must come
// after what it reads.
struct Reading {
  uint64_t serial;  // never the same again
  unsigned first_thread, agent;
  uint32_t moment;
  Site site;
};
void memory_read_by(const Reading& reading, const void* shared, size_t bytes);

// ---- barriers.cpp, copies.cpp

void barriers_begin_block();
void describe_wait(unsigned thread, Text& text);  // what it waits for
void copies_begin_block();
void copies_end_thread();
// Whether asynchronous copies that another thread issues may rely on what this one wrote then.
bool fenced(unsigned thread, uint32_t clock, unsigned other);
uint32_t last_init_fence(unsigned thread);  // its moment, 0: none

// ---- warp_groups.cpp, wgmma.cpp

void warp_groups_begin_block();
void wgmma_begin_block();
void wgmma_end_thread();
void registers_accessed(uintptr_t address, size_t bytes, Access kind, Site site);

// ---- clusters.cpp

void clusters_begin();
void clusters_end_thread();
void clusters_end_block();
void check_peer(unsigned rank, Site site);  // whether the running thread may access that block's shared memory
void visited_by(unsigned agent, unsigned rank, uint32_t clock, Site site);
unsigned cluster_missing();                 // threads that the cluster's barrier waits for

}  // namespace emulated
