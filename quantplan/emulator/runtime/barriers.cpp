// The 16 named barriers of a block, and the meetings of a warp's lanes.
#include <cstdio>
#include <cstring>

#include "runtime.h"

namespace emulated {

namespace {

struct Barrier {
  unsigned expected = 0, arrived = 0;
  int all = 1, any = 0, count = 0;
  Vote vote = Vote::none;
  Clock clock;
};
Barrier barriers[16];

int answer(const Barrier& barrier) {
  switch (barrier.vote) {
    case Vote::all: return barrier.all;
    case Vote::any: return barrier.any;
    case Vote::count: return barrier.count;
    default: return 0;
  }
}

void open(int id) {
  Barrier& barrier = barriers[id];
  for (unsigned i = 0; i < block.threads; ++i) {
    Fiber& fiber = block.fibers[i];
    if (fiber.state != State::at_barrier || fiber.barrier != id) continue;
    fiber.vote = answer(barrier);
    fiber.state = State::ready;
    clock_acquire(i, barrier.clock);
  }
  barrier = {};
}

void order_lanes(unsigned warp, unsigned mask) {
  Clock clock;
  for (unsigned lane = 0; lane < 32; ++lane)
    if (mask >> lane & 1) clock_release(clock, warp * 32 + lane);
  for (unsigned lane = 0; lane < 32; ++lane)
    if (mask >> lane & 1) clock_acquire(warp * 32 + lane, clock);
}

}  // namespace

void barriers_begin_block() {
  for (Barrier& barrier : barriers) barrier = {};
}

void barriers_describe_wait(const Fiber& fiber, char* text, size_t size) {
  const Barrier& barrier = barriers[fiber.barrier];
  snprintf(text, size, "barrier %d, where %u of %u threads have arrived", fiber.barrier, barrier.arrived,
           barrier.expected);
}

int barrier(int id, unsigned count, bool wait_here, Vote vote, bool predicate, Where where) {
  const Site site = site_of(where);
  if (id < 0 || id > 15) fail(Fault::barrier, site, 0, "barrier %d: there are 16, from 0", id);
  if (count % 32) fail(Fault::barrier, site, 0, "barrier %d for %u threads: warps arrive as a whole", id, count);
  const unsigned expected = count == whole_block ? block.threads : count;
  if (expected > block.threads && count != whole_block)
    fail(Fault::barrier, site, 0, "barrier %d for %u threads, in a block of %u", id, expected, block.threads);
  Barrier& barrier = barriers[id];
  if (barrier.arrived && barrier.expected != expected)
    fail(Fault::barrier, site, 0, "barrier %d for %u threads, while others wait there for %u", id, expected,
         barrier.expected);
  if (barrier.arrived && barrier.vote != vote && wait_here)
    fail(Fault::barrier, site, 0, "barrier %d with another vote than the one that others wait for", id);
  barrier.expected = expected;
  if (wait_here) barrier.vote = vote;
  barrier.all &= predicate;
  barrier.any |= predicate;
  barrier.count += predicate;
  ++barrier.arrived;
  clock_release(barrier.clock, block.running);
  Fiber& self = running();
  if (wait_here) {
    self.barrier = id;
    self.state = State::at_barrier;  // so that open() finds this thread too
  }
  if (barrier.arrived == barrier.expected) open(id);
  if (!wait_here) return 0;
  wait(self.state, where);
  return self.vote;
}

void meet(Collective kind, unsigned mask, void* mine, Complete complete, Where where) {
  const unsigned warp = block.running / 32, lane = block.running % 32;
  const unsigned last = block.threads - warp * 32;
  const unsigned present = last >= 32 ? ~0u : (1u << last) - 1;
  if (!(mask >> lane & 1))
    fail(Fault::collective, site_of(where), 0, "lane %u calls with a mask that leaves it out: %#x", lane, mask);
  if (mask & ~present)
    fail(Fault::collective, site_of(where), 0, "mask %#x names lanes that the block does not have", mask);
  Fiber& self = running();
  self.kind = kind;
  self.mask = mask;
  self.mine = mine;
  self.complete = complete;
  self.state = State::at_warp;
  self.where = where;
  void* lanes[32] = {};
  Fiber* warp_fibers = &block.fibers[warp * 32];
  for (unsigned i = 0; i < 32; ++i) {
    if (!(mask >> i & 1)) continue;
    const Fiber& fiber = warp_fibers[i];
    const bool here = fiber.state == State::at_warp && fiber.mask == mask && fiber.kind == kind &&
                      fiber.complete == complete;
    if (!here) {
      wait(State::at_warp, where);
      return;
    }
    lanes[i] = fiber.mine;
  }
  if (complete) complete(lanes, mask);
  if (kind == Collective::sync && checked()) order_lanes(warp, mask);
  for (unsigned i = 0; i < 32; ++i)
    if (mask >> i & 1) warp_fibers[i].state = State::ready;
}

void sync_warp(unsigned mask, Where where) { meet(Collective::sync, mask, nullptr, nullptr, where); }

}  // namespace emulated
