// wgmma: matrix multiplications of warp groups, which a group issues and waits for.
//
//   issue ─────────▶ the group's agent reads both matrices, at a moment that who waits will come after; sums are taken
//     │              out of the threads' arrays, which hold garbage from here on
//   completion ────▶ at once or when waited for, in the order of issue: products are added to the sums
//     │
//   wait ──────────▶ who waited comes after the reading
//     │
//   fence_operand ─▶ sums go back into the array
//
// The runtime sees each access to an array that it knows, for it is local memory whose address was given away.
#include <emulated/warp_group.h>

#include <algorithm>
#include <cstring>
#include <deque>
#include <list>

#include "copies.h"
#include "tiles.h"
#include "warp_groups.h"

namespace emulated {

namespace {

constexpr int garbage = 0xDB;

// ---- what a thread may do with an array of registers

enum class Hold : uint8_t {
  touched,  // accessed since the last fence
  pinned,   // and then the operand of a compiler's fence
  fenced,   // and then wgmma.fence came
  read,     // A of a wgmma in flight
  sums,     // of a wgmma, until they are handed over
};

struct Array {
  uintptr_t begin;
  size_t bytes;
  Hold hold;
  unsigned readers;  // wgmmas in flight that have it as A
  Site site;         // of the newest wgmma
};

std::vector<std::vector<Array>> arrays;  // of each thread

Array* find(unsigned thread, const void* begin) {
  for (Array& array : arrays[thread])
    if (array.begin == reinterpret_cast<uintptr_t>(begin)) return &array;
  return nullptr;
}

// Of an array that must be fenced, in checked builds; others are taken as they are.
Array& ready(unsigned thread, const void* begin, size_t bytes, const char* what, Site site) {
  Array* array = find(thread, begin);
  const char* stack = block.fibers[thread].stack;
  if (begin < stack || begin >= stack + stack_bytes)
    fail(Fault::invalid, site, 0, "thread %u has %s in memory that is no array of its own", index_in_block(thread),
         what);
  if (checked() && (!array || array->hold == Hold::touched))
    fail(Fault::race, site, 0, "thread %u has touched %s, and no wgmma_fence_operand and wgmma_fence came since",
         index_in_block(thread), what);
  if (checked() && array->hold == Hold::pinned)
    fail(Fault::race, site, 0, "thread %u has touched %s, and no wgmma_fence came since", index_in_block(thread), what);
  if (!array) {
    arrays[thread].push_back({reinterpret_cast<uintptr_t>(begin), bytes, Hold::fenced, 0, site});
    array = &arrays[thread].back();
  }
  return *array;
}

// ---- what a group has issued; qp/ptx/wgmma.cuh draws which thread holds what

struct Sums {
  uint32_t* at[group_threads];
  int columns;
  Site site;
  unsigned in_flight = 0, held = 0;  // wgmmas; and threads that they were not handed over to
  std::vector<uint32_t> values;      // row by row

