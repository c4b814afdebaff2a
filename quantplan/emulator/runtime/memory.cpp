// What a kernel may touch, and whether its threads touch it in an order that barriers enforce.
//
// Each byte of shared memory and of the outputs has a cell: who wrote it last and who has read it since, as moments of
// vector clocks. A write must come after the last write and after those reads, a read after the last write. Readers
// that a later reader comes after are forgotten: what is ordered after the later one is ordered after them.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <utility>

#include "memory.h"

namespace emulated {

namespace {

// Cells are zero until touched, and memory from calloc costs nothing until then: outputs may be large.
struct Free {
  void operator()(Cell* cells) const { free(cells); }
};
using Cells = std::unique_ptr<Cell[], Free>;

Cells make_cells(size_t count) { return Cells(static_cast<Cell*>(calloc(count ? count : 1, sizeof(Cell)))); }

struct Watched {
  const Region* region;
  Cells cells;  // of writable regions
};

std::vector<Watched> watched;
Cells shared_cells;
uint32_t blocks_run;
std::vector<std::vector<Stamp>> readers;
std::vector<uint32_t> free_readers;

// ---- messages

const char* verb(Access kind) {
  return kind == Access::read ? "reads" : kind == Access::write ? "writes" : "updates atomically";
}

unsigned long long number(uint64_t n) { return n; }

[[noreturn]] void fail_race(const Stamp& other, const char* did, Access kind, Site site, const Byte& byte) {
  Text what, name;
  name_byte(byte, what);
  name_thread(other.thread, other.block, name);
  fail(Fault::race, site, other.site, "thread %u %s %s that %s %s, with no barrier between them", current.linear,
       verb(kind), what, name, did);
}

// The access belongs to nothing: says what is nearest.
[[noreturn]] void fail_stray(uintptr_t address, size_t bytes, Access kind, Site site) {
  constexpr uint64_t near = 4096;
  char where[160];
  snprintf(where, sizeof where, "at address %#zx, which belongs to no operand", size_t(address));
  uint64_t nearest = near;
  const auto consider = [&](uint64_t begin, uint64_t size, const char* name) {
    const bool behind = address >= begin + size;
    const uint64_t distance = behind ? address - (begin + size) : begin - address;
    if (distance >= nearest) return;
    nearest = distance;
    const char* side = behind ? "behind the end" : "before the start";
    if (distance)
      snprintf(where, sizeof where, "%llu bytes %s of %s", number(distance), side, name);
    else
      snprintf(where, sizeof where, "right %s of %s", side, name);
  };
  consider(reinterpret_cast<uintptr_t>(block.shared), block.shared_bytes, "shared memory");
  for (const Watched& one : watched) {
    const Region& region = *one.region;
    if (region.rows) consider(region.begin, (region.rows - 1) * region.pitch + region.row_bytes, region.name);
  }
  if (address - reinterpret_cast<uintptr_t>(launch->params) < launch->params_bytes)
    snprintf(where, sizeof where, "of the kernel's parameters");
  if (in_library(address, bytes)) snprintf(where, sizeof where, "of a constant");
  for (const Fiber& fiber : block.fibers)
    if (address - reinterpret_cast<uintptr_t>(fiber.stack) < stack_bytes) {
      Text name;
      name_thread(unsigned(&fiber - block.fibers.data()), block.linear, name);
      snprintf(where, sizeof where, "of the local memory of %s", name);
    }
  fail(Fault::out_of_bounds, site, 0, "thread %u %s %zu bytes, %s", current.linear, verb(kind), bytes, where);
}

// ---- who came before

bool ordered(const Stamp& stamp) {
  return stamp.clock == 0 || (stamp.block == block.linear && happened_before(stamp.thread, stamp.clock));
}

// Whether what a stamp's thread has read, or a copy has written, may be overwritten.
bool over(const Stamp& stamp) {
  return ordered(stamp) || (stamp.block == block.linear && stamp.clock <= known_over(block.running, stamp.thread));
}

bool by_one_thread(const Stamp& a, const Stamp& b) { return a.thread == b.thread && a.block == b.block; }

// Keeps what a later write must still be compared with: the newest reading of each thread of this block that the
// running one does not come after, and one of the earlier blocks, which nothing comes after.
void compact(std::vector<Stamp>& list) {
  static uint32_t generation, seen[most_clocks];
  ++generation;
  bool earlier = false;
  const auto obsolete = [&](const Stamp& stamp) {
    if (stamp.block != block.linear) return std::exchange(earlier, true);
    return ordered(stamp) || std::exchange(seen[stamp.thread], generation) == generation;
  };
  std::reverse(list.begin(), list.end());
  list.erase(std::remove_if(list.begin(), list.end(), obsolete), list.end());
  std::reverse(list.begin(), list.end());
}

void forget_readers(Cell& cell) {
  if (cell.more) {
    readers[cell.more].clear();
    free_readers.push_back(cell.more);
    cell.more = 0;
  }
  cell.read = {};
}

// ---- checks

void check_cell(Cell& cell, Access kind, Site site, const Byte& byte, bool needs_value) {
  if (cell.copy == being_written || (cell.copy == being_read && kind != Access::read))
    fail_in_flight(cell, kind, site, byte);
  const bool both_atomic = kind == Access::atomic && cell.write.atomic;
  const bool copied = kind == Access::write && cell.write.thread >= block.slots;
  if (!both_atomic && !(copied ? over(cell.write) : ordered(cell.write)))
    fail_race(cell.write, "has written", kind, site, byte);
  if (needs_value && kind != Access::write && cell.write.clock == 0) fail_uninitialized(kind, site, byte);
  const Stamp now{clock_of(block.running), block.linear, site, uint16_t(block.running), kind == Access::atomic};
  if (kind == Access::read) return remember_reader(cell, now);
  if (!over(cell.read)) fail_race(cell.read, "has read", kind, site, byte);
  if (cell.more)
    for (const Stamp& stamp : readers[cell.more])
      if (!over(stamp)) fail_race(stamp, "has read", kind, site, byte);
  forget_readers(cell);
  cell.write = now;
}

// Checks `bytes` cells. Neighbours mostly share one history: then the outcome of the first holds for them too.
template <class At>
void check_cells(At at, size_t bytes, Access kind, Site site, Byte byte, bool needs_value) {
  Cell& first = at(0);
  const Cell before = first;
  check_cell(first, kind, site, byte, needs_value);
  const bool simple = !before.more && !first.more;
  for (size_t i = 1; i < bytes; ++i) {
    Cell& cell = at(i);
    ++byte.at;
    if (simple && !memcmp(&cell, &before, sizeof cell))
      cell = first;
    else
      check_cell(cell, kind, site, byte, needs_value);
  }
}

void check_shared(uintptr_t address, size_t bytes, Access kind, Site site) {
  const size_t offset = address - reinterpret_cast<uintptr_t>(block.arena);
  const auto rank = block.cluster == 1 ? 0 : unsigned(offset / block.window);
  const size_t own = offset - rank * block.window;
  if (own + bytes > block.shared_bytes)
    fail(Fault::out_of_bounds, site, 0, "thread %u %s %zu bytes at offset %zu of shared memory, which has %zu",
         current.linear, verb(kind), bytes, own, block.shared_bytes);
  if (rank != block.rank) check_peer(rank, site);
  const auto at = [offset](size_t i) -> Cell& { return shared_cell(offset + i); };
  check_cells(at, bytes, kind, site, {nullptr, 0, offset}, true);
}

// Where in a region an access begins, if not before or behind it.
struct Place {
  uint64_t row, at;
};

bool find(const Region& region, uintptr_t address, Place& place) {
  if (address < region.begin || region.rows == 0) return false;
  const uint64_t offset = address - region.begin;
  if (offset >= (region.rows - 1) * region.pitch + region.row_bytes) return false;
  place.row = region.rows == 1 ? 0 : offset / region.pitch;
  place.at = offset - place.row * region.pitch;
  return true;
}

void check_operand(Watched& one, Place place, size_t bytes, Access kind, Site site) {
  const Region& region = *one.region;
  if (kind != Access::read && !region.writable)
    fail(Fault::read_only, site, 0, "thread %u %s %s, which is an input", current.linear, verb(kind), region.name);
  if (!region.writable) return;
  Cell* cells = &one.cells[place.row * region.row_bytes + place.at];
  const auto cell = [cells](size_t i) -> Cell& { return cells[i]; };
  check_cells(cell, bytes, kind, site, {&region, place.row, place.at}, !region.initialized);
}

// Whether an access is to an operand. Between the rows of one there may be those of another.
bool check_operands(uintptr_t address, size_t bytes, Access kind, Site site) {
  const Region* between = nullptr;
  Place place, beside = {};
  for (Watched& one : watched) {
    if (!find(*one.region, address, place)) continue;
    if (place.at + bytes <= one.region->row_bytes) {
      check_operand(one, place, bytes, kind, site);
      return true;
    }
    if (!between) between = one.region, beside = place;
  }
  if (between)
    fail(Fault::out_of_bounds, site, 0, "thread %u %s %zu bytes at byte %llu of row %llu of %s, which has %llu",
         current.linear, verb(kind), bytes, number(beside.at), number(beside.row), between->name,
         number(between->row_bytes));
  return false;
}

void check_constant(uintptr_t address, Site site) {
  Place place;
  for (const auto& [region, cells] : watched) {
    if (!region->writable || !find(*region, address, place) || place.at >= region->row_bytes) continue;
    Text what;
    name_byte({region, place.row, place.at}, what);
    fail(Fault::invalid, site, 0, "thread %u reads %s as memory that is constant, but the launch may write it",
         current.linear, what);
  }
}

size_t arena_bytes() { return (block.cluster - 1) * block.window + block.shared_bytes; }

bool within(uintptr_t address, size_t bytes, uintptr_t begin, size_t size) {
  return address >= begin && address + bytes <= begin + size;
}

}  // namespace

// ---- what async_memory.cpp needs of this

void name_byte(const Byte& byte, Text& text) {
  const uint64_t rank = byte.at / block.window, offset = byte.at % block.window;
  if (byte.region)
    snprintf(text, sizeof text, "byte %llu of row %llu of %s", number(byte.at), number(byte.row), byte.region->name);
  else if (rank == block.rank)
    snprintf(text, sizeof text, "shared memory at offset %llu", number(offset));
  else
    snprintf(text, sizeof text, "shared memory of block %llu at offset %llu",
             number(block.linear * block.cluster + rank), number(offset));
}

void fail_in_flight(const Cell& cell, Access kind, Site site, const Byte& byte) {
  Text what;
  name_byte(byte, what);
  const bool written = cell.copy == being_written;
  fail(Fault::in_flight, site, written ? cell.write.site : cell.read.site,
       "thread %u %s %s while an asynchronous copy %s it", current.linear, verb(kind), what,
       written ? "writes" : "reads");
}

void fail_uninitialized(Access kind, Site site, const Byte& byte) {
  Text what;
  name_byte(byte, what);
  fail(Fault::uninitialized, site, 0, "thread %u %s %s, which nothing has written", current.linear, verb(kind), what);
}

void remember_reader(Cell& cell, const Stamp& now) {
  if (by_one_thread(cell.read, now) || ordered(cell.read)) {
    cell.read = now;
    return;
  }
  if (!cell.more) {
    if (free_readers.empty()) {
      free_readers.push_back(uint32_t(readers.size()));
      readers.emplace_back();
    }
    cell.more = free_readers.back();
    free_readers.pop_back();
  }
  std::vector<Stamp>& list = readers[cell.more];
  if (list.size() == list.capacity()) {
    compact(list);
    list.reserve(std::max<size_t>(8, 2 * list.size()));
  }
  list.push_back(now);
}

Cell& shared_cell(size_t offset) {
  Cell& cell = shared_cells[offset];
  if (cell.block != blocks_run) {  // left by an earlier block
    forget_readers(cell);
    cell = {};
    cell.block = blocks_run;
  }
  return cell;
}

// ---- the life of a launch

bool memory_begin_launch() {
  watched.clear();
  readers.assign(1, {});  // index 0 stands for none
  free_readers.clear();
  blocks_run = 0;
  if (!checked()) return true;
  shared_cells = make_cells(arena_bytes());
  bool held = shared_cells != nullptr;
  for (int i = 0; i < launch->region_count; ++i) {
    const Region& region = launch->regions[i];
    watched.push_back({&region, make_cells(region.writable ? region.rows * region.row_bytes : 0)});
    held = held && watched.back().cells;
  }
  return held;
}

void memory_begin_block() {
  if (!checked()) return;
  clocks_reset();
  ++blocks_run;  // the outputs' cells go on: two blocks that write one byte are a race
}

void memory_end_launch() {
  watched.clear();
  shared_cells.reset();
}

// ---- accesses

bool is_shared(const void* pointer) {
  return within(reinterpret_cast<uintptr_t>(pointer), 1, reinterpret_cast<uintptr_t>(block.shared), block.shared_bytes);
}

bool in_arena(const void* pointer) {
  return within(reinterpret_cast<uintptr_t>(pointer), 1, reinterpret_cast<uintptr_t>(block.arena), arena_bytes());
}

bool is_parameter(const void* pointer, size_t bytes) {
  const auto params = reinterpret_cast<uintptr_t>(launch->params);
  return within(reinterpret_cast<uintptr_t>(pointer), bytes, params, launch->params_bytes);
}

void access(uintptr_t address, size_t bytes, Access kind, Site site) {
  if (within(address, bytes, reinterpret_cast<uintptr_t>(running().stack), stack_bytes))
    return registers_accessed(address, bytes, kind, site);
  if (interrupted) fail(Fault::deadlock, site, 0, "interrupted before its end");
  ++report->accesses;
  const uintptr_t offset = address - reinterpret_cast<uintptr_t>(block.arena);
  if (offset < arena_bytes()) return check_shared(address, bytes, kind, site);
  if (check_operands(address, bytes, kind, site)) return;
  const bool constant = is_parameter(reinterpret_cast<const void*>(address), bytes) ||
                        within(address, bytes, reinterpret_cast<uintptr_t>(&current), sizeof current) ||
                        in_library(address, bytes);
  if (kind != Access::read || !constant) fail_stray(address, bytes, kind, site);
}

void fail_misaligned(uintptr_t address, const char* what, size_t alignment, Site site) {
  fail(Fault::misaligned, site, 0, "thread %u accesses %s at address %#zx, which is no multiple of %zu", current.linear,
       what, size_t(address), alignment);
}

void touch(const void* pointer, size_t bytes, Access kind, size_t alignment, Where where) {
  const auto address = reinterpret_cast<uintptr_t>(pointer);
  if (address % alignment) {
    char what[32];
    snprintf(what, sizeof what, "%zu bytes", bytes);
    fail_misaligned(address, what, alignment, site_of(where));
  }
  if (checked()) access(address, bytes, kind, site_of(where));
}

void touch_constant(const void* pointer, size_t bytes, Where where) {
  check_constant(reinterpret_cast<uintptr_t>(pointer), site_of(where));
  touch(pointer, bytes, Access::read, bytes, where);
}

}  // namespace emulated
