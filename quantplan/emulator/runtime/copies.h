// An asynchronous copy into shared memory: issued, landed at a moment that the completion policy picks, and visible only
// to who waited for it. Until then its destination holds garbage and may not be touched.
#pragma once
#include <vector>

#include "runtime.h"

namespace emulated {

struct Copy {
  char* to;
  const char* from;
  size_t bytes, filled;  // bytes read from the source; the rest becomes zero
  unsigned group;
  Site site;
  bool landed;
};

bool lands_at_once();
void issue(Copy& copy, bool at_once);
void land(Copy& copy);
// Issues copies that report so many bytes to an mbarrier, when all of them have landed.
void issue_to(uint64_t* barrier, std::vector<Copy> copies, size_t bytes, Where where, bool sent = false);
// Issues a copy to global memory, in the running thread's open bulk group.
void issue_store(void* global, const void* shared, size_t bytes, Where where);
void check_size(bool sound, const char* what, size_t bytes, Where where);
void check_spaces(const void* shared, const void* global, size_t bytes, const char* what, Where where);
void check_in_shared(const void* shared, size_t bytes, const char* what, Where where);
std::vector<Copy> take_copies(unsigned thread);  // the cp.async that a thread has issued and not waited for
bool init_fenced(unsigned thread, uint32_t clock);

void mbarriers_begin_block();
void mbarriers_end_block();

}  // namespace emulated
