// Functions that the hardware approximates: within a few units in the last place, and not the same bits on every GPU.
#pragma once

namespace qp::ptx {

// 2 to the power of x, off by at most 2 units in the last place. A subnormal x counts as 0; so does a subnormal result.
__device__ inline float ex2_approx(float x) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}

// 1 / x, off by at most 1 unit in the last place. A subnormal x counts as 0; so does a subnormal result.
__device__ inline float rcp_approx(float x) {
  float result;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}

}  // namespace qp::ptx
