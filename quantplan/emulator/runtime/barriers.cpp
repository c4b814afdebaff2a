// The 16 named barriers of each block, and the meetings of a warp's lanes.
#include <cstdio>
#include <cstring>

#include "runtime.h"

namespace emulated {

namespace {

struct Barrier {
  unsigned expected = 0, arrived = 0;
  int all = 1, any = 0, count = 0;
  Vote vote = Vote::none;
  Where first{};  // where the first thread arrived
  Clock clock;
};
Barrier barriers_of[most_cluster][16];

unsigned meeting[most_threads / 32 * most_cluster];  // of each warp: the lanes that wait for others

unsigned first_thread() { return block.rank * block.stride; }
unsigned end_thread() { return first_thread() + block.threads; }

int answer(const Barrier& barrier) {
  switch (barrier.vote) {
    case Vote::all: return barrier.all;
    case Vote::any: return barrier.any;
    case Vote::count: return barrier.count;
    default: return 0;
  }
}

bool same_place(Where a, Where b) { return a.line == b.line && (a.file == b.file || !strcmp(a.file, b.file)); }

// Barriers are instructions of whole warps: lanes that reach one in two branches make it undefined.
void check_warps(int id) {
  for (unsigned warp = 0; warp * 32 < block.threads; ++warp) {
    const Fiber* first = nullptr;
    const unsigned begin = first_thread() + warp * 32;
    for (unsigned i = begin; i < end_thread() && i < begin + 32; ++i) {
      const Fiber& fiber = block.fibers[i];
      if (fiber.state != State::at_barrier || fiber.barrier != id) continue;
      if (!first) first = &fiber;
      if (!same_place(fiber.where, first->where))
        fail(Fault::barrier, site_of(fiber.where), site_of(first->where),
             "lanes of warp %u wait at barrier %d in different branches", warp, id);
    }
  }
}

void open(int id) {
  check_warps(id);
  Barrier& barrier = barriers_of[block.rank][id];
  for (unsigned i = first_thread(); i < end_thread(); ++i) {
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

// Lanes that the thread's mask names and that do not wait in the same instruction with the same mask.
unsigned missing_lanes(unsigned thread) {
  const Fiber& self = block.fibers[thread];
  const unsigned warp = thread / 32;
  unsigned missing = self.mask & ~meeting[warp];
  if (missing) return missing;
  for (unsigned lane = 0; lane < 32; ++lane) {
    if (!(self.mask >> lane & 1)) continue;
    const Fiber& other = block.fibers[warp * 32 + lane];
    const bool same = other.mask == self.mask && other.kind == self.kind && other.complete == self.complete;
    missing |= unsigned(!same) << lane;
  }
  return missing;
}

}  // namespace

void barriers_begin_block() {
  for (unsigned rank = 0; rank < block.cluster; ++rank)
    for (Barrier& barrier : barriers_of[rank]) barrier = {};
  memset(meeting, 0, sizeof meeting);
}

void describe_wait(unsigned thread, Text& text) {
  const Fiber& fiber = block.fibers[thread];
  if (fiber.state == State::at_barrier) {
    const Barrier& barrier = barriers_of[rank_of(thread)][fiber.barrier];
    snprintf(text, sizeof text, "barrier %d, where %u of %u threads have arrived", fiber.barrier, barrier.arrived,
             barrier.expected);
  } else if (fiber.state == State::at_cluster) {
    snprintf(text, sizeof text, "the cluster's barrier, where %u threads have yet to arrive", cluster_missing());
  } else if (fiber.state == State::at_warp && fiber.kind == Collective::warp_group) {
    snprintf(text, sizeof text, "the other threads of its warp group");
  } else if (fiber.state == State::at_warp) {
    snprintf(text, sizeof text, "lanes %#x of its warp", missing_lanes(thread));
  } else {
    snprintf(text, sizeof text, "%s", fiber.awaited ? fiber.awaited : "a phase of an mbarrier that never completes");
  }
}

int barrier(int id, unsigned count, bool wait_here, Vote vote, bool predicate, Where where) {
  if (id < 0 || id > 15) fail(Fault::barrier, site_of(where), 0, "barrier %d: there are 16, from 0", id);
  if (count % 32) fail(Fault::barrier, site_of(where), 0, "barrier %d for %u threads: warps arrive whole", id, count);
  const unsigned expected = count == whole_block ? block.threads : count;
  if (expected > block.threads)
    fail(Fault::barrier, site_of(where), 0, "barrier %d for %u threads, in a block of %u", id, expected, block.threads);
  Barrier& barrier = barriers_of[block.rank][id];
  if (barrier.arrived && barrier.expected != expected)
    fail(Fault::barrier, site_of(where), site_of(barrier.first),
         "barrier %d for %u threads, while others wait there for %u", id, expected, barrier.expected);
  if (barrier.arrived && barrier.vote != vote)
    fail(Fault::barrier, site_of(where), site_of(barrier.first), "barrier %d with another vote than others at it", id);
  if (!barrier.arrived) barrier.first = where;
  barrier.expected = expected;
  barrier.vote = vote;
  barrier.all &= predicate;
  barrier.any |= predicate;
  barrier.count += predicate;
  ++barrier.arrived;
  clock_release(barrier.clock, block.running);
  Fiber& self = running();
  if (wait_here) {
    self.barrier = id;
    self.where = where;
    self.state = State::at_barrier;  // so that open() finds this thread too
  }
  if (barrier.arrived == barrier.expected) open(id);
  if (!wait_here) return 0;
  wait(self.state, where);
  return self.vote;
}

void meet(Collective kind, unsigned mask, void* mine, Complete complete, Where where) {
  const unsigned warp = block.running / 32, lane = block.running % 32;
  const unsigned last = block.threads - current.linear / 32 * 32;
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
  meeting[warp] |= 1u << lane;
  if (missing_lanes(block.running)) return wait(State::at_warp, where);
  void* lanes[32] = {};
  Fiber* fibers = &block.fibers[warp * 32];
  for (unsigned i = 0; i < 32; ++i)
    if (mask >> i & 1) lanes[i] = fibers[i].mine;
  if (complete) complete(lanes, mask);
  if (kind == Collective::sync && checked()) order_lanes(warp, mask);
  for (unsigned i = 0; i < 32; ++i)
    if (mask >> i & 1) fibers[i].state = State::ready;
  meeting[warp] &= ~mask;
}

void sync_warp(unsigned mask, Where where) { meet(Collective::sync, mask, nullptr, nullptr, where); }

}  // namespace emulated
