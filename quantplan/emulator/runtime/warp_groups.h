// Four warps that execute an instruction together, and what the runtime's other files tell those instructions.
#pragma once
#include "runtime.h"

namespace emulated {

// A warp group's number among the resident ones, and its first thread.
inline unsigned running_group() { return block.running / group_threads; }
inline unsigned first_thread(unsigned group) { return group * group_threads; }

// Meets the group's 128 threads; `complete` runs once, when all have arrived, with what each has brought.
void meet_group(void* mine, Complete complete, Where where);

}  // namespace emulated
