// Meetings of warp groups, and the registers that they give to each other.
#include "warp_groups.h"

#include <algorithm>
#include <cstring>

#include <emulated/warp_group.h>

namespace emulated {

namespace {

constexpr unsigned register_file = 64 * 1024, most_registers = 256, unit = 8;  // of a block; of a thread, in steps

struct Meeting {
  unsigned arrived = 0, first = 0;  // how many threads, and the first of them
};

struct Share {
  unsigned registers;  // of a thread; at first as many as the compiler may have given it
  bool known;
};

std::vector<Meeting> meetings;  // of each group
std::vector<Share> shares;

bool at_the_same(const Fiber& a, const Fiber& b) {
  const bool file = a.where.file == b.where.file || !strcmp(a.where.file, b.where.file);
  return file && a.where.line == b.where.line && a.complete == b.complete;
}

// The registers of the running thread's block.
unsigned in_use() {
  const unsigned first = block.rank * block.stride / group_threads, groups = block.threads / group_threads;
  unsigned total = 0;
  for (unsigned i = 0; i < groups; ++i) total += group_threads * shares[first + i].registers;
  return total;
}

struct Change {
  unsigned count;
  bool more;
};

void check_change(void* const* threads, unsigned) {
  const auto& [count, more] = *static_cast<Change*>(threads[0]);
  Share& share = shares[running_group()];
  if (more ? share.known && count < share.registers : count > share.registers)
    fail(Fault::invalid, site_of(running().where), 0, "setmaxnreg.%s to %u registers, where a thread has %s%u",
         more ? "inc" : "dec", count, share.known ? "" : "at most ", share.registers);
  if (!more) share = {count, true};
  ++progress;
}

}  // namespace

void warp_groups_begin_block() {
  const unsigned groups = (block.slots + group_threads - 1) / group_threads;
  meetings.assign(groups, {});
  shares.assign(groups, {std::min(most_registers, register_file / block.threads / unit * unit), false});
}

void meet_group(void* mine, Complete complete, Where where) {
  const unsigned group = running_group(), first = first_thread(group);
  if (current.linear / group_threads >= block.threads / group_threads)
    fail(Fault::collective, site_of(where), 0, "thread %u is in no whole warp group: the block has %u threads",
         current.linear, block.threads);
  Fiber& self = running();
  self.kind = Collective::warp_group;
  self.mine = mine;
  self.complete = complete;
  self.where = where;
  Meeting& meeting = meetings[group];
  if (meeting.arrived == 0) meeting.first = block.running;
  if (const Fiber& other = block.fibers[meeting.first]; !at_the_same(self, other))
    fail(Fault::collective, site_of(where), site_of(other.where),
         "thread %u executes another instruction than thread %u of its warp group", current.linear,
         index_in_block(meeting.first));
  if (++meeting.arrived < group_threads) return wait(State::at_warp, where);
  meeting = {};
  void* threads[group_threads];
  for (unsigned i = 0; i < group_threads; ++i) threads[i] = block.fibers[first + i].mine;
  complete(threads, ~0u);
  for (unsigned i = 0; i < group_threads; ++i) block.fibers[first + i].state = State::ready;
}

void set_registers(unsigned count, bool more, Where where) {
  Change mine{count, more};
  meet_group(&mine, check_change, where);
  Share& share = shares[running_group()];
  running().awaited = "registers that no other warp group gives away";
  while (more && share.registers < count && in_use() + group_threads * (count - share.registers) > register_file)
    wait(State::polling, where);
  running().awaited = nullptr;
  share = {count, true};
}

}  // namespace emulated
