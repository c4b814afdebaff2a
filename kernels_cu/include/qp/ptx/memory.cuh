// Loads and stores of global memory, wider than an element.
#pragma once

namespace qp::ptx {

// Loads 16 bytes that nothing writes during the kernel and that are read once: they do not displace others in L1.
__device__ inline uint4 load_16(const void* global) {
  uint4 v;
  asm("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
      : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
      : "l"(global));
  return v;
}

// Loads 8 such bytes.
__device__ inline uint2 load_8(const void* global) {
  uint2 v;
  asm("ld.global.nc.L1::no_allocate.v2.u32 {%0, %1}, [%2];" : "=r"(v.x), "=r"(v.y) : "l"(global));
  return v;
}

// Loads 4 such bytes.
__device__ inline unsigned load_4(const void* global) {
  unsigned v;
  asm("ld.global.nc.L1::no_allocate.u32 %0, [%1];" : "=r"(v) : "l"(global));
  return v;
}

// Loads 2 such bytes.
__device__ inline unsigned short load_2(const void* global) {
  unsigned short v;
  asm("ld.global.nc.L1::no_allocate.u16 %0, [%1];" : "=h"(v) : "l"(global));
  return v;
}

// Stores 16 bytes.
__device__ inline void store_16(void* global, uint4 v) {
  asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(global), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w)
               : "memory");
}

// Stores 8 bytes.
__device__ inline void store_8(void* global, uint2 v) {
  asm volatile("st.global.v2.u32 [%0], {%1, %2};" ::"l"(global), "r"(v.x), "r"(v.y) : "memory");
}

// Stores 4 bytes.
__device__ inline void store_4(void* global, unsigned v) {
  asm volatile("st.global.u32 [%0], %1;" ::"l"(global), "r"(v) : "memory");
}

// Stores 2 bytes.
__device__ inline void store_2(void* global, unsigned short v) {
  asm volatile("st.global.u16 [%0], %1;" ::"l"(global), "h"(v) : "memory");
}

}  // namespace qp::ptx
