// Emulation of kernels_cu/include/qp/ptx/barrier.cuh. A count of 0 would mean the whole block to the runtime.
#pragma once

namespace qp::ptx {

EMULATED_INSTRUCTION void bar_sync(unsigned id, unsigned threads, EMULATED_CALLER) {
  if (threads == 0) emulated::fail_invalid("a barrier for no threads", where);
  emulated::barrier(int(id), threads, true, emulated::Vote::none, false, where);
}
EMULATED_INSTRUCTION void bar_arrive(unsigned id, unsigned threads, EMULATED_CALLER) {
  if (threads == 0) emulated::fail_invalid("a barrier for no threads", where);
  emulated::barrier(int(id), threads, false, emulated::Vote::none, false, where);
}

}  // namespace qp::ptx