  uint32_t& value(unsigned t, int i) {
    const int row = int(16 * (t / 32) + t % 32 / 4) + 8 * (i / 2 % 2), column = 8 * (i / 4) + 2 * int(t % 4) + i % 2;
    return values[size_t(row * columns + column)];
  }
};

struct Operation {
  Wgmma call;
  const unsigned* a[group_threads];
  Sums* sums;
  unsigned group;
  uint32_t moment;
  Site site;
  bool complete;
};

struct WarpGroup {
  std::list<Sums> sums;
  std::deque<Operation> operations;
  unsigned open = 0;  // number of the group of wgmmas that is being filled
  Clock clock;
};

std::vector<WarpGroup> groups;

WarpGroup& mine() { return groups[running_group()]; }
unsigned agent() { return block.slots + agents * block.cluster + running_group(); }

// Where 16 bytes of a row lie, as a descriptor says it.
size_t offset_of(uint64_t descriptor, unsigned row, unsigned piece) {
  constexpr unsigned row_distance[] = {16, 128, 64, 32}, moved[] = {0, 7, 3, 1};
  const auto field = [descriptor](int at) { return unsigned(descriptor >> at & 0x3fff) << 4; };
  const unsigned swizzle = descriptor >> 62, base_offset = descriptor >> 49 & 7;
  const unsigned next = swizzle ? 16 : field(16);
  const size_t dense = field(0) + size_t(row / 8) * field(32) + row % 8 * row_distance[swizzle] + piece * next;
  return dense ^ ((dense / 128 - base_offset) & moved[swizzle]) << 4;
}

template <class Use>
void for_each_piece(uint64_t descriptor, int rows, Use use) {
  for (int r = 0; r < rows; ++r)
    for (int piece = 0; piece < 2; ++piece)
      use(r, piece, block.shared + offset_of(descriptor, unsigned(r), unsigned(piece)));
}

// ---- issue

void check_memory(const Wgmma& call, uint32_t moment, Site site) {
  static uint64_t readings;
  const Reading reading{++readings, first_thread(running_group()), agent(), moment, site};
  const auto check = [&](uint64_t descriptor, int rows, char which) {
    for_each_piece(descriptor, rows, [&](int row, int, const char* at) {
      if (!is_shared(at) || !is_shared(at + 15))
        fail(Fault::out_of_bounds, site, 0, "row %d of %c is at offset %zu of shared memory, which has %zu bytes", row,
             which, size_t(at - block.shared), block.shared_bytes);
      if (checked()) memory_read_by(reading, at, 16);
    });
  };
  if (!call.a_registers) check(call.a_descriptor, tile_rows, 'A');
  check(call.b_descriptor, call.columns, 'B');
}

void check_alike(const Wgmma& one, const Wgmma& other, unsigned thread, Site site) {
  const char* what = one.a_descriptor != other.a_descriptor   ? "descriptor of A"
                     : one.b_descriptor != other.b_descriptor ? "descriptor of B"
                     : one.accumulate != other.accumulate     ? "choice whether to accumulate"
                                                              : nullptr;
  if (what)
    fail(Fault::collective, site, 0, "thread %u of a warp group has another %s than its first thread", thread, what);
}

// Sums that are still held are those of an earlier wgmma, of the same shape.
Sums& sums_of(WarpGroup& group, void* const* threads, int columns, Site site) {
  const auto at = [threads](unsigned t) { return static_cast<Wgmma*>(threads[t])->sums; };
  for (Sums& sums : group.sums) {
    if (sums.at[0] >= at(0) + columns / 2 || at(0) >= sums.at[0] + sums.columns / 2) continue;
    if (sums.at[0] != at(0) || sums.columns != columns)
      fail(Fault::in_flight, site, sums.site, "the sums of a wgmma of another shape are not handed over yet");
    return sums;
  }
  Sums& sums = group.sums.emplace_back();
  sums.columns = columns;
  sums.values.resize(size_t(tile_rows) * unsigned(columns));
  for (unsigned t = 0; t < group_threads; ++t) sums.at[t] = at(t);
  return sums;
}

void take(Sums& sums, Site site) {
  const unsigned first = first_thread(running_group());
  const size_t bytes = unsigned(sums.columns) / 2 * sizeof(uint32_t);
  for (unsigned t = 0; t < group_threads; ++t) {
    Array& array = ready(first + t, sums.at[t], bytes, "its sums", site);
    array.site = site;
    if (array.hold == Hold::sums) continue;
    array.hold = Hold::sums;
    ++sums.held;
    for (int i = 0; i < sums.columns / 2; ++i) sums.value(t, i) = sums.at[t][i];
    memset(sums.at[t], garbage, bytes);
  }
  sums.site = site;
  ++sums.in_flight;
}

void complete(Operation& operation) {
  if (operation.complete) return;
  operation.complete = true;
  static Row a[tile_rows], b[most_columns];
  const Wgmma& call = operation.call;
  Sums& sums = *operation.sums;
  const auto load = [](uint64_t descriptor, int rows, Row* to) {
    for_each_piece(descriptor, rows,
                   [to](int row, int piece, const char* at) { memcpy(to[row] + 16 * piece, at, 16); });
  };
  load(call.b_descriptor, call.columns, b);
  if (!call.a_registers) {
    load(call.a_descriptor, tile_rows, a);
  } else {
    for (unsigned t = 0; t < group_threads; ++t)
      for (unsigned r = 0; r < 4; ++r)
        memcpy(a[16 * (t / 32) + t % 32 / 4 + 8 * (r % 2)] + 4 * (t % 4) + 16 * (r / 2), &operation.a[t][r], 4);
  }
  if (!call.accumulate) std::fill(sums.values.begin(), sums.values.end(), 0u);
  multiply_tiles(call.a, call.b, call.columns, a, b, sums.values.data());
}

void start(void* const* threads, unsigned) {
  WarpGroup& group = mine();
  const Site site = site_of(running().where);
  const unsigned first = first_thread(running_group());
  Operation operation{*static_cast<Wgmma*>(threads[0]), {}, nullptr, group.open, 0, site, false};
  for (unsigned t = 0; t < group_threads; ++t) {
    const auto& call = *static_cast<Wgmma*>(threads[t]);
    check_alike(operation.call, call, t, site);
    operation.a[t] = call.a_registers;
    if (!call.a_registers) continue;
    Array& array = ready(first + t, call.a_registers, 4 * sizeof(unsigned), "its A", site);
    array.hold = Hold::read;
    array.site = site;
    ++array.readers;
  }
  operation.moment = clock_tick_agent(agent(), group.clock);
  check_memory(operation.call, operation.moment, site);
  operation.sums = &sums_of(group, threads, operation.call.columns, site);
  take(*operation.sums, site);
  group.operations.push_back(operation);
  if (lands_at_once())
    for (Operation& earlier : group.operations) complete(earlier);
}

// ---- the other instructions

void fence(void* const*, unsigned) {
  const unsigned first = first_thread(running_group());
  for (unsigned t = first; t < first + group_threads; ++t)
    for (Array& array : arrays[t])
      if (array.hold == Hold::pinned) array.hold = Hold::fenced;
}

void commit(void* const*, unsigned) { ++mine().open; }

void finish(Operation& operation) {
  const unsigned first = first_thread(running_group());
  complete(operation);
  --operation.sums->in_flight;
  for (unsigned t = 0; t < group_threads; ++t) {
    if (checked()) known(first + t, agent()) = std::max(known(first + t, agent()), operation.moment);
    if (Array* a = operation.a[t] ? find(first + t, operation.a[t]) : nullptr; a && --a->readers == 0)
      a->hold = Hold::fenced;
  }
}

void wait_for_groups(void* const* threads, unsigned) {
  WarpGroup& group = mine();
  const auto in_flight = unsigned(*static_cast<int*>(threads[0]));
  const unsigned below = group.open > in_flight ? group.open - in_flight : 0;
  while (!group.operations.empty() && group.operations.front().group < below) {
    finish(group.operations.front());
    group.operations.pop_front();
  }
}

void hand_over(Array& array, const void* registers) {
  WarpGroup& group = mine();
  const unsigned t = block.running % group_threads;
  const auto sums = std::find_if(group.sums.begin(), group.sums.end(),
                                 [t, registers](const Sums& each) { return each.at[t] == registers; });
  if (sums->in_flight) return;
  for (int i = 0; i < sums->columns / 2; ++i) sums->at[t][i] = sums->value(t, i);
  array.hold = Hold::pinned;
  if (--sums->held == 0) group.sums.erase(sums);
}

}  // namespace

void wgmma_begin_block() {
  arrays.assign(block.slots, {});
  groups.assign((block.slots + group_threads - 1) / group_threads, {});
}

void wgmma_end_thread() {
  if (!checked() || block.running / group_threads >= groups.size()) return;
  for (const Operation& operation : mine().operations)
    fail(Fault::in_flight, operation.site, 0, "thread %u returns with a wgmma in flight%s", current.linear,
         operation.group == mine().open ? ", which no wgmma_commit_group came after" : "");
}

void registers_accessed(uintptr_t address, size_t bytes, Access kind, Site site) {
  for (Array& array : arrays[block.running]) {
    if (address >= array.begin + array.bytes || address + bytes <= array.begin) continue;
    if (array.hold == Hold::sums)
      fail(Fault::in_flight, site, array.site,
           "thread %u %s sums of a wgmma, before wgmma_wait_group and wgmma_fence_operand have handed them over",
           current.linear, kind == Access::read ? "reads" : "writes");
    if (array.hold == Hold::read && kind != Access::read)
      fail(Fault::in_flight, site, array.site, "thread %u writes registers that a wgmma in flight reads",
           current.linear);
    if (array.hold != Hold::read) array.hold = Hold::touched;
  }
}

void wgmma(const Wgmma& call, Where where) {
  Wgmma brought = call;
  meet_group(&brought, start, where);
}

void wgmma_fence_operand(void* registers, size_t bytes) {
  Array* array = find(block.running, registers);
  if (array && array->hold == Hold::sums) return hand_over(*array, registers);
  if (array && array->hold == Hold::read) return;
  if (!array) {
    arrays[block.running].push_back({reinterpret_cast<uintptr_t>(registers), bytes, Hold::pinned, 0, 0});
    return;
  }
  array->bytes = bytes;
  array->hold = Hold::pinned;
}

void wgmma_fence(Where where) { meet_group(nullptr, fence, where); }
void wgmma_commit(Where where) { meet_group(nullptr, commit, where); }
void wgmma_wait(int groups_in_flight, Where where) { meet_group(&groups_in_flight, wait_for_groups, where); }

}  // namespace emulated
