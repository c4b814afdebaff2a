// Emulation of kernels_cu/include/qp/ptx/launch.cuh.
#pragma once

namespace qp::ptx {

EMULATED_INSTRUCTION unsigned char* shared_memory() { return static_cast<unsigned char*>(emulated::shared_memory()); }

}  // namespace qp::ptx

#define QP_KERNEL(name, threads, Params, ...)                                      \
  static void name(const void* params) { __VA_ARGS__(*static_cast<const Params*>(params)); } \
  static const ::emulated::Entry name##_entry{#name, name, threads};
