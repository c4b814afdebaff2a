// What sm_90a alone has: neither sm_90, whose __CUDA_ARCH__ is the same, nor what came after it.
#pragma once

namespace qp {

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
constexpr bool is_sm_90a = true;
#else
constexpr bool is_sm_90a = false;
#endif

}  // namespace qp
