// Vector clocks: the running thread may rely on what another did only if barriers, in a chain, lead from there to here.
#include <algorithm>

#include "runtime.h"

namespace emulated {

std::vector<uint32_t> clocks;

namespace {

void join(uint32_t* __restrict into, const uint32_t* __restrict from) {
  for (unsigned i = 0, n = block.row; i < n; ++i) into[i] = std::max(into[i], from[i]);
}

}  // namespace

void clocks_reset() {
  clocks.assign(size_t(block.clocks) * block.row, 0);
  for (unsigned t = 0; t < block.clocks; ++t) known(t, t) = 1;
}

void clock_release(Clock& into, unsigned thread) {
  if (!checked()) return;
  into.resize(block.row, 0);
  join(into.data(), &known(thread, 0));
  ++known(thread, thread);
}

void clock_release_over(Clock& into, unsigned thread) {
  if (!checked()) return;
  into.resize(block.row, 0);
  for (unsigned i = 0; i < block.clocks; ++i) {
    uint32_t& loads = into[block.row - block.clocks + i];
    loads = std::max({loads, known(thread, i), known_over(thread, i)});
  }
  ++known(thread, thread);
}

void clock_join(Clock& into, const Clock& from) {
  if (!checked()) return;
  into.resize(block.row, 0);
  if (!from.empty()) join(into.data(), from.data());
}

void clock_acquire(unsigned thread, const Clock& from) {
  if (!checked() || from.empty()) return;
  join(&known(thread, 0), from.data());
}

Clock clock_at(unsigned thread, uint32_t clock) {
  if (!checked()) return {};
  Clock made(block.row, 0);
  made[thread] = clock;
  return made;
}

uint32_t clock_tick_agent(unsigned agent, Clock& into) {
  if (!checked()) return 0;
  into.resize(block.row, 0);
  const uint32_t now = known(agent, agent)++;
  into[agent] = std::max(into[agent], now);
  return now;
}

}  // namespace emulated
