// One kernel for each kind of fault, and those that crash; see units.py.
#include <qp/ptx/copy_async.cuh>

__device__ inline bool me() { return threadIdx.x == 33 && blockIdx.x == 1; }

__device__ void sound(const P& p) { p.out[64 * blockIdx.x + threadIdx.x] = p.in[threadIdx.x]; }

__device__ void race(const P& p) {
  if (threadIdx.x == 32 || me()) shared()[0] = 1;  // @race
}
__device__ void uninitialized(const P& p) {
  if (me()) p.out[0] = shared()[7];  // @uninitialized
}
__device__ void out_of_bounds(const P& p) {
  if (me()) p.out[0] = p.in[-1];  // @out_of_bounds
}
__device__ void misaligned(const P& p) {
  if (me()) p.out[0] = *reinterpret_cast<const int*>(reinterpret_cast<const char*>(p.in) + 2);  // @misaligned
}
__device__ void read_only(const P& p) {
  if (me()) const_cast<int*>(p.in)[0] = 1;  // @read_only
}
__device__ void in_flight(const P& p) {
  if (!me()) return;
  qp::ptx::cp_async<16>(shared(), p.in);
  p.out[0] = shared()[0];  // @in_flight
}
__device__ void deadlock(const P& p) {
  if (me()) __syncthreads();  // @deadlock
}
__device__ void barrier(const P& p) {
  if (me()) ::emulated::barrier(16, 0, true, ::emulated::Vote::none, false, ::emulated::Where::here());  // @barrier
}
__device__ void collective(const P& p) {
  if (me()) __shfl_sync(1, 0, 0);  // @collective
}
__device__ void invalid(const P& p) {
  if (me()) ::emulated::fail_invalid("no such instruction", ::emulated::Where::here());  // @invalid
}
__device__ void crash(const P& p) {
  if (me()) *reinterpret_cast<volatile int*>(p.flaw * 8) = 1;  // @crash
}

// ---- what C++ leaves undefined; the numbers come from memory, so that no compiler sees through

__device__ void sum_overflows(const P& p) { p.out[0] = p.in[0] + p.in[1]; }  // @sum_overflows
__device__ void difference_overflows(const P& p) { p.out[0] = p.in[1] - p.in[0] - 3; }  // @difference_overflows
__device__ void product_overflows(const P& p) { p.out[0] = p.in[0] * p.in[2]; }  // @product_overflows
__device__ void negation_overflows(const P& p) { p.out[0] = -p.in[3]; }  // @negation_overflows
__device__ void division_by_zero(const P& p) { p.out[0] = p.in[0] / p.in[4]; }  // @division_by_zero
__device__ void remainder_by_zero(const P& p) { p.out[0] = p.in[0] % p.in[4]; }  // @remainder_by_zero
__device__ void quotient_overflows(const P& p) { p.out[0] = p.in[3] / p.in[5]; }  // @quotient_overflows
__device__ void far_shift(const P& p) { p.out[0] = p.in[1] << p.in[6]; }  // @far_shift
__device__ void far_right_shift(const P& p) { p.out[0] = p.in[0] >> p.in[6]; }  // @far_right_shift
__device__ void float_does_not_fit(const P& p) { p.out[0] = int(float(p.in[0]) * 4.f); }  // @float_does_not_fit
__device__ void nan_is_no_integer(const P& p) {
  const float zero = float(p.in[4]);
  p.out[0] = int(zero / zero);  // @nan_is_no_integer
}
__device__ void no_bool(const P& p) { p.out[0] = *reinterpret_cast<const bool*>(p.in + 6); }  // @no_bool

// ---- crashes: of the processor's own accord where nothing is checked

__device__ void null(const P& p) { *reinterpret_cast<volatile int*>(p.flaw - 1) = 1; }  // @null
__device__ void wild(const P& p) { p.out[0] = *reinterpret_cast<volatile const int*>(p.flaw << 45); }  // @wild

__device__ __attribute__((noinline)) int deeper(volatile int* n) {
  volatile int here[64];
  here[*n % 64] = *n;
  ++*n;
  return deeper(n) + here[*n % 64];  // @overflow
}
__device__ void overflow(const P& p) {
  volatile int n = 0;
  p.out[0] = deeper(&n);
}
