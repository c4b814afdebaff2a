// The emulated device's state, shared by the runtime's files. One launch runs at a time in one library.
//
//   launch ─▶ for each block: one fiber per thread ─▶ scheduler resumes fibers until all are done
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

constexpr unsigned none = ~0u, most_threads = 1024;
constexpr size_t stack_bytes = 128 * 1024;
extern const size_t guard_bytes;  // without access, below each stack

enum class State : uint8_t { ready, at_barrier, at_warp, polling, done };

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
};

// A place in the kernel: an offset into its library, or an index into the places that instructions named; 0: unknown.
using Site = uint32_t;
void places_begin_launch(const void* kernel);
Site site_of(Where where);
Site site_of_call(const void* return_address);
Site site_of_pc(uintptr_t pc);
void describe_place(Place& place, Site site);
bool in_library(uintptr_t address, size_t bytes);  // code and constants of the kernel

struct Block {
  unsigned threads = 0;
  unsigned linear = 0;  // index of the block in its grid
  unsigned running = none;
  char* shared = nullptr;
  size_t shared_bytes = 0;
  std::vector<Fiber> fibers;
};

extern Block block;
extern const Launch* launch;
extern Report* report;

inline bool checked() { return launch->checked != 0; }
inline Fiber& running() { return block.fibers[block.running]; }

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

// ---- clocks.cpp: who is ordered after whom. Threads from `block.threads` on are agents of asynchronous copies, one
// for each mbarrier that copies report to: who has waited for one mbarrier knows nothing of another's copies.

constexpr unsigned agents = 16;  // mbarriers beyond share them, which hides some missing waits and invents none
extern std::vector<uint32_t> clocks;  // row t: the latest moment of each thread that thread t knows to be over
inline uint32_t& known(unsigned thread, unsigned other) {
  return clocks[size_t(thread) * (block.threads + agents) + other];
}
inline uint32_t clock_of(unsigned thread) { return known(thread, thread); }
inline bool happened_before(unsigned thread, uint32_t clock) { return clock <= known(block.running, thread); }
void clocks_reset();
using Clock = std::vector<uint32_t>;
void clock_release(Clock& into, unsigned thread);        // into ← max(into, thread's), and the thread moves on
void clock_acquire(unsigned thread, const Clock& from);
uint32_t clock_tick_agent(unsigned agent, Clock& into);  // a moment of an agent's, known to who acquires `into`

// ---- memory.cpp

bool memory_begin_launch();  // false: out of memory
void memory_begin_block();
void memory_end_launch();
void access(uintptr_t address, size_t bytes, Access kind, Site site);
bool is_parameter(const void* pointer, size_t bytes);
[[noreturn]] void fail_misaligned(uintptr_t address, const char* what, size_t alignment, Site site);
// Asynchronous copies own their destination from issue to completion, and write as `thread` at `clock`.
void memory_in_flight(const void* shared, size_t bytes, Site site);
void memory_landed(const void* shared, size_t bytes, unsigned thread, uint32_t clock, Site site);
// A bulk store reads its source until it is waited for; what it reads, its writers must have fenced.
void memory_begin_reading(const void* shared, size_t bytes, Site site);
void memory_end_reading(const void* shared, size_t bytes, Site site);

// ---- barriers.cpp, copies.cpp

void barriers_begin_block();
void describe_wait(unsigned thread, char (&text)[96]);  // what it waits for
void copies_begin_block();
void copies_end_thread();
bool fenced(unsigned thread, uint32_t clock);  // whether asynchronous copies may rely on what it wrote then

}  // namespace emulated
