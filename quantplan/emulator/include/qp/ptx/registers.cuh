// Emulation of kernels_cu/include/qp/ptx/registers.cuh.
#pragma once

#include <emulated/warp_group.h>
#include <qp/architecture.cuh>

namespace qp::ptx {

template <int registers, bool there = is_sm_90a>
EMULATED_INSTRUCTION void setmaxnreg_dec(EMULATED_CALLER) {
  static_assert(there, "setmaxnreg needs sm_90a");
  static_assert(registers >= 24 && registers <= 256 && registers % 8 == 0, "24 to 256 registers, a multiple of 8");
  emulated::set_registers(registers, false, where);
}
template <int registers, bool there = is_sm_90a>
EMULATED_INSTRUCTION void setmaxnreg_inc(EMULATED_CALLER) {
  static_assert(there, "setmaxnreg needs sm_90a");
  static_assert(registers >= 24 && registers <= 256 && registers % 8 == 0, "24 to 256 registers, a multiple of 8");
  emulated::set_registers(registers, true, where);
}

}  // namespace qp::ptx
