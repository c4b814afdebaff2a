// Asynchronous copies that a thread waits for in groups: cp.async, and bulk stores. And the fences that go with them.
#include "copies.h"

#include <algorithm>
#include <cstring>
#include <deque>

namespace emulated {

namespace {

struct Loads {
  std::deque<Copy> copies;
  unsigned open = 0;  // number of the group that is being filled
};

struct Store {
  char* to;
  const char* from;
  std::vector<char> data;  // what was read of the source, once it is
  size_t bytes;
  unsigned group;
  Site site;
  bool read, written;
  bool released;  // waited for, so that the source may be overwritten
};

struct Stores {
  std::deque<Store> stores;
  unsigned open = 0;
};

// Moments of a thread's fences, in order.
struct Fences {
  std::vector<uint32_t> proxy, init;
};

std::vector<Loads> loads;
std::vector<Stores> stores;
std::vector<Fences> fences;
unsigned ended[most_cluster];  // threads of each block

unsigned first_unfinished(unsigned open, int in_flight, const char* instruction, Where where) {
  if (in_flight < 0) fail(Fault::invalid, site_of(where), 0, "%s %d", instruction, in_flight);
  return open > unsigned(in_flight) ? open - unsigned(in_flight) : 0;
}

void read_source(Store& store) {
  if (store.read) return;
  store.data.assign(store.from, store.from + store.bytes);
  store.read = true;
}

void write_target(Store& store) {
  if (store.written) return;
  read_source(store);
  memcpy(store.to, store.data.data(), store.bytes);
  store.written = true;
}

// Any fence after `clock` will do that the other thread comes after; the first is the likeliest.
bool covered(const std::vector<uint32_t>& moments, unsigned thread, uint32_t clock, unsigned other) {
  const auto first = std::lower_bound(moments.begin(), moments.end(), clock);
  return first != moments.end() && *first <= known(other, thread);
}

void fence(std::vector<uint32_t>& moments) {
  if (!checked()) return;
  Clock unused;
  moments.push_back(clock_of(block.running));
  clock_release(unused, block.running);  // what the thread does from here on, the fence does not cover
}

}  // namespace

// ---- what all copies share

bool lands_at_once() {
  return launch->completion == Completion::early || (launch->completion == Completion::random && random_below(2));
}

void land(Copy& copy) {
  if (copy.landed) return;
  memcpy(copy.to, copy.from, copy.filled);
  memset(copy.to + copy.filled, 0, copy.bytes - copy.filled);
  copy.landed = true;
}

void issue(Copy& copy, bool at_once) {
  if (at_once) {
    land(copy);
  } else {
    memset(copy.to, 0xDB, copy.bytes);
  }
  if (checked()) memory_in_flight(copy.to, copy.bytes, copy.site);
}

void check_size(bool sound, const char* what, size_t bytes, Where where) {
  if (!sound) fail(Fault::invalid, site_of(where), 0, "%s of %zu bytes", what, bytes);
}

void check_in_shared(const void* shared, size_t bytes, const char* what, Where where) {
  if (!is_shared(shared) || !is_shared(static_cast<const char*>(shared) + bytes - 1))
    fail(Fault::out_of_bounds, site_of(where), 0, "%s whose shared side is not in shared memory", what);
}

void check_spaces(const void* shared, const void* global, size_t bytes, const char* what, Where where) {
  check_in_shared(shared, bytes, what, where);
  if (is_shared(global)) fail(Fault::out_of_bounds, site_of(where), 0, "%s between two places in shared memory", what);
}

std::vector<Copy> take_copies(unsigned thread) {
  std::deque<Copy>& copies = loads[thread].copies;
  std::vector<Copy> taken(copies.begin(), copies.end());
  copies.clear();
  return taken;
}

void copies_begin_block() {
  loads.assign(block.slots, {});
  stores.assign(block.slots, {});
  fences.assign(block.slots, {});
  std::fill(ended, ended + block.cluster, 0);
  mbarriers_begin_block();
}

// A copy must not outlive its block: the shared memory becomes another's.
void copies_end_thread() {
  const std::deque<Copy>& copies = loads[block.running].copies;
  if (checked() && !copies.empty())
    fail(Fault::in_flight, copies.front().site, 0, "thread %u returns with a cp.async in flight", current.linear);
  for (Store& store : stores[block.running].stores) {
    if (checked() && !store.released)
      fail(Fault::in_flight, store.site, 0, "thread %u returns without waiting for a bulk store to read its source",
           current.linear);
    write_target(store);
  }
  clusters_end_thread();
  if (++ended[block.rank] < block.threads) return;
  mbarriers_end_block();
  clusters_end_block();
}

// ---- cp.async

void copy_async(void* shared, const void* global, int bytes, int source_bytes, Where where) {
  const Site site = site_of(where);
  check_size(bytes == 4 || bytes == 8 || bytes == 16, "a cp.async", size_t(bytes), where);
  check_size(source_bytes >= 0 && source_bytes <= bytes, "a cp.async whose source is", size_t(source_bytes), where);
  touch(shared, size_t(bytes), Access::write, size_t(bytes), where);
  check_in_shared(shared, size_t(bytes), "a cp.async", where);
  // A source of no bytes is not looked at: it may be anywhere, even where shared memory happens to be.
  if (source_bytes) check_spaces(shared, global, size_t(bytes), "a cp.async", where);
  if (reinterpret_cast<uintptr_t>(global) % unsigned(bytes))
    fail(Fault::misaligned, site, 0, "a cp.async of %d bytes from address %p", bytes, global);
  if (source_bytes) touch(global, size_t(source_bytes), Access::read, 1, where);
  Loads& mine = loads[block.running];
  Copy copy{static_cast<char*>(shared), static_cast<const char*>(global), size_t(bytes), size_t(source_bytes),
            mine.open, site, false};
  issue(copy, lands_at_once());
  mine.copies.push_back(copy);
}

void copy_async_commit() { ++loads[block.running].open; }

// A cp.async lands as a write of the thread that waits for it: others need a barrier after that.
void copy_async_wait(int groups_in_flight, Where where) {
  Loads& mine = loads[block.running];
  const unsigned below = first_unfinished(mine.open, groups_in_flight, "cp.async.wait_group", where);
  while (!mine.copies.empty() && mine.copies.front().group < below) {
    Copy& copy = mine.copies.front();
    land(copy);
    if (checked()) memory_landed(copy.to, copy.bytes, block.running, clock_of(block.running), copy.site);
    mine.copies.pop_front();
  }
}

// ---- bulk stores

void bulk_store(void* global, const void* shared, unsigned bytes, Where where) {
  check_size(bytes % 16 == 0 && bytes > 0, "a bulk copy", bytes, where);
  touch(shared, bytes, Access::read, 16, where);
  touch(global, bytes, Access::write, 16, where);
  check_spaces(shared, global, bytes, "a bulk store", where);
  issue_store(global, shared, bytes, where);
}

void issue_store(void* global, const void* shared, size_t bytes, Where where) {
  if (checked()) memory_begin_reading(shared, bytes, site_of(where));
  Stores& mine = stores[block.running];
  mine.stores.push_back({static_cast<char*>(global), static_cast<const char*>(shared), {}, bytes, mine.open,
                         site_of(where), false, false, false});
  if (lands_at_once()) write_target(mine.stores.back());
}

void bulk_commit() { ++stores[block.running].open; }

void bulk_wait(int groups_in_flight, bool read_only, Where where) {
  Stores& mine = stores[block.running];
  const unsigned below = first_unfinished(mine.open, groups_in_flight, "cp.async.bulk.wait_group", where);
  for (Store& store : mine.stores) {
    if (store.group >= below) break;
    read_source(store);
    if (!read_only || lands_at_once()) write_target(store);
    if (checked() && !store.released)
      memory_end_reading(store.from, store.bytes, block.running, clock_of(block.running), store.site);
    store.released = true;
  }
  while (!mine.stores.empty() && mine.stores.front().group < below && mine.stores.front().written)
    mine.stores.pop_front();
}

// ---- fences

void fence_async_proxy() { fence(fences[block.running].proxy); }
void fence_barrier_init() { fence(fences[block.running].init); }

bool fenced(unsigned thread, uint32_t clock, unsigned other) {
  return thread >= block.slots || covered(fences[thread].proxy, thread, clock, other);  // what copies write needs no fence
}

uint32_t last_init_fence(unsigned thread) {
  const std::vector<uint32_t>& moments = fences[thread].init;
  return moments.empty() ? 0 : moments.back();
}

bool init_fenced(unsigned thread, uint32_t clock) {
  const Fences& of_thread = fences[thread];
  return covered(of_thread.init, thread, clock, block.running) || covered(of_thread.proxy, thread, clock, block.running);
}

}  // namespace emulated
