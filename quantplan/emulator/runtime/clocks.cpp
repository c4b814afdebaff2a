// Vector clocks: the running thread may rely on what another did only if barriers, in a chain, lead from there to here.
#include <algorithm>

#include "runtime.h"

namespace emulated {

namespace {

std::vector<uint32_t> clocks;  // row t: the latest moment of each thread that thread t knows to be over
unsigned stride;               // threads of the block, and agents of asynchronous copies

uint32_t* row(unsigned thread) { return clocks.data() + size_t(thread) * stride; }

}  // namespace

void clocks_reset() {
  stride = block.threads + agents;
  clocks.assign(size_t(stride) * stride, 0);
  for (unsigned t = 0; t < stride; ++t) row(t)[t] = 1;
}

uint32_t clock_of(unsigned thread) { return row(thread)[thread]; }

bool happened_before(unsigned thread, uint32_t clock) { return clock <= row(block.running)[thread]; }

void clock_release(Clock& into, unsigned thread) {
  if (!checked()) return;
  into.resize(stride, 0);
  uint32_t* mine = row(thread);
  for (unsigned i = 0; i < stride; ++i) into[i] = std::max(into[i], mine[i]);
  ++mine[thread];
}

void clock_acquire(unsigned thread, const Clock& from) {
  if (!checked() || from.empty()) return;
  uint32_t* mine = row(thread);
  for (unsigned i = 0; i < stride; ++i) mine[i] = std::max(mine[i], from[i]);
}

uint32_t clock_tick_agent(unsigned agent, Clock& into) {
  if (!checked()) return 0;
  into.resize(stride, 0);
  const uint32_t now = row(agent)[agent]++;
  into[agent] = std::max(into[agent], now);
  return now;
}

}  // namespace emulated
