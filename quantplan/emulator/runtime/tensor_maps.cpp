// Copies of boxes of tensors. A box is cut into pieces, each of which lies in one row of the tensor or outside of it:
//
//   tensor   row c1 ── … ──│piece│piece│ ← the tensor ends here
//                            │      └────── out of bounds: zeros, and nothing is stored
//   shared   row 0  ─────────┴─▶ 16 bytes at a time where a swizzle moves them about, else the whole row
#include <algorithm>
#include <cstdio>
#include <cstring>

#include "copies.h"

namespace emulated {

namespace {

struct Piece {
  char* shared;
  char* global;  // null: out of bounds
  size_t bytes;
};

const char* defect(const TensorMap& map) {
  const uint64_t inner = uint64_t(map.box[0]) * map.item_bytes;
  const bool span = map.swizzle == 0 || map.swizzle == 32 || map.swizzle == 64 || map.swizzle == 128;
  if (map.mark != tensor_map_mark) return "it is none";
  if (map.rank < 2 || map.rank > 3) return "its rank is neither 2 nor 3";
  if (map.address % 16) return "its address is no multiple of 16";
  if (inner == 0 || inner % 16) return "its boxes' rows are no multiple of 16 bytes";
  if (!span || (map.swizzle && inner != map.swizzle)) return "its boxes' rows have another size than its swizzle";
  for (unsigned d = 0; d < map.rank; ++d) {
    if (map.box[d] < 1 || map.box[d] > 256) return "its boxes have a side that is not 1 to 256";
    if (map.extents[d] < 1 || map.extents[d] > uint64_t(1) << 32) return "it has a dimension that is not 1 to 2^32";
    if (d && (map.pitches[d - 1] % 16 || map.pitches[d - 1] >> 40)) return "it has a pitch that is not 16, 32, … < 2^40";
  }
  return nullptr;
}

TensorMap map_at(const void* pointer, Where where) {
  if (reinterpret_cast<uintptr_t>(pointer) % 64)
    fail_misaligned(reinterpret_cast<uintptr_t>(pointer), "a tensor map", 64, site_of(where));
  if (!is_parameter(pointer, 128))
    fail(Fault::invalid, site_of(where), 0, "a tensor map that is not among the kernel's parameters");
  TensorMap map;
  memcpy(&map, pointer, sizeof map);
  if (const char* why = defect(map)) fail(Fault::invalid, site_of(where), 0, "not a legal tensor map: %s", why);
  return map;
}

TensorMap map_of(const void* pointer, unsigned rank, Where where) {
  const TensorMap map = map_at(pointer, where);
  if (map.rank != rank)
    fail(Fault::invalid, site_of(where), 0, "%u coordinates, and the tensor map has %u dimensions", rank, map.rank);
  return map;
}

// Hopper takes any other column for an illegal instruction; rows, and multiples of 16 below 0, it accepts.
void check_column(const TensorMap& map, Coordinates from, Where where) {
  const int64_t bytes = int64_t(from.at[0]) * map.item_bytes;
  if (bytes % 16)
    fail(Fault::misaligned, site_of(where), 0, "a box begins %lld bytes into its rows, which is no multiple of 16",
         static_cast<long long>(bytes));
}

// Hopper stores boxes that end outside of the tensor. Of those that begin there it took some for illegal instructions;
// which, is not known, so all of them are refused.
void check_beginning(const TensorMap& map, Coordinates to, Where where) {
  for (unsigned d = 0; d < map.rank; ++d)
    if (to.at[d] < 0 || uint64_t(to.at[d]) >= map.extents[d])
      fail(Fault::invalid, site_of(where), 0, "a tensor store of a box that begins outside of the tensor, at %d", to.at[d]);
}

size_t row_bytes(const TensorMap& map) { return size_t(map.box[0]) * map.item_bytes; }

size_t box_bytes(const TensorMap& map) {
  return row_bytes(map) * map.box[1] * (map.rank == 3 ? map.box[2] : 1);
}

char* swizzled(const TensorMap& map, char* shared) {
  if (!map.swizzle) return shared;
  const auto address = reinterpret_cast<uintptr_t>(shared);
  return reinterpret_cast<char*>(address ^ (address >> 3 & (map.swizzle - 16)));
}

// Cuts bytes [begin, end) of a row, counted from the tensor's first column, where the tensor begins and ends.
void cut(std::vector<Piece>& pieces, char* shared, char* row, int64_t begin, int64_t end, int64_t size) {
  const int64_t first = std::clamp<int64_t>(0, begin, end), last = std::clamp(row ? size : 0, first, end);
  if (begin < first) pieces.push_back({shared, nullptr, size_t(first - begin)});
  if (first < last) pieces.push_back({shared + (first - begin), row + first, size_t(last - first)});
  if (last < end) pieces.push_back({shared + (last - begin), nullptr, size_t(end - last)});
}

std::vector<Piece> cut_box(const TensorMap& map, char* shared, Coordinates from) {
  const auto inside = [&](unsigned d, int64_t i) { return i >= 0 && uint64_t(i) < map.extents[d]; };
  const auto size = int64_t(map.extents[0] * map.item_bytes), left = int64_t(from.at[0]) * map.item_bytes;
  const auto width = int64_t(row_bytes(map)), step = map.swizzle ? 16 : width;
  std::vector<Piece> pieces;
  for (unsigned z = 0; z < (map.rank == 3 ? map.box[2] : 1); ++z) {
    for (unsigned y = 0; y < map.box[1]; ++y) {
      const int64_t at[] = {int64_t(from.at[1]) + y, int64_t(from.at[2]) + z};
      char* row = nullptr;
      if (inside(1, at[0]) && (map.rank < 3 || inside(2, at[1])))
        row = reinterpret_cast<char*>(map.address + uint64_t(at[0]) * map.pitches[0] +
                                      (map.rank == 3 ? uint64_t(at[1]) * map.pitches[1] : 0));
      for (int64_t x = 0; x < width; x += step, shared += step)
        cut(pieces, swizzled(map, shared), row, left + x, left + x + step, size);
    }
  }
  return pieces;
}

}  // namespace

void tensor_prefetch(const void* map, Where where) { map_at(map, where); }

void tensor_load(void* shared, const void* pointer, unsigned rank, Coordinates from, uint64_t* barrier, unsigned mask,
                 Where where) {
  const TensorMap map = map_of(pointer, rank, where);
  const size_t bytes = box_bytes(map);
  if (mask == 0 || mask >> block.cluster)
    fail(Fault::invalid, site_of(where), 0, "a tensor load for blocks %#x of a cluster of %u", mask, block.cluster);
  touch(shared, bytes, Access::write, 128, where);
  check_in_shared(shared, bytes, "a tensor load", where);
  check_column(map, from, where);
  const std::vector<Piece> pieces = cut_box(map, static_cast<char*>(shared), from);
  for (const Piece& piece : pieces)
    if (piece.global) touch(piece.global, piece.bytes, Access::read, 1, where);
  for (unsigned to = 0; to < block.cluster; ++to) {
    if (!(mask >> to & 1)) continue;
    const ptrdiff_t there = ptrdiff_t(block.window) * (ptrdiff_t(to) - ptrdiff_t(block.rank));
    if (there) touch(static_cast<char*>(shared) + there, bytes, Access::write, 128, where);
    std::vector<Copy> copies;
    for (const Piece& piece : pieces) {
      const size_t filled = piece.global ? piece.bytes : 0;
      copies.push_back({piece.shared + there, piece.global, piece.bytes, filled, 0, site_of(where), false});
    }
    issue_to(barrier + there / ptrdiff_t(sizeof *barrier), std::move(copies), bytes, where);
  }
}

void tensor_store(const void* pointer, unsigned rank, Coordinates to, const void* shared, Where where) {
  const TensorMap map = map_of(pointer, rank, where);
  const auto source = static_cast<char*>(const_cast<void*>(shared));
  if (reinterpret_cast<uintptr_t>(shared) % 128)
    fail_misaligned(reinterpret_cast<uintptr_t>(shared), "a box", 128, site_of(where));
  check_in_shared(shared, box_bytes(map), "a tensor store", where);
  check_column(map, to, where);
  check_beginning(map, to, where);
  for (const Piece& piece : cut_box(map, source, to)) {
    if (!piece.global) continue;
    touch(piece.shared, piece.bytes, Access::read, 1, where);
    touch(piece.global, piece.bytes, Access::write, 1, where);
    issue_store(piece.global, piece.shared, piece.bytes, where);
  }
}

}  // namespace emulated
