// Emulation of kernels_cu/include/qp/ptx/approximate.cuh: the host's own functions, which are closer than PTX promises, and
// what is subnormal flushed to zero as PTX says.
#pragma once

namespace emulated {

EMULATED_INSTRUCTION float flushed(float x) { return std::fpclassify(x) == FP_SUBNORMAL ? std::copysign(0.0f, x) : x; }

}  // namespace emulated

namespace qp::ptx {

EMULATED_INSTRUCTION float ex2_approx(float x) { return emulated::flushed(exp2f(emulated::flushed(x))); }
EMULATED_INSTRUCTION float rcp_approx(float x) { return emulated::flushed(1.0f / emulated::flushed(x)); }

}  // namespace qp::ptx
