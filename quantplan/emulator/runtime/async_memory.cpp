// What asynchronous copies and wgmmas do to shared memory, between issue and completion.
#include "memory.h"

#include <cstdio>
#include <cstring>

namespace emulated {

// ---- asynchronous copies

void memory_in_flight(const void* shared, size_t bytes, Site site) {
  const size_t offset = static_cast<const char*>(shared) - block.arena;
  for (size_t i = 0; i < bytes; ++i) {
    Cell& cell = shared_cell(offset + i);
    cell.copy = being_written;
    cell.write.site = site;
  }
}

void memory_landed(const void* shared, size_t bytes, unsigned thread, uint32_t clock, Site site) {
  const size_t offset = static_cast<const char*>(shared) - block.arena;
  for (size_t i = 0; i < bytes; ++i) {
    Cell& cell = shared_cell(offset + i);
    cell.copy = at_rest;
    cell.write = {clock, block.linear, site, uint16_t(thread), 0};
  }
}

void memory_begin_reading(const void* shared, size_t bytes, Site site) {
  const size_t offset = static_cast<const char*>(shared) - block.arena;
  for (size_t i = 0; i < bytes; ++i) {
    Cell& cell = shared_cell(offset + i);
    if (!fenced(cell.write.thread, cell.write.clock, block.running)) {
      Text name;
      name_thread(cell.write.thread, block.linear, name);
      fail(Fault::race, site, cell.write.site, "a bulk copy reads what %s wrote without fence.proxy.async", name);
    }
    cell.copy = being_read;
  }
}

void memory_end_reading(const void* shared, size_t bytes, unsigned thread, uint32_t clock, Site site) {
  const size_t offset = static_cast<const char*>(shared) - block.arena;
  for (size_t i = 0; i < bytes; ++i) {
    Cell& cell = shared_cell(offset + i);
    cell.copy = at_rest;
    remember_reader(cell, {clock, block.linear, site, uint16_t(thread), 0});
  }
}

// ---- wgmma

namespace {

[[noreturn]] void fail_reading(const Reading& reading, const Stamp& write, unsigned thread, const Byte& byte,
                               const char* missing) {
  Text what, name;
  name_byte(byte, what);
  name_thread(write.thread, write.block, name);
  fail(Fault::race, reading.site, write.site, "a wgmma of thread %u reads %s, which %s wrote, with no %s between them",
       index_in_block(thread), what, name, missing);
}

// Of a writer, what holds for its newest write holds for the earlier ones.
void check_written(const Reading& reading, const Stamp& write, const Byte& byte) {
  static struct {
    uint64_t reading;
    uint32_t clock;
  } sound[most_clocks];
  auto& newest = sound[write.thread];
  if (newest.reading == reading.serial && write.clock <= newest.clock) return;
  for (unsigned t = reading.first_thread; t < reading.first_thread + group_threads; ++t) {
    if (write.clock > known(t, write.thread)) fail_reading(reading, write, t, byte, "barrier");
    if (!fenced(write.thread, write.clock, t)) fail_reading(reading, write, t, byte, "fence.proxy.async");
  }
  newest = {reading.serial, write.clock};
}

}  // namespace

void memory_read_by(const Reading& reading, const void* shared, size_t bytes) {
  const size_t offset = static_cast<const char*>(shared) - block.arena;
  const Stamp now{reading.moment, block.linear, reading.site, uint16_t(reading.agent), 0};
  Stamp checked{};
  for (size_t i = 0; i < bytes; ++i) {
    Cell& cell = shared_cell(offset + i);
    const Byte byte{nullptr, 0, offset + i};
    if (cell.copy == being_written) fail_in_flight(cell, Access::read, reading.site, byte);
    if (cell.write.clock == 0) fail_uninitialized(Access::read, reading.site, byte);
    if (memcmp(&cell.write, &checked, sizeof checked)) check_written(reading, checked = cell.write, byte);
    remember_reader(cell, now);
  }
}

}  // namespace emulated
