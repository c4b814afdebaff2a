// Mbarriers, and the copies that report to them: bulk loads, and the cp.async that a thread has handed over.
//
//   arrivals, now or when copies land ─▶ pending ─┐
//   expect_tx (+), bulk loads that land (−) ─▶ bytes ─┴─ both zero ─▶ the parity flips, and who polls goes on
#include <map>

#include "copies.h"

namespace emulated {

namespace {

constexpr unsigned most = (1u << 20) - 1;  // arrivals, and bytes, that an mbarrier counts

// What lands at once: a bulk load, which counts bytes, or a thread's cp.async, which count as an arrival.
struct Landing {
  std::vector<Copy> copies;
  unsigned arrivals;
  long long bytes;
  Site site;
  bool sent = false;  // by another block
};

// What who waits comes after: all of it, or what happened at the scope of the mbarrier's block.
struct Releases {
  Clock all, own;  // alone, a block has no `own`
};

struct Phase {
  unsigned expected = 0, pending = 0;
  long long bytes = 0;  // outstanding; below zero when copies land before they are announced
  unsigned parity = 0;
  Releases releases, completed;
  std::vector<Landing> landings;
  unsigned agent = none;
  unsigned rank = 0;  // of its block
  Site init_site = 0;  // and who initialized it, when
  unsigned init_thread = 0;
  uint32_t init_clock = 0;
};

std::map<const void*, Phase> phases;
unsigned reported_to;  // mbarriers that copies have reported to

// Operations on an mbarrier read its word: they must be ordered after its initialization, and not after each other.
Phase& phase_of(uint64_t* barrier, Where where) {
  touch(barrier, sizeof *barrier, Access::read, 8, where);
  const auto found = phases.find(barrier);
  if (found == phases.end()) fail(Fault::barrier, site_of(where), 0, "an mbarrier that was not initialized");
  return found->second;
}

void count_down(Phase& phase, unsigned arrivals, Site site) {
  if (arrivals > phase.pending)
    fail(Fault::barrier, site, 0, "%u arrivals at an mbarrier that waits for %u more", arrivals, phase.pending);
  phase.pending -= arrivals;
}

void complete_if_done(Phase& phase) {
  ++progress;
  if (phase.pending || phase.bytes) return;
  phase.pending = phase.expected;
  phase.parity ^= 1;
  phase.completed = phase.releases;
}

// At the scope of a block, another block's threads learn of nothing but that the thread's loads are over.
void release(Phase& phase, bool cluster) {
  if (block.cluster == 1) return clock_release(phase.releases.all, block.running);
  Clock loads, everything;
  clock_release_over(loads, block.running);
  clock_release(everything, block.running);
  const bool own = phase.rank == block.rank;
  clock_join(phase.releases.own, own ? everything : loads);
  clock_join(phase.releases.all, own || cluster ? everything : loads);
}

void arrive(Phase& phase, unsigned count, bool cluster, Where where) {
  count_down(phase, count, site_of(where));
  release(phase, cluster);
  complete_if_done(phase);
}

void land(Phase& phase, size_t index) {
  Landing landing = std::move(phase.landings[index]);
  phase.landings.erase(phase.landings.begin() + static_cast<long>(index));
  if (phase.agent == none) phase.agent = block.slots + reported_to++ % (agents * block.cluster);
  const uint32_t now = clock_tick_agent(phase.agent, phase.releases.all);
  if (block.cluster > 1) clock_join(phase.releases.own, clock_at(phase.agent, now));
  if (landing.sent) visited_by(phase.agent, phase.rank, now, landing.site);
  for (Copy& copy : landing.copies) {
    land(copy);
    if (!checked()) continue;
    memory_landed(copy.to, copy.bytes, phase.agent, now, copy.site);
    if (in_arena(copy.from)) memory_end_reading(copy.from, copy.bytes, phase.agent, now, copy.site);
  }
  count_down(phase, landing.arrivals, landing.site);
  phase.bytes -= landing.bytes;
  complete_if_done(phase);
}

void track(Phase& phase, Landing landing, bool landed) {
  phase.landings.push_back(std::move(landing));
  if (landed) land(phase, phase.landings.size() - 1);
}

// Copies that were not fast enough to be there at once land when somebody asks for them, in any order.
void land_some(Phase& phase) {
  size_t count = phase.landings.size();
  if (count && launch->completion == Completion::random) count = 1 + random_below(count);
  for (; count; --count) land(phase, random_below(phase.landings.size()));
}

}  // namespace

void mbarriers_begin_block() {
  phases.clear();
  reported_to = 0;
}

void mbarriers_end_block() {
  if (!checked()) return;
  for (const auto& [address, phase] : phases)
    for (const Landing& landing : phase.landings)
      if (phase.rank == block.rank)
        fail(Fault::in_flight, landing.site, 0, "the block ends with copies in flight to an mbarrier");
      else if (!landing.copies.empty() && is_shared(landing.copies.front().from))
        fail(Fault::in_flight, landing.site, 0, "the block ends while a bulk copy reads its shared memory");
}

// ---- life

void barrier_init(uint64_t* barrier, unsigned count, Where where) {
  const Site site = site_of(where);
  touch(barrier, sizeof *barrier, Access::write, 8, where);
  if (!is_shared(barrier)) fail(Fault::barrier, site, 0, "an mbarrier outside shared memory");
  if (count < 1 || count > most) fail(Fault::barrier, site, 0, "an mbarrier for %u arrivals", count);
  if (const auto old = phases.find(barrier); old != phases.end())
    fail(Fault::barrier, site, old->second.init_site, "an mbarrier is initialized again, without mbarrier.inval");
  *barrier = 0;
  Phase& phase = phases[barrier];
  phase.expected = phase.pending = count;
  phase.init_site = site;
  phase.rank = block.rank;
  phase.init_thread = block.running;
  if (checked()) phase.init_clock = clock_of(block.running);
}

void barrier_invalidate(uint64_t* barrier, Where where) {
  touch(barrier, sizeof *barrier, Access::write, 8, where);
  const Phase& phase = phase_of(barrier, where);
  if (!phase.landings.empty())
    fail(Fault::in_flight, site_of(where), phase.landings.front().site, "copies in flight report to this mbarrier");
  phases.erase(barrier);
}

// ---- arrivals

void barrier_arrive(uint64_t* barrier, unsigned count, bool cluster, Where where) {
  Phase& phase = phase_of(barrier, where);
  if (count < 1 || count > most) fail(Fault::barrier, site_of(where), 0, "%u arrivals at once", count);
  arrive(phase, count, cluster, where);
}

void barrier_expect(uint64_t* barrier, unsigned bytes, Where where) {
  Phase& phase = phase_of(barrier, where);
  if (phase.pending == 0)
    fail(Fault::barrier, site_of(where), 0, "expect_tx after the phase's last arrival: it may be over already");
  phase.bytes += bytes;
  if (phase.bytes > most)
    fail(Fault::barrier, site_of(where), 0, "%lld bytes expected, and an mbarrier counts up to %u", phase.bytes, most);
}

// What the thread has issued so far is the mbarrier's from here on: nobody else's wait covers it, not even the thread's.
void copy_async_arrive(uint64_t* barrier, bool no_increment, Where where) {
  Phase& phase = phase_of(barrier, where);
  if (!no_increment) ++phase.pending;
  track(phase, {take_copies(block.running), 1, 0, site_of(where)}, lands_at_once());
}

// ---- waits

bool barrier_try_wait(uint64_t* barrier, unsigned parity, bool cluster, Where where) {
  Phase* phase = &phase_of(barrier, where);
  if (parity > 1) fail(Fault::invalid, site_of(where), 0, "a phase's parity is 0 or 1, not %u", parity);
  const bool spurious = launch->completion != Completion::early && random_below(4) == 0;
  if (!spurious && phase->parity == parity) {  // that phase is the current one: let others go on
    wait(State::polling, where);
    phase = &phase_of(barrier, where);
    land_some(*phase);
  }
  if (!spurious && phase->parity != parity) {
    clock_acquire(block.running, cluster || block.cluster == 1 ? phase->completed.all : phase->completed.own);
    return true;
  }
  wait(State::polling, where);
  return false;
}

// ---- bulk loads

void issue_to(uint64_t* barrier, std::vector<Copy> copies, size_t bytes, Where where, bool sent) {
  const Site site = site_of(where);
  Phase& phase = phase_of(barrier, where);
  if (checked() && !init_fenced(phase.init_thread, phase.init_clock)) {
    Text name;
    name_thread(phase.init_thread, block.linear, name);
    fail(Fault::race, site, phase.init_site,
         "a bulk copy reports to an mbarrier that %s initialized without a fence after it", name);
  }
  const bool at_once = lands_at_once();
  for (Copy& copy : copies) issue(copy, at_once);
  track(phase, {std::move(copies), 0, static_cast<long long>(bytes), site, sent}, at_once);
}

void bulk_load(void* shared, const void* global, unsigned bytes, uint64_t* barrier, Where where) {
  check_size(bytes % 16 == 0 && bytes > 0, "a bulk copy", bytes, where);
  touch(shared, bytes, Access::write, 16, where);
  touch(global, bytes, Access::read, 16, where);
  check_spaces(shared, global, bytes, "a bulk load", where);
  const Copy copy{static_cast<char*>(shared), static_cast<const char*>(global), bytes, bytes, 0, site_of(where), false};
  issue_to(barrier, {copy}, bytes, where);
}

}  // namespace emulated
