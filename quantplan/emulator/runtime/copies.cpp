// Asynchronous copies: cp.async with its groups, mbarriers, and bulk copies that report to them.
//
// A copy is issued, lands at a moment that the completion policy picks, and is visible only to who waited for it. Until
// then its destination holds garbage and may not be touched.
#include <cstdio>
#include <cstring>

#include <deque>
#include <map>

#include "runtime.h"

namespace emulated {

namespace {

struct Copy {
  char* to;
  const char* from;
  size_t bytes, filled;  // bytes read from the source; the rest becomes zero
  unsigned group;
  Site site;
  bool landed;
};

struct Groups {
  std::deque<Copy> copies;
  unsigned open = 0;  // number of the group that is being filled
};

struct Phase {
  unsigned expected = 0, pending = 0;
  long long bytes = 0;  // outstanding; may fall below zero before the announcement
  unsigned parity = 0;
  Clock clock, completed;
  std::deque<Copy> loads;
};

std::vector<Groups> per_thread, stores;
std::vector<std::vector<uint32_t>> fences;  // moments of each thread's fences of the asynchronous proxy
std::map<const void*, Phase> phases;

bool at_issue() {
  return launch->completion == Completion::early || (launch->completion == Completion::random && random_below(2));
}

void land(Copy& copy) {
  if (copy.landed) return;
  memcpy(copy.to, copy.from, copy.filled);
  memset(copy.to + copy.filled, 0, copy.bytes - copy.filled);
  copy.landed = true;
}

// Returns whether the copy has landed already; else its destination is garbage from now on.
bool issue(Copy& copy) {
  const bool now = at_issue();
  if (now) {
    land(copy);
  } else if (is_shared(copy.to)) {
    memset(copy.to, 0xDB, copy.bytes);
  }
  return now;
}

// cp.async lands as a write of the thread that waits for it: others need a barrier after that.
void finish(Groups& groups, unsigned below) {
  while (!groups.copies.empty() && groups.copies.front().group < below) {
    Copy& copy = groups.copies.front();
    land(copy);
    if (checked()) memory_landed(copy.to, copy.bytes, block.running, clock_of(block.running), copy.site);
    groups.copies.pop_front();
  }
}

void check_size(bool sound, const char* what, size_t bytes, Where where) {
  if (!sound) fail(Fault::invalid, site_of(where), 0, "%s of %zu bytes", what, bytes);
}

Phase& phase_of(uint64_t* barrier, Where where) {
  const auto found = phases.find(barrier);
  if (found == phases.end()) fail(Fault::invalid, site_of(where), 0, "an mbarrier that was not initialized");
  return found->second;
}

void complete_if_done(Phase& phase) {
  if (phase.pending || phase.bytes) return;
  phase.pending = phase.expected;
  phase.parity ^= 1;
  phase.completed = phase.clock;
}

void land_load(Phase& phase) {
  Copy copy = phase.loads.front();
  phase.loads.pop_front();
  land(copy);
  const uint32_t now = clock_tick_agent(phase.clock);
  if (checked()) memory_landed(copy.to, copy.bytes, block.threads, now, copy.site);
  phase.bytes -= static_cast<long long>(copy.bytes);
  complete_if_done(phase);
}

void arrive(Phase& phase, unsigned count, Where where) {
  if (count > phase.pending)
    fail(Fault::barrier, site_of(where), 0, "%u arrivals at an mbarrier that waits for %u more", count, phase.pending);
  clock_release(phase.clock, block.running);
  phase.pending -= count;
  complete_if_done(phase);
}

}  // namespace

void copies_begin_block() {
  per_thread.assign(block.threads, {});
  stores.assign(block.threads, {});
  fences.assign(block.threads, {});
  phases.clear();
}

void copies_end_thread() {
  Groups& groups = per_thread[block.running];
  if (checked() && !groups.copies.empty())
    fail(Fault::in_flight, groups.copies.front().site, 0, "thread %u returns with a cp.async in flight", block.running);
  for (Copy& copy : stores[block.running].copies) land(copy);
}

// ---- cp.async

void copy_async(void* shared, const void* global, int bytes, int source_bytes, Where where) {
  const Site site = site_of(where);
  check_size(bytes == 4 || bytes == 8 || bytes == 16, "a cp.async", size_t(bytes), where);
  check_size(source_bytes >= 0 && source_bytes <= bytes, "a cp.async whose source is", size_t(source_bytes), where);
  if (!is_shared(shared)) fail(Fault::out_of_bounds, site, 0, "a cp.async whose destination is no shared memory");
  touch(shared, size_t(bytes), Access::write, size_t(bytes), where);
  if (reinterpret_cast<uintptr_t>(global) % unsigned(bytes))
    fail(Fault::misaligned, site, 0, "a cp.async of %d bytes from address %p", bytes, global);
  if (checked() && source_bytes) access(reinterpret_cast<uintptr_t>(global), size_t(source_bytes), Access::read, site);
  Groups& groups = per_thread[block.running];
  Copy copy{static_cast<char*>(shared), static_cast<const char*>(global), size_t(bytes), size_t(source_bytes),
            groups.open, site, false};
  issue(copy);
  if (checked()) memory_in_flight(shared, size_t(bytes), site);
  groups.copies.push_back(copy);
}

void copy_async_commit() { ++per_thread[block.running].open; }

void copy_async_wait(int groups_in_flight, Where where) {
  if (groups_in_flight < 0) fail(Fault::invalid, site_of(where), 0, "cp.async.wait_group %d", groups_in_flight);
  Groups& groups = per_thread[block.running];
  const unsigned open = groups.open, left = unsigned(groups_in_flight);
  finish(groups, open > left ? open - left : 0);
}

// ---- mbarriers

void barrier_init(uint64_t* barrier, unsigned count, Where where) {
  touch(barrier, sizeof *barrier, Access::write, 8, where);
  if (!is_shared(barrier)) fail(Fault::invalid, site_of(where), 0, "an mbarrier outside shared memory");
  if (count < 1 || count >= 1u << 20) fail(Fault::invalid, site_of(where), 0, "an mbarrier for %u arrivals", count);
  *barrier = 0;
  Phase& phase = phases[barrier] = {};
  phase.expected = phase.pending = count;
}

void barrier_invalidate(uint64_t* barrier, Where where) {
  touch(barrier, sizeof *barrier, Access::write, 8, where);
  phase_of(barrier, where);
  phases.erase(barrier);
}

// Operations on an mbarrier read its word: they must be ordered after its initialization, and not after each other.
void barrier_arrive(uint64_t* barrier, unsigned count, Where where) {
  touch(barrier, sizeof *barrier, Access::read, 8, where);
  arrive(phase_of(barrier, where), count, where);
}

void barrier_expect(uint64_t* barrier, unsigned bytes, Where where) {
  touch(barrier, sizeof *barrier, Access::read, 8, where);
  phase_of(barrier, where).bytes += bytes;
}

bool barrier_try_wait(uint64_t* barrier, unsigned parity, Where where) {
  touch(barrier, sizeof *barrier, Access::read, 8, where);
  const bool spurious = launch->completion != Completion::early && random_below(4) == 0;
  if (!spurious) {
    Phase* phase = &phase_of(barrier, where);
    if (phase->parity == (parity & 1)) {  // the phase of that parity is the current one: let others go on
      wait(State::polling, where);
      phase = &phase_of(barrier, where);
      if (!phase->loads.empty()) land_load(*phase);
    }
    if (phase->parity != (parity & 1)) {
      clock_acquire(block.running, phase->completed);
      return true;
    }
  }
  wait(State::polling, where);
  return false;
}

void copy_async_arrive(uint64_t* barrier, bool no_increment, Where where) {
  touch(barrier, sizeof *barrier, Access::read, 8, where);
  Phase& phase = phase_of(barrier, where);
  if (!no_increment) ++phase.pending;
  Groups& groups = per_thread[block.running];
  finish(groups, groups.open + 1);
  arrive(phase, 1, where);
}

// ---- bulk copies

void bulk_load(void* shared, const void* global, unsigned bytes, uint64_t* barrier, Where where) {
  const Site site = site_of(where);
  check_size(bytes % 16 == 0 && bytes > 0, "a bulk copy", bytes, where);
  touch(barrier, sizeof *barrier, Access::read, 8, where);
  touch(shared, bytes, Access::write, 16, where);
  touch(global, bytes, Access::read, 16, where);
  if (!is_shared(shared)) fail(Fault::out_of_bounds, site, 0, "a bulk load whose destination is no shared memory");
  Phase& phase = phase_of(barrier, where);
  Copy copy{static_cast<char*>(shared), static_cast<const char*>(global), bytes, bytes, 0, site, false};
  const bool now = issue(copy);
  if (checked()) memory_in_flight(shared, bytes, site);
  phase.loads.push_back(copy);
  if (now) land_load(phase);
}

void bulk_store(void* global, const void* shared, unsigned bytes, Where where) {
  check_size(bytes % 16 == 0 && bytes > 0, "a bulk copy", bytes, where);
  touch(shared, bytes, Access::read, 16, where);
  touch(global, bytes, Access::write, 16, where);
  if (!is_shared(shared)) fail(Fault::out_of_bounds, site_of(where), 0, "a bulk store whose source is no shared memory");
  if (checked()) memory_begin_reading(shared, bytes, site_of(where));
  Groups& groups = stores[block.running];
  Copy copy{static_cast<char*>(global), static_cast<const char*>(shared), bytes, bytes, groups.open, site_of(where),
            false};
  issue(copy);
  groups.copies.push_back(copy);
}

void bulk_commit() { ++stores[block.running].open; }

void bulk_wait(int groups_in_flight, bool, Where where) {
  if (groups_in_flight < 0) fail(Fault::invalid, site_of(where), 0, "cp.async.bulk.wait_group %d", groups_in_flight);
  Groups& groups = stores[block.running];
  const unsigned left = unsigned(groups_in_flight), below = groups.open > left ? groups.open - left : 0;
  while (!groups.copies.empty() && groups.copies.front().group < below) {
    Copy& copy = groups.copies.front();
    land(copy);
    if (checked()) memory_end_reading(copy.from, copy.bytes, copy.site);
    groups.copies.pop_front();
  }
}

void fence_async_proxy() {
  if (!checked()) return;
  Clock unused;
  fences[block.running].push_back(clock_of(block.running));
  clock_release(unused, block.running);  // what the thread writes from here on, the fence does not cover
}

bool fenced(unsigned thread, uint32_t clock) {
  if (thread >= block.threads) return true;  // written by an asynchronous copy
  for (const uint32_t fence : fences[thread])
    if (clock <= fence && happened_before(thread, fence)) return true;
  return false;
}

}  // namespace emulated
