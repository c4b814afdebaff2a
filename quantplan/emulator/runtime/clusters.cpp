// Clusters: the barrier of all their threads, and the shared memory of one block seen from another.
//
//   block 0 ──arrive─┐                 ┌─wait── reads block 1 ──arrive─┐   ┌─wait─▶ returns
//                    ├─ all are there ─┤                               ├─ … ┤
//   block 1 ──arrive─┘  (it has begun) └─wait── ────────────────arrive─┘   └─wait─▶ returns: nobody reads it any more
#include <algorithm>
#include <array>
#include <cstring>
#include <deque>

#include "copies.h"

namespace emulated {

namespace {

// The barrier. Threads that have returned are not waited for.
struct {
  unsigned missing, live, phase;
  Clock clock, completed;
} gate;

struct Member {
  bool arrived;  // and has not waited since
  unsigned phase;
  Where where;
};
std::vector<Member> members;

// What a thread, or a copy's agent, has to do with the other blocks' shared memory.
struct Visit {
  uint32_t clock = 0;  // of the last access, 0: never
  Site site = 0;
  bool begun = false;  // whether the thread knows that the block has begun
};
std::vector<Visit> visits;
bool over[most_cluster];
std::deque<std::array<char, 16>> sent;  // values that st.async carries

unsigned visitors() { return block.slots + agents * block.cluster; }
Visit& visit(unsigned thread, unsigned rank) { return visits[thread * block.cluster + rank]; }

unsigned block_number(unsigned rank) { return block.linear * block.cluster + rank; }

bool alive(unsigned thread) { return block.fibers[thread].stack && block.fibers[thread].state != State::done; }

// The instruction is one of whole warps.
void check_warps() {
  for (unsigned i = 0; i < block.slots; ++i) {
    const Member &one = members[i], &first = members[i / 32 * 32];
    if (alive(i) && alive(i / 32 * 32) && one.where.line != first.where.line)
      fail(Fault::barrier, site_of(one.where), site_of(first.where),
           "lanes of a warp arrive at the cluster's barrier in different branches");
  }
}

void open_if_complete() {
  if (gate.missing || !gate.live) return;
  check_warps();
  gate.missing = gate.live;
  ++gate.phase;
  gate.completed = std::move(gate.clock);
  gate.clock.clear();
  for (Fiber& fiber : block.fibers)
    if (fiber.state == State::at_cluster) fiber.state = State::ready;
}

}  // namespace

void clusters_begin() {
  gate = {block.threads * block.cluster, block.threads * block.cluster, 0, {}, {}};
  members.assign(block.slots, {});
  visits.assign(block.cluster == 1 ? 0 : size_t(visitors()) * block.cluster, {});
  std::fill(over, over + block.cluster, false);
  sent.clear();
}

unsigned cluster_missing() { return gate.missing; }

// ---- the barrier

// Relaxed, others learn of mbarriers alone, whose initialization has a fence of its own.
void cluster_arrive(bool release, Where where) {
  Member& self = members[block.running];
  if (self.arrived)
    fail(Fault::barrier, site_of(where), site_of(self.where),
         "thread %u arrives at the cluster's barrier again, without waiting in between", current.linear);
  self = {true, gate.phase, where};
  if (release)
    clock_release(gate.clock, block.running);
  else
    clock_join(gate.clock, clock_at(block.running, last_init_fence(block.running)));
  --gate.missing;
  open_if_complete();
}

void cluster_wait(Where where) {
  Member& self = members[block.running];
  if (!self.arrived)
    fail(Fault::barrier, site_of(where), 0, "thread %u waits at the cluster's barrier without having arrived",
         current.linear);
  if (self.phase == gate.phase) wait(State::at_cluster, where);
  self.arrived = false;
  clock_acquire(block.running, gate.completed);
  for (unsigned rank = 0; rank < block.cluster && block.cluster > 1; ++rank) visit(block.running, rank).begun = true;
}

void clusters_end_thread() {
  const Member& self = members[block.running];
  --gate.live;
  if (!self.arrived || self.phase != gate.phase) --gate.missing;
  running().state = State::done;
  open_if_complete();
}

// ---- other blocks' shared memory

void check_peer(unsigned rank, Site site) {
  if (over[rank])
    fail(Fault::race, site, 0, "thread %u accesses the shared memory of block %u, which has returned", current.linear,
         block_number(rank));
  Visit& mine = visit(block.running, rank);
  for (unsigned i = rank * block.stride, end = i + block.threads; i < end && !mine.begun; ++i)
    mine.begun = known(block.running, i) > 0;
  if (!mine.begun)
    fail(Fault::race, site, 0, "thread %u accesses the shared memory of block %u, which may not have begun",
         current.linear, block_number(rank));
  mine.clock = clock_of(block.running);
  mine.site = site;
}

// What was sent there has landed.
void visited_by(unsigned agent, unsigned rank, uint32_t clock, Site site) {
  visit(agent, rank).clock = clock;
  visit(agent, rank).site = site;
}

// A block's shared memory goes when its last thread returns: some thread of it must have waited for each access.
void clusters_end_block() {
  over[block.rank] = true;
  if (!checked() || block.cluster == 1) return;
  for (unsigned other = 0; other < visitors(); ++other) {
    const Visit& last = visit(other, block.rank);
    bool awaited = last.clock == 0;
    for (unsigned i = block.rank * block.stride, end = i + block.threads; i < end && !awaited; ++i)
      awaited = known(i, other) >= last.clock;
    if (awaited) continue;
    Text name;
    name_thread(other, block.linear, name);
    fail(Fault::race, last.site, 0, "%s accesses the shared memory of block %u, which may have returned", name,
         block_number(block.rank));
  }
}

unsigned cluster_rank() { return block.rank; }

unsigned cluster_size() { return block.cluster; }

// A rank, counted from 1, above 24 bits of an offset; with no rank, as in shared_address(), it is the block's own.
unsigned cluster_address(const void* shared, unsigned rank, Where where) {
  if (!is_shared(shared)) fail_invalid("this pointer does not point into the block's shared memory", where);
  if (rank >= block.cluster)
    fail(Fault::invalid, site_of(where), 0, "block %u of a cluster of %u", rank, block.cluster);
  return (rank + 1) << 24 | unsigned(static_cast<const char*>(shared) - block.shared);
}

void* cluster_pointer(unsigned address, size_t bytes, Where where) {
  const unsigned rank = address >> 24 ? (address >> 24) - 1 : block.rank, offset = address & 0xffffff;
  if (rank >= block.cluster || offset + bytes > block.shared_bytes)
    fail(Fault::out_of_bounds, site_of(where), 0, "%zu bytes at %#x, which is in no shared memory of the cluster",
         bytes, address);
  return block.arena + rank * block.window + offset;
}

// ---- copies to it

namespace {

void send(unsigned to, const char* from, size_t bytes, size_t alignment, unsigned barrier, Where where) {
  if (block.cluster == 1)  // Hopper takes it for an illegal instruction, even if a block means itself
    fail_invalid("a copy to the shared memory of a cluster, in a launch without clusters", where);
  if (to >> 24 != barrier >> 24)
    fail_invalid("a copy reports to an mbarrier that is not in the block that it goes to", where);
  auto* const target = static_cast<char*>(cluster_pointer(to, bytes, where));
  auto* const mbarrier = static_cast<uint64_t*>(cluster_pointer(barrier, 8, where));
  const unsigned rank = (to >> 24) - 1;
  const bool elsewhere = to >> 24 && rank != block.rank;
  const Visit before = elsewhere ? visit(block.running, rank) : Visit{};
  touch(target, bytes, Access::write, alignment, where);
  issue_to(mbarrier, {{target, from, bytes, bytes, 0, site_of(where), false}}, bytes, where, elsewhere);
  if (elsewhere) visit(block.running, rank) = before;  // the copy accesses that block's memory, and the thread does not
}

}  // namespace

void bulk_send(unsigned to, const void* shared, unsigned bytes, unsigned barrier, Where where) {
  check_size(bytes % 16 == 0 && bytes > 0, "a bulk copy", bytes, where);
  touch(shared, bytes, Access::read, 16, where);
  check_in_shared(shared, bytes, "a bulk copy", where);
  if (checked()) memory_begin_reading(shared, bytes, site_of(where));
  send(to, static_cast<const char*>(shared), bytes, 16, barrier, where);
}

void store_async(unsigned to, const void* value, size_t bytes, unsigned barrier, Where where) {
  sent.emplace_back();
  memcpy(sent.back().data(), value, bytes);
  send(to, sent.back().data(), bytes, bytes, barrier, where);
}

}  // namespace emulated
