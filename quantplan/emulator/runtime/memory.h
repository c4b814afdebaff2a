// The history of a byte, which memory.cpp checks accesses against, and async_memory.cpp what happens in the background.
#pragma once
#include "runtime.h"

namespace emulated {

struct Stamp {
  uint32_t clock;  // 0: never
  uint32_t block;
  Site site;
  uint16_t thread;
  uint16_t atomic;
};

enum Use : uint32_t { at_rest, being_written, being_read };  // what an asynchronous copy does with a byte

struct Cell {
  Stamp write, read;
  uint32_t more;       // index into `readers`, when one is not enough
  uint32_t copy : 2;
  uint32_t block : 30;  // of shared memory: for which block the cell holds
};
static_assert(sizeof(Cell) == 40, "cells have no padding: they are compared as bytes");

// A byte of an operand, or of shared memory when there is none.
struct Byte {
  const Region* region;
  uint64_t row, at;
};

void name_byte(const Byte& byte, Text& text);
[[noreturn]] void fail_in_flight(const Cell& cell, Access kind, Site site, const Byte& byte);
[[noreturn]] void fail_uninitialized(Access kind, Site site, const Byte& byte);

void remember_reader(Cell& cell, const Stamp& now);
Cell& shared_cell(size_t offset);  // into the arena

}  // namespace emulated
