// Places in a kernel, small enough to keep one per byte of memory.
#include <dlfcn.h>

#include <cstdio>
#include <cstring>

#include "runtime.h"

namespace emulated {

namespace {

constexpr Site named = 0x80000000u;  // set: an index into `places`; clear: an offset into the library
std::vector<Where> places;

uintptr_t base;  // of the library that holds the kernel

}  // namespace

void places_begin_launch(const void* kernel) {
  Dl_info info;
  base = dladdr(kernel, &info) ? reinterpret_cast<uintptr_t>(info.dli_fbase) : 0;
  places.clear();
}

Site site_of(Where where) {
  // the instructions of a library name few places; the newest is the likeliest
  for (size_t i = places.size(); i-- > 0;)
    if (places[i].line == where.line && places[i].file == where.file) return named | Site(i);
  places.push_back(where);
  return named | Site(places.size() - 1);
}

Site site_of_pc(const void* return_address) {
  return Site(reinterpret_cast<uintptr_t>(return_address) - 1 - base);  // within the call, not behind it
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
