// What Python and the runtime say to each other. quantplan/emulator/library.py holds the same structures for ctypes.
#pragma once
#include <cstdint>

namespace emulated {

enum class Order : int32_t { ascending, descending, random };
enum class Completion : int32_t { late, early, random };
enum class Accumulation : int32_t { exact, truncated };

enum class Fault : int32_t {
  none,
  race,
  uninitialized,
  out_of_bounds,
  misaligned,
  read_only,
  in_flight,
  deadlock,
  barrier,
  collective,
  invalid,
  undefined,
  crash,
};

// Memory that the kernel may touch: rows of `row_bytes`, `pitch` bytes apart.
struct Region {
  uint64_t begin;
  uint64_t row_bytes;
  uint64_t pitch;
  uint64_t rows;
  int32_t writable;
  int32_t initialized;  // whether reading it before writing it makes sense
  char name[32];
};

struct Launch {
  uint32_t grid[3];
  uint32_t block[3];
  uint64_t shared_bytes;
  const void* params;
  uint64_t params_bytes;
  const Region* regions;
  int32_t region_count;
  Order order;
  Completion completion;
  Accumulation accumulation;
  uint64_t seed;
  int32_t checked;
  uint32_t cluster;  // neighbouring blocks along x that are resident at once; it divides grid[0]
};

// What a kernel's 128 opaque bytes of a tensor map hold; dimensions are innermost first. tensor_maps.py writes it.
struct TensorMap {
  uint64_t mark;
  uint64_t address;
  uint64_t extents[3];  // in elements
  uint64_t pitches[2];  // in bytes, of all dimensions but the innermost
  uint32_t box[3];      // in elements
  uint32_t rank;
  uint32_t item_bytes;
  uint32_t swizzle;     // span in bytes, or 0
};
constexpr uint64_t tensor_map_mark = 0x50414D524F534E54;

struct Place {
  uint64_t pc;  // offset into the library; 0 when file and line are known
  char file[256];
  int32_t line;
};

struct Report {
  Fault fault;
  char message[768];
  Place place;        // where the fault was noticed
  Place other;        // the access or wait it conflicts with, if any
  uint32_t block[3];
  uint32_t thread[3];
  uint64_t switches;
  uint64_t accesses;  // instrumented loads and stores; 0 in unchecked builds
};

}  // namespace emulated
