// What a kernel may touch, and whether its threads touch it in an order that barriers enforce.
//
// Each byte of shared memory and of the outputs has a cell: who wrote it last and who has read it since, as moments of
// vector clocks. A write must come after the last write and after those reads, a read after the last write. Readers that
// a later reader comes after are forgotten: what is ordered after the later one is ordered after them.
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include <dlfcn.h>
#include <link.h>

#include <memory>
#include <unordered_map>

#include "runtime.h"

namespace emulated {

namespace {

struct Stamp {
  uint32_t clock;  // 0: never
  uint32_t block;
  Site site;
  uint16_t thread;
  uint8_t atomic;
};

struct Cell {
  Stamp write, read;
  uint32_t more;  // index into `readers`, when one is not enough
  enum : uint8_t { at_rest, being_written, being_read } copy;  // what an asynchronous copy does with it
};

// Cells are zero until touched, and memory from calloc costs nothing until then: outputs may be large.
struct Free {
  void operator()(Cell* cells) const { free(cells); }
};
using Cells = std::unique_ptr<Cell[], Free>;

struct Watched {
  const Region* region;
  Cells cells;  // of writable regions
};

std::vector<Watched> watched;
Cells shared_cells;
std::vector<std::vector<Stamp>> readers;
std::vector<uint32_t> free_readers;
uintptr_t image_begin, image_end;  // the library that holds the kernel: its constants may be read

Cells make_cells(size_t count) { return Cells(static_cast<Cell*>(calloc(count ? count : 1, sizeof(Cell)))); }

int find_image(dl_phdr_info* info, size_t, void* kernel) {
  const auto mine = reinterpret_cast<uintptr_t>(kernel);
  for (int i = 0; i < info->dlpi_phnum; ++i) {
    const auto& part = info->dlpi_phdr[i];
    const uintptr_t begin = info->dlpi_addr + part.p_vaddr, end = begin + part.p_memsz;
    if (part.p_type != PT_LOAD || mine < begin || mine >= end) continue;
    image_begin = ~uintptr_t(0);
    image_end = 0;
    for (int j = 0; j < info->dlpi_phnum; ++j) {
      const auto& any = info->dlpi_phdr[j];
      if (any.p_type != PT_LOAD) continue;
      const uintptr_t low = info->dlpi_addr + any.p_vaddr;
      image_begin = low < image_begin ? low : image_begin;
      image_end = low + any.p_memsz > image_end ? low + any.p_memsz : image_end;
    }
    return 1;
  }
  return 0;
}

bool ordered(const Stamp& stamp) {
  return stamp.clock == 0 || (stamp.block == block.linear && happened_before(stamp.thread, stamp.clock));
}

const char* verb(Access kind) {
  return kind == Access::read ? "reads" : kind == Access::write ? "writes" : "updates atomically";
}

void thread_name(unsigned thread, char (&text)[48]) {
  if (thread >= block.threads)
    snprintf(text, sizeof text, "an asynchronous copy");
  else
    snprintf(text, sizeof text, "thread %u", thread);
}

[[noreturn]] void fail_race(const Stamp& other, const char* did, Access kind, Site site, const char* what) {
  char name[48];
  thread_name(other.thread, name);
  char elsewhere[32] = "";
  if (other.block != block.linear) snprintf(elsewhere, sizeof elsewhere, " of block %u", other.block);
  fail(Fault::race, site, other.site, "thread %u %s %s that %s%s %s, with no barrier between them", block.running,
       verb(kind), what, name, elsewhere, did);
}

void remember_reader(Cell& cell, const Stamp& now) {
  if (cell.read.clock == 0 || (cell.read.thread == now.thread && cell.read.block == now.block) || ordered(cell.read)) {
    cell.read = now;
    if (!cell.more) return;
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
  size_t kept = 0;
  for (const Stamp& stamp : list)
    if (!(stamp.thread == now.thread && stamp.block == now.block) && !ordered(stamp)) list[kept++] = stamp;
  list.resize(kept);
  list.push_back(now);
}

void forget_readers(Cell& cell) {
  if (cell.more) {
    readers[cell.more].clear();
    free_readers.push_back(cell.more);
    cell.more = 0;
  }
  cell.read = {};
}

void check_cell(Cell& cell, Access kind, Site site, const char* what, bool needs_value) {
  if (cell.copy == Cell::being_written || (cell.copy == Cell::being_read && kind != Access::read))
    fail(Fault::in_flight, site, cell.copy == Cell::being_written ? cell.write.site : cell.read.site,
         "thread %u %s %s while an asynchronous copy %s it", block.running, verb(kind), what,
         cell.copy == Cell::being_written ? "writes" : "reads");
  const bool both_atomic = kind == Access::atomic && cell.write.atomic;
  if (!both_atomic && !ordered(cell.write)) fail_race(cell.write, "has written", kind, site, what);
  const Stamp now{clock_of(block.running), block.linear, site, uint16_t(block.running), kind == Access::atomic};
  if (kind == Access::read) {
    if (needs_value && cell.write.clock == 0)
      fail(Fault::uninitialized, site, 0, "thread %u reads %s, which nothing has written", block.running, what);
    remember_reader(cell, now);
    return;
  }
  if (!ordered(cell.read)) fail_race(cell.read, "has read", kind, site, what);
  if (cell.more)
    for (const Stamp& stamp : readers[cell.more])
      if (!ordered(stamp)) fail_race(stamp, "has read", kind, site, what);
  forget_readers(cell);
  cell.write = now;
}

void check_shared(uintptr_t address, size_t bytes, Access kind, Site site) {
  const size_t offset = address - reinterpret_cast<uintptr_t>(block.shared);
  if (offset + bytes > block.shared_bytes)
    fail(Fault::out_of_bounds, site, 0, "thread %u %s %zu bytes at offset %zu of shared memory, which has %zu",
         block.running, verb(kind), bytes, offset, block.shared_bytes);
  char what[64];
  snprintf(what, sizeof what, "shared memory at offset %zu", offset);
  for (size_t i = 0; i < bytes; ++i) check_cell(shared_cells[offset + i], kind, site, what, true);
}

bool check_region(Watched& one, uintptr_t address, size_t bytes, Access kind, Site site) {
  const Region& region = *one.region;
  if (address < region.begin || region.rows == 0) return false;
  const uint64_t offset = address - region.begin;
  const uint64_t span = (region.rows - 1) * region.pitch + region.row_bytes;
  if (offset >= span) return false;
  const uint64_t row = region.rows == 1 ? 0 : offset / region.pitch, at = offset - row * region.pitch;
  if (at + bytes > region.row_bytes)
    fail(Fault::out_of_bounds, site, 0, "thread %u %s %zu bytes at byte %llu of row %llu of %s, which has %llu",
         block.running, verb(kind), bytes, (unsigned long long)at, (unsigned long long)row, region.name,
         (unsigned long long)region.row_bytes);
  if (kind != Access::read && !region.writable)
    fail(Fault::read_only, site, 0, "thread %u %s %s, which is an input", block.running, verb(kind), region.name);
  if (!region.writable) return true;
  char what[96];
  snprintf(what, sizeof what, "byte %llu of row %llu of %s", (unsigned long long)at, (unsigned long long)row,
           region.name);
  Cell* cells = &one.cells[row * region.row_bytes + at];
  for (size_t i = 0; i < bytes; ++i) check_cell(cells[i], kind, site, what, !region.initialized);
  return true;
}

bool within(uintptr_t address, size_t bytes, uintptr_t begin, uintptr_t end) {
  return address >= begin && address + bytes <= end;
}

}  // namespace

// ---- the life of a launch

void memory_begin_launch(const void* kernel) {
  watched.clear();
  readers.assign(1, {});  // index 0 stands for none
  free_readers.clear();
  if (!checked()) return;
  dl_iterate_phdr(find_image, const_cast<void*>(kernel));
  for (int i = 0; i < launch->region_count; ++i) {
    const Region& region = launch->regions[i];
    watched.push_back({&region, make_cells(region.writable ? region.rows * region.row_bytes : 0)});
  }
}

void memory_begin_block() {
  if (!checked()) return;
  clocks_reset();
  if (shared_cells)
    for (size_t i = 0; i < block.shared_bytes; ++i) forget_readers(shared_cells[i]);
  shared_cells = make_cells(block.shared_bytes);
  // the outputs' cells go on: two blocks that write one byte are a race
}

void memory_end_launch() {
  watched.clear();
  shared_cells.reset();
}

// ---- accesses

bool is_shared(const void* pointer) {
  const auto address = reinterpret_cast<uintptr_t>(pointer), begin = reinterpret_cast<uintptr_t>(block.shared);
  return address >= begin && address < begin + block.shared_bytes;
}

void access(uintptr_t address, size_t bytes, Access kind, Site site) {
  const uintptr_t stack = reinterpret_cast<uintptr_t>(running().stack);
  if (within(address, bytes, stack, stack + stack_bytes)) return;
  ++report->accesses;
  if (bytes <= 16 && (bytes & (bytes - 1)) == 0 && address % bytes)
    fail(Fault::misaligned, site, 0, "thread %u %s %zu bytes at address %#zx", block.running, verb(kind), bytes,
         size_t(address));
  const uintptr_t shared = reinterpret_cast<uintptr_t>(block.shared);
  if (address >= shared && address < shared + block.shared_bytes) return check_shared(address, bytes, kind, site);
  for (Watched& one : watched)
    if (check_region(one, address, bytes, kind, site)) return;
  const uintptr_t params = reinterpret_cast<uintptr_t>(launch->params);
  if (kind == Access::read && within(address, bytes, params, params + launch->params_bytes)) return;
  if (kind == Access::read && within(address, bytes, image_begin, image_end)) return;
  if (address == shared + block.shared_bytes)
    fail(Fault::out_of_bounds, site, 0, "thread %u %s %zu bytes behind the end of shared memory, which has %zu",
         block.running, verb(kind), bytes, block.shared_bytes);
  fail(Fault::out_of_bounds, site, 0, "thread %u %s %zu bytes at address %#zx, which belongs to no operand",
       block.running, verb(kind), bytes, size_t(address));
}

void touch(const void* pointer, size_t bytes, Access kind, size_t alignment, Where where) {
  const auto address = reinterpret_cast<uintptr_t>(pointer);
  if (address % alignment)
    fail(Fault::misaligned, site_of(where), 0, "thread %u %s %zu bytes at address %#zx, which is no multiple of %zu",
         block.running, verb(kind), bytes, size_t(address), alignment);
  if (checked()) access(address, bytes, kind, site_of(where));
}

// ---- asynchronous copies

void memory_in_flight(const void* shared, size_t bytes, Site site) {
  const size_t offset = static_cast<const char*>(shared) - block.shared;
  for (size_t i = 0; i < bytes; ++i) {
    Cell& cell = shared_cells[offset + i];
    cell.copy = Cell::being_written;
    cell.write.site = site;
  }
}

void memory_landed(const void* shared, size_t bytes, unsigned thread, uint32_t clock, Site site) {
  const size_t offset = static_cast<const char*>(shared) - block.shared;
  for (size_t i = 0; i < bytes; ++i) {
    Cell& cell = shared_cells[offset + i];
    cell.copy = Cell::at_rest;
    cell.write = {clock, block.linear, site, uint16_t(thread), 0};
  }
}

void memory_begin_reading(const void* shared, size_t bytes, Site site) {
  const size_t offset = static_cast<const char*>(shared) - block.shared;
  for (size_t i = 0; i < bytes; ++i) {
    Cell& cell = shared_cells[offset + i];
    if (!fenced(cell.write.thread, cell.write.clock))
      fail(Fault::race, site, cell.write.site, "a bulk store reads what thread %u wrote without fence.proxy.async",
           cell.write.thread);
    cell.copy = Cell::being_read;
  }
}

void memory_end_reading(const void* shared, size_t bytes, Site site) {
  const size_t offset = static_cast<const char*>(shared) - block.shared;
  for (size_t i = 0; i < bytes; ++i) {
    Cell& cell = shared_cells[offset + i];
    cell.copy = Cell::at_rest;
    remember_reader(cell, {clock_of(block.running), block.linear, site, uint16_t(block.running), 0});
  }
}

}  // namespace emulated

// ---- what -fsanitize=thread calls before each load and store of a kernel. Its own runtime is not linked.

#define EMULATED_HOOK __attribute__((visibility("default")))
#define EMULATED_CHECK(kind, bytes)                                                   \
  emulated::access(reinterpret_cast<uintptr_t>(p), bytes, emulated::Access::kind, \
                   emulated::site_of_pc(__builtin_return_address(0)))
#define EMULATED_SIZE(n)                                                                      \
  EMULATED_HOOK void __tsan_read##n(void* p) { EMULATED_CHECK(read, n); }                     \
  EMULATED_HOOK void __tsan_write##n(void* p) { EMULATED_CHECK(write, n); }                   \
  EMULATED_HOOK void __tsan_unaligned_read##n(void* p) { EMULATED_CHECK(read, n); }           \
  EMULATED_HOOK void __tsan_unaligned_write##n(void* p) { EMULATED_CHECK(write, n); }

extern "C" {
EMULATED_SIZE(1)
EMULATED_SIZE(2)
EMULATED_SIZE(4)
EMULATED_SIZE(8)
EMULATED_SIZE(16)
EMULATED_HOOK void __tsan_read_range(void* p, size_t n) { EMULATED_CHECK(read, n); }
EMULATED_HOOK void __tsan_write_range(void* p, size_t n) { EMULATED_CHECK(write, n); }
EMULATED_HOOK void* __tsan_memcpy(void* to, const void* from, size_t n) {
  const emulated::Site site = emulated::site_of_pc(__builtin_return_address(0));
  emulated::access(reinterpret_cast<uintptr_t>(from), n, emulated::Access::read, site);
  emulated::access(reinterpret_cast<uintptr_t>(to), n, emulated::Access::write, site);
  return memcpy(to, from, n);
}
EMULATED_HOOK void* __tsan_memmove(void* to, const void* from, size_t n) {
  const emulated::Site site = emulated::site_of_pc(__builtin_return_address(0));
  emulated::access(reinterpret_cast<uintptr_t>(from), n, emulated::Access::read, site);
  emulated::access(reinterpret_cast<uintptr_t>(to), n, emulated::Access::write, site);
  return memmove(to, from, n);
}
EMULATED_HOOK void* __tsan_memset(void* to, int value, size_t n) {
  const emulated::Site site = emulated::site_of_pc(__builtin_return_address(0));
  emulated::access(reinterpret_cast<uintptr_t>(to), n, emulated::Access::write, site);
  return memset(to, value, n);
}
EMULATED_HOOK void __tsan_func_entry(void*) {}
EMULATED_HOOK void __tsan_func_exit() {}
EMULATED_HOOK void __tsan_init() {}
}
