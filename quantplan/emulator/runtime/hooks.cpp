// What -fsanitize=thread calls before each load and store of a kernel. Its own runtime is not linked.
#include <cstring>

#include "runtime.h"

namespace emulated {

namespace {

inline void seen(const void* p, size_t bytes, Access kind, const void* return_address) {
  if (bytes) access(reinterpret_cast<uintptr_t>(p), bytes, kind, site_of_call(return_address));
}

}  // namespace

}  // namespace emulated

#define EMULATED_SEEN(p, kind, bytes) \
  emulated::seen(p, bytes, emulated::Access::kind, __builtin_return_address(0))
#define EMULATED_SIZE(n)                                                              \
  EMULATED_HOOK void __tsan_read##n(void* p) { EMULATED_SEEN(p, read, n); }           \
  EMULATED_HOOK void __tsan_write##n(void* p) { EMULATED_SEEN(p, write, n); }         \
  EMULATED_HOOK void __tsan_unaligned_read##n(void* p) { EMULATED_SEEN(p, read, n); } \
  EMULATED_HOOK void __tsan_unaligned_write##n(void* p) { EMULATED_SEEN(p, write, n); }

extern "C" {
EMULATED_SIZE(1)
EMULATED_SIZE(2)
EMULATED_SIZE(4)
EMULATED_SIZE(8)
EMULATED_SIZE(16)
EMULATED_HOOK void __tsan_read_range(void* p, size_t n) { EMULATED_SEEN(p, read, n); }
EMULATED_HOOK void __tsan_write_range(void* p, size_t n) { EMULATED_SEEN(p, write, n); }
// Some compilers call the first of these, others the C library's functions, which the linker then replaces.
#define EMULATED_COPIES(prefix)                                                \
  EMULATED_HOOK void* prefix##memcpy(void* to, const void* from, size_t n) {   \
    EMULATED_SEEN(from, read, n);                                              \
    EMULATED_SEEN(to, write, n);                                               \
    return memcpy(to, from, n);                                                \
  }                                                                            \
  EMULATED_HOOK void* prefix##memmove(void* to, const void* from, size_t n) {  \
    EMULATED_SEEN(from, read, n);                                              \
    EMULATED_SEEN(to, write, n);                                               \
    return memmove(to, from, n);                                               \
  }                                                                            \
  EMULATED_HOOK void* prefix##memset(void* to, int value, size_t n) {          \
    EMULATED_SEEN(to, write, n);                                               \
    return memset(to, value, n);                                               \
  }
EMULATED_COPIES(__tsan_)
EMULATED_COPIES(__wrap_)
EMULATED_HOOK void __tsan_func_entry(void*) {}
EMULATED_HOOK void __tsan_func_exit() {}
EMULATED_HOOK void __tsan_init() {}
}
