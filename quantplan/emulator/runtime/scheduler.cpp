// Launches: fibers, the order they run in, and what happens when none can go on.
//
// Mostly one block is resident at a time. The blocks of a cluster are resident together, and take turns thread by
// thread.
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>

#include "runtime.h"
#include "switch.h"

namespace emulated {

Current current;
Block block;
const Launch* launch;
Report* report;
uint64_t progress;
// One page more than 2ⁿ: with 2ⁿ pages from one to the next, a block's stacks compete for a few entries of the TLB.
const size_t guard_bytes = 64 * 1024 + static_cast<size_t>(sysconf(_SC_PAGESIZE));

namespace {

constexpr int idle_rounds = 64;  // in which threads only poll and nothing comes of it, before they count as stuck

void* main_sp;
void (*kernel)(const void*);
bool failed;
uint64_t random_state;
std::vector<unsigned> order;  // in which the resident threads take turns

// ---- fibers

Index unravel(uint64_t linear, const uint32_t (&extents)[3]) {
  const uint64_t rest = linear / extents[0];
  return {unsigned(linear % extents[0]), unsigned(rest % extents[1]), unsigned(rest / extents[1])};
}

void run_thread() {
  kernel(launch->params);
  copies_end_thread();
  wgmma_end_thread();
  running().state = State::done;
  emulated_switch(&running().sp, main_sp);
  abort();  // a thread that is done is never resumed
}

void enter_block(unsigned rank) {
  block.rank = rank;
  block.shared = block.arena + rank * block.window;
  current.block = unravel(uint64_t(block.linear) * block.cluster + rank, launch->grid);
}

// Makes a thread the one that runs, to kernels and to whoever reports a fault.
Fiber& make_current(unsigned thread) {
  Fiber& fiber = block.fibers[thread];
  if (rank_of(thread) != block.rank) enter_block(rank_of(thread));
  block.running = thread;
  current.linear = index_in_block(thread);
  current.thread = fiber.index;
  return fiber;
}

void resume(unsigned thread) {
  Fiber& fiber = make_current(thread);
  ++report->switches;
  emulated_switch(&main_sp, fiber.sp);
}

// Makes the stacks of so many threads, which later launches use again. They lie apart, so that a thread that overflows
// its own meets a page without access.
bool make_stacks(unsigned threads) {
  static std::vector<char*> stacks;
  const size_t size = guard_bytes + stack_bytes;
  while (stacks.size() < threads) {
    void* memory = mmap(nullptr, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) return false;
    stacks.push_back(static_cast<char*>(memory) + guard_bytes);
    if (mprotect(stacks.back(), stack_bytes, PROT_READ | PROT_WRITE)) {
      munmap(memory, size);
      stacks.pop_back();
      return false;
    }
  }
  block.fibers.assign(block.slots, {});
  for (unsigned i = 0; i < threads; ++i) {
    const unsigned own = i % block.threads;
    Fiber& fiber = block.fibers[i / block.threads * block.stride + own];
    fiber.stack = stacks[i];
    fiber.index = unravel(own, launch->block);
  }
  return true;
}

// ---- the ways out

void fill(Fault fault, Site site, Site other, const char* format, va_list values) {
  report->fault = fault;
  vsnprintf(report->message, sizeof report->message, format, values);
  describe_place(report->place, site);
  if (other) describe_place(report->other, other);
  failed = true;
}

void __attribute__((format(printf, 4, 5))) note(Fault fault, Site site, Site other, const char* format, ...) {
  va_list values;
  va_start(values, format);
  fill(fault, site, other, format, values);
  va_end(values);
}

// Of the threads that wait, the first in the state that explains most: who waits at a barrier waits for the others.
unsigned most_telling() {
  for (const State state : {State::polling, State::at_warp, State::at_barrier, State::at_cluster})
    for (unsigned i = 0; i < block.slots; ++i)
      if (block.fibers[i].state == state) return i;
  return 0;
}

void report_stuck() {
  const unsigned first = most_telling();
  const Fiber& one = make_current(first);
  unsigned done = 0, second = none;
  for (unsigned i : order) {
    const Fiber& fiber = block.fibers[i];
    const bool elsewhere = fiber.where.line != one.where.line || strcmp(fiber.where.file, one.where.file);
    if (fiber.state == State::done) ++done;
    else if (second == none && elsewhere) second = i;
  }
  Text what, name;
  char others[256] = "";
  if (second != none) {
    describe_wait(second, what);
    name_thread(second, block.linear, name);
    snprintf(others, sizeof others, "; %s waits for %s", name, what);
  }
  describe_wait(first, what);
  note(one.state == State::at_warp ? Fault::collective : Fault::deadlock, site_of(one.where),
       second == none ? 0 : site_of(block.fibers[second].where),
       "no thread can go on: %zu wait and %u have returned; thread %u waits for %s%s", order.size() - done, done,
       current.linear, what, others);
}

// ---- blocks

void arrange() {
  if (launch->order != Order::random) return;
  for (size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[random_below(i)]);
}

void begin_cluster() {
  enter_block(0);
  memset(block.arena, 0xDB, (block.cluster - 1) * block.window + block.shared_bytes);
  memory_begin_block();
  barriers_begin_block();
  copies_begin_block();
  warp_groups_begin_block();
  wgmma_begin_block();
  clusters_begin();
  order.clear();
  for (unsigned i = 0; i < block.slots; ++i) {
    Fiber& fiber = block.fibers[i];
    if (!fiber.stack) continue;  // the number of no thread
    fiber.sp = first_frame(fiber.stack + stack_bytes - i * 192 % 4096, run_thread);  // not all in the same cache lines
    fiber.state = State::ready;
    order.push_back(i);
  }
  if (launch->order == Order::descending) std::reverse(order.begin(), order.end());
}

void run_cluster() {
  begin_cluster();
  int idle = 0;
  for (size_t live = order.size(); live > 0;) {
    if (interrupted) return note(Fault::deadlock, 0, 0, "interrupted before its end");
    arrange();
    const uint64_t before = progress;
    bool moved = false, polled = false;
    for (unsigned i : order) {
      Fiber& fiber = block.fibers[i];
      if (fiber.state != State::ready && fiber.state != State::polling) continue;
      const bool polling = fiber.state == State::polling;
      polled |= polling;
      fiber.state = State::ready;
      resume(i);
      if (failed) return;
      live -= fiber.state == State::done;
      moved |= !polling || fiber.state != State::polling;
    }
    if (moved || progress != before) {
      idle = 0;
    } else if (live && (!polled || ++idle > idle_rounds)) {
      return report_stuck();
    }
  }
}

uint64_t greatest_common_divisor(uint64_t a, uint64_t b) { return b ? greatest_common_divisor(b, a % b) : a; }

void run_grid() {
  const uint64_t total = uint64_t(launch->grid[0]) * launch->grid[1] * launch->grid[2] / block.cluster;
  uint64_t at = 0, step = 1;
  if (launch->order == Order::descending) {
    at = total - 1;
    step = total - 1;  // −1
  } else if (launch->order == Order::random) {  // a walk that meets each block once, whatever their number
    at = random_below(total);
    do step = 1 + random_below(total);
    while (greatest_common_divisor(step, total) != 1);
  }
  for (uint64_t i = 0; i < total && !failed; ++i) {
    block.linear = unsigned(at);
    run_cluster();
    at = (at + step) % total;
  }
}

bool start() {
  failed = false;
  random_state = launch->seed;
  const auto& [x, y, z] = launch->block;
  current = {{}, {}, {x, y, z}, {launch->grid[0], launch->grid[1], launch->grid[2]}, 0};
  block.threads = x * y * z;
  block.cluster = launch->cluster;
  block.stride = block.cluster == 1 ? block.threads : (block.threads + 127) / 128 * 128;
  block.slots = block.stride * block.cluster;
  block.clocks = block.slots + agents * block.cluster + (block.slots + group_threads - 1) / group_threads;
  block.row = block.cluster == 1 ? block.clocks : 2 * block.clocks;
  block.linear = block.running = 0;
  block.shared_bytes = launch->shared_bytes;
  block.window = (launch->shared_bytes / 1024 + 1) * 1024;
  const std::unique_ptr<char, void (*)(void*)> shared(
      static_cast<char*>(aligned_alloc(1024, block.window * block.cluster)), free);
  block.shared = block.arena = shared.get();
  places_begin_launch(reinterpret_cast<const void*>(kernel));
  if (!block.arena || !make_stacks(block.threads * block.cluster) || !memory_begin_launch()) return false;
  guarded(run_grid);
  memory_end_launch();
  if (report->fault != Fault::none) {
    const Index b = current.block, t = current.thread;
    const uint32_t where[2][3] = {{b.x, b.y, b.z}, {t.x, t.y, t.z}};
    memcpy(report->block, where[0], sizeof report->block);
    memcpy(report->thread, where[1], sizeof report->thread);
  }
  return true;
}

}  // namespace

// ---- what the other files use

void name_thread(unsigned thread, unsigned linear, Text& text) {
  if (thread >= block.slots) {
    const bool copies = thread < block.slots + agents * block.cluster;
    snprintf(text, sizeof text, "%s", copies ? "an asynchronous copy" : "a wgmma");
    return;
  }
  const unsigned rank = rank_of(thread);
  if (linear == block.linear && rank == block.rank)
    snprintf(text, sizeof text, "thread %u", index_in_block(thread));
  else
    snprintf(text, sizeof text, "thread %u of block %u", index_in_block(thread), linear * block.cluster + rank);
}

void wait(State state, Where where) {
  Fiber& self = running();
  self.state = state;
  self.where = where;
  emulated_switch(&self.sp, main_sp);
}

uint64_t random_bits() {  // splitmix64
  uint64_t z = random_state += 0x9E3779B97F4A7C15ull;
  z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9ull;
  z = (z ^ z >> 27) * 0x94D049BB133111EBull;
  return z ^ z >> 31;
}

uint64_t random_below(uint64_t bound) { return random_bits() % bound; }

void fail(Fault fault, Site site, Site other, const char* format, ...) {
  va_list values;
  va_start(values, format);
  fill(fault, site, other, format, values);
  va_end(values);
  emulated_switch(&running().sp, main_sp);  // threads of a launch that failed are never resumed
  abort();
}

void fail_invalid(const char* message, Where where) { fail(Fault::invalid, site_of(where), 0, "%s", message); }

bool truncates_accumulation() { return launch->accumulation == Accumulation::truncated; }

void* shared_memory() { return block.shared; }

unsigned shared_bytes() { return unsigned(block.shared_bytes); }

}  // namespace emulated

// Runs a kernel, and says in the report how it went; returns 0 where there is no memory for that. The caller sees to it
// that one launch at a time runs in a process, and that CUDA would accept it.
extern "C" EMULATED_HOOK int emulated_launch(void (*entry)(const void*), const emulated::Launch* config,
                                              emulated::Report* result) {
  using namespace emulated;
  kernel = entry;
  launch = config;
  report = result;
  return start();
}
