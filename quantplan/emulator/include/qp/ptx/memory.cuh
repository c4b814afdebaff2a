// Emulation of kernels_cu/include/qp/ptx/memory.cuh: misalignment is a fault in every build, as on a GPU. Loads of what the
// launch may write are one where accesses are checked: the cache that they go through sees no writes.
#pragma once

namespace emulated {

template <class T>
EMULATED_INSTRUCTION T load(const void* pointer, Where where) {
  touch_constant(pointer, sizeof(T), where);
  T value;
  memcpy(&value, pointer, sizeof value);
  return value;
}

template <class T>
EMULATED_INSTRUCTION void store(void* pointer, T value, Where where) {
  touch(pointer, sizeof(T), Access::write, sizeof(T), where);
  memcpy(pointer, &value, sizeof value);
}

}  // namespace emulated

namespace qp::ptx {

EMULATED_INSTRUCTION uint4 load_16(const void* global, EMULATED_CALLER) { return emulated::load<uint4>(global, where); }
EMULATED_INSTRUCTION uint2 load_8(const void* global, EMULATED_CALLER) { return emulated::load<uint2>(global, where); }
EMULATED_INSTRUCTION unsigned load_4(const void* global, EMULATED_CALLER) {
  return emulated::load<unsigned>(global, where);
}
EMULATED_INSTRUCTION unsigned short load_2(const void* global, EMULATED_CALLER) {
  return emulated::load<unsigned short>(global, where);
}
EMULATED_INSTRUCTION void store_16(void* global, uint4 v, EMULATED_CALLER) { emulated::store(global, v, where); }
EMULATED_INSTRUCTION void store_8(void* global, uint2 v, EMULATED_CALLER) { emulated::store(global, v, where); }
EMULATED_INSTRUCTION void store_4(void* global, unsigned v, EMULATED_CALLER) { emulated::store(global, v, where); }
EMULATED_INSTRUCTION void store_2(void* global, unsigned short v, EMULATED_CALLER) { emulated::store(global, v, where); }

}  // namespace qp::ptx
