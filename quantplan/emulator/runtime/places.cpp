// Places in a kernel, small enough to keep one per byte of memory.
#include <link.h>

#include <algorithm>
#include <cstdio>

#include "runtime.h"

namespace emulated {

namespace {

constexpr Site named = 0x80000000u;  // set: an index into `places`; clear: an offset into the kernel's library
std::vector<Where> places;

// The kernel's library in memory.
struct Image {
  uintptr_t kernel, begin, end;
};
Image image;

int find_image(dl_phdr_info* info, size_t, void*) {
  uintptr_t begin = ~uintptr_t(0), end = 0;
  for (int i = 0; i < info->dlpi_phnum; ++i) {
    const auto& part = info->dlpi_phdr[i];
    if (part.p_type != PT_LOAD) continue;
    begin = std::min<uintptr_t>(begin, info->dlpi_addr + part.p_vaddr);
    end = std::max<uintptr_t>(end, info->dlpi_addr + part.p_vaddr + part.p_memsz);
  }
  if (image.kernel < begin || image.kernel >= end) return 0;
  image.begin = begin;
  image.end = end;
  return 1;  // found: look no further
}

}  // namespace

void places_begin_launch(const void* kernel) {
  places.clear();
  image = {reinterpret_cast<uintptr_t>(kernel), 0, 0};
  dl_iterate_phdr(find_image, nullptr);
}

bool in_library(uintptr_t address, size_t bytes) { return address >= image.begin && address + bytes <= image.end; }

Site site_of(Where where) {
  // the instructions of a library name few places; the newest is the likeliest
  for (size_t i = places.size(); i-- > 0;)
    if (places[i].line == where.line && places[i].file == where.file) return named | Site(i);
  places.push_back(where);
  return named | Site(places.size() - 1);
}

Site site_of_pc(uintptr_t pc) { return in_library(pc, 1) ? Site(pc - image.begin) : 0; }

Site site_of_call(const void* return_address) {
  return site_of_pc(reinterpret_cast<uintptr_t>(return_address) - 1);  // within the call, not behind it
}

void describe_place(Place& place, Site site) {
  place = {};
  if (site & named) {
    const Where where = places[site & ~named];
    snprintf(place.file, sizeof place.file, "%s", where.file);
    place.line = where.line;
  } else {
    place.pc = site;
  }
}

}  // namespace emulated
