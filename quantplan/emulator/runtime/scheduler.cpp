// Launches: fibers, the order they run in, and the ways out of a kernel that does not end.
#include "runtime.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <csetjmp>
#include <csignal>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <new>

#include "switch.h"

namespace emulated {

Current current;
Block block;
const Launch* launch;
Report* report;
uint64_t progress;

namespace {

constexpr int idle_rounds = 64;  // rounds in which threads only poll and nothing comes of it, before they count as stuck

void* main_sp;
void (*kernel)(const void*);
bool failed;
uint64_t random_state;
sigjmp_buf escape;
pthread_t launching;

// ---- fibers

void run_thread() {
  kernel(launch->params);
  copies_end_thread();
  running().state = State::done;
  emulated_switch(&running().sp, main_sp);
  abort();  // a thread that is done is never resumed
}

Index coordinates(unsigned thread) {
  const Index dim = current.block_dim;
  return {thread % dim.x, thread / dim.x % dim.y, thread / dim.x / dim.y};
}

void resume(unsigned thread) {
  block.running = thread;
  current.linear = thread;
  current.thread = coordinates(thread);
  ++report->switches;
  emulated_switch(&main_sp, block.fibers[thread].sp);
}

// Stacks lie apart from each other, so that a thread that overflows its own hits a page without access.
bool make_stacks(unsigned threads) {
  const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  const size_t held = block.fibers.size();
  if (threads > held) block.fibers.resize(threads);
  for (size_t i = held; i < threads; ++i) {
    void* memory = mmap(nullptr, page + stack_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED || mprotect(static_cast<char*>(memory) + page, stack_bytes, PROT_READ | PROT_WRITE)) {
      block.fibers.resize(i);
      return false;
    }
    block.fibers[i].stack = static_cast<char*>(memory) + page;
  }
  return true;
}

void arrange(std::vector<unsigned>& order) {
  switch (launch->order) {
    case Order::ascending: break;
    case Order::descending: break;  // it was reversed once, when the block began
    case Order::random:
      for (size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[random_below(i)]);
  }
}

// ---- deadlocks

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

void report_stuck() {
  unsigned done = 0, waiting = 0, first = none, second = none;
  for (unsigned i = 0; i < block.threads; ++i) {
    const Fiber& fiber = block.fibers[i];
    if (fiber.state == State::done) {
      ++done;
      continue;
    }
    ++waiting;
    if (first == none) first = i;
    const Fiber& one = block.fibers[first];
    if (second == none && (fiber.where.line != one.where.line || strcmp(fiber.where.file, one.where.file))) second = i;
  }
  const Fiber& one = block.fibers[first];
  char what[160] = "";
  switch (one.state) {
    case State::at_barrier: barriers_describe_wait(one, what, sizeof what); break;
    case State::at_warp:
      snprintf(what, sizeof what, "lanes %#x of its warp to meet it in the same instruction", one.mask);
      break;
    case State::polling: snprintf(what, sizeof what, "an mbarrier phase that never completes"); break;
    default: break;
  }
  current.thread = coordinates(first);
  const Site other = second == none ? 0 : site_of(block.fibers[second].where);
  const bool collective = one.state == State::at_warp;
  note(collective ? Fault::collective : Fault::deadlock, site_of(one.where), other,
       "no thread can go on: %u wait and %u have returned; the first waits for %s", waiting, done, what);
}

// ---- blocks

void run_block() {
  const unsigned n = block.threads;
  memset(block.shared, 0xDB, block.shared_bytes);
  memory_begin_block();
  barriers_begin_block();
  copies_begin_block();
  std::vector<unsigned> order(n);
  for (unsigned i = 0; i < n; ++i) {
    Fiber& fiber = block.fibers[i];
    fiber.sp = first_frame(fiber.stack + stack_bytes, run_thread);
    fiber.state = State::ready;
    order[i] = launch->order == Order::descending ? n - 1 - i : i;
  }
  int idle = 0;
  for (unsigned live = n; live > 0;) {
    arrange(order);
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

Index unravel(uint64_t linear, const uint32_t (&grid)[3]) {
  const uint64_t rest = linear / grid[0];
  return {unsigned(linear % grid[0]), unsigned(rest % grid[1]), unsigned(rest / grid[1])};
}

uint64_t greatest_common_divisor(uint64_t a, uint64_t b) { return b ? greatest_common_divisor(b, a % b) : a; }

void run_grid() {
  const uint64_t total = uint64_t(launch->grid[0]) * launch->grid[1] * launch->grid[2];
  uint64_t start = 0, step = 1;
  if (launch->order == Order::descending) {
    start = total - 1;
    step = total - 1;  // −1
  } else if (launch->order == Order::random) {
    start = random_below(total);
    do step = 1 + random_below(total);
    while (greatest_common_divisor(step, total) != 1);
  }
  uint64_t at = start;
  for (uint64_t i = 0; i < total && !failed; ++i) {
    block.linear = unsigned(at);
    current.block = unravel(at, launch->grid);
    run_block();
    at = (at + step) % total;
  }
}

// ---- signals: what no check foresaw still comes back as a report

void on_signal(int number, siginfo_t* info, void* context) {
  if (!pthread_equal(pthread_self(), launching)) {  // not ours: let it happen as if we were not here
    signal(number, SIG_DFL);
    raise(number);
    return;
  }
  uint64_t pc = 0;
#if defined(__x86_64__)
  pc = static_cast<uint64_t>(static_cast<ucontext_t*>(context)->uc_mcontext.gregs[REG_RIP]);
#elif defined(__aarch64__)
  pc = static_cast<ucontext_t*>(context)->uc_mcontext.pc;
#endif
  report->fault = Fault::crash;
  const char* what = number == SIGFPE   ? "an integer division by zero"
                     : number == SIGILL ? "undefined behaviour: an overflow, a bad shift or a bad conversion"
                                        : "an access to memory that is not there, or an overflow of a thread's stack";
  const bool memory = number == SIGSEGV || number == SIGBUS;
  snprintf(report->message, sizeof report->message, memory ? "%s (address %p)" : "%s", what, info->si_addr);
  describe_place(report->place, site_of_pc(reinterpret_cast<void*>(pc + 1)));
  siglongjmp(escape, 1);
}

class Signals {
 public:
  Signals() : stack_(1 << 16) {
    stack_t mine{};
    mine.ss_sp = stack_.data();
    mine.ss_size = stack_.size();
    sigaltstack(&mine, &old_stack_);
    struct sigaction action{};
    action.sa_sigaction = on_signal;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    for (int i = 0; i < count; ++i) sigaction(numbers[i], &action, &old_[i]);
  }
  ~Signals() {
    for (int i = 0; i < count; ++i) sigaction(numbers[i], &old_[i], nullptr);
    sigaltstack(&old_stack_, nullptr);
  }

 private:
  static constexpr int count = 4;
  static constexpr int numbers[count] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL};
  std::vector<char> stack_;
  stack_t old_stack_{};
  struct sigaction old_[count];
};

}  // namespace

// ---- what the other files use

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

// Runs a kernel that was built for at most so many threads, and says in the report how it went.
extern "C" __attribute__((visibility("default"))) void emulated_launch(void (*entry)(const void*), unsigned threads,
                                                                       const emulated::Launch* config,
                                                                       emulated::Report* result) {
  using namespace emulated;
  static std::mutex one_at_a_time;
  const std::lock_guard<std::mutex> guard(one_at_a_time);
  launch = config;
  report = result;
  failed = false;
  kernel = entry;
  places_begin_launch(reinterpret_cast<const void*>(entry));
  random_state = config->seed;
  launching = pthread_self();
  current.block_dim = {config->block[0], config->block[1], config->block[2]};
  current.grid_dim = {config->grid[0], config->grid[1], config->grid[2]};
  block.threads = config->block[0] * config->block[1] * config->block[2];
  block.shared_bytes = config->shared_bytes;
  const size_t room = std::max<size_t>(1024, (config->shared_bytes + 1023) / 1024 * 1024);
  block.shared = static_cast<char*>(aligned_alloc(1024, room));
  if (block.threads > threads) {
    report->fault = Fault::invalid;
    snprintf(report->message, sizeof report->message, "%u threads, and the kernel's launch bounds say at most %u",
             block.threads, threads);
  } else if (!block.shared || !make_stacks(block.threads)) {
    report->fault = Fault::crash;
    snprintf(report->message, sizeof report->message, "out of memory for the stacks of %u threads", block.threads);
  } else {
    const Signals handled;
    memory_begin_launch(reinterpret_cast<const void*>(entry));
    if (sigsetjmp(escape, 1) == 0) {
      run_grid();
    } else {
      failed = true;
    }
    memory_end_launch();
  }
  if (report->fault != Fault::none) {
    const Index b = current.block, t = current.thread;
    const uint32_t where[2][3] = {{b.x, b.y, b.z}, {t.x, t.y, t.z}};
    memcpy(report->block, where[0], sizeof report->block);
    memcpy(report->thread, where[1], sizeof report->thread);
  }
  free(block.shared);
  block.shared = nullptr;
}
