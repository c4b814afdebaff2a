// Fibers: one per CUDA thread, switched by hand because a block has up to 1024 of them and switches at every barrier.
#pragma once

extern "C" void emulated_switch(void** save, void* load);

#if defined(__x86_64__)
asm(R"(
.text
.p2align 4
.globl emulated_switch
.hidden emulated_switch
.type emulated_switch,@function
emulated_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size emulated_switch,.-emulated_switch
)");

// Six callee-saved registers, then the address that `ret` goes to; 8 mod 16 at a function's entry.
inline void* first_frame(char* top, void (*entry)()) {
  void** sp = reinterpret_cast<void**>(reinterpret_cast<unsigned long>(top) & ~15ul);
  *--sp = nullptr;
  *--sp = reinterpret_cast<void*>(entry);
  for (int i = 0; i < 6; ++i) *--sp = nullptr;
  return sp;
}

#elif defined(__aarch64__)
asm(R"(
.text
.p2align 4
.globl emulated_switch
.hidden emulated_switch
.type emulated_switch,%function
emulated_switch:
  sub sp, sp, #160
  stp x19, x20, [sp, #0]
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x9, sp
  str x9, [x0]
  mov sp, x1
  ldp x19, x20, [sp, #0]
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  add sp, sp, #160
  ret
.size emulated_switch,.-emulated_switch
)");

// Twenty callee-saved registers; x30, the eleventh+1, is where `ret` goes to.
inline void* first_frame(char* top, void (*entry)()) {
  void** sp = reinterpret_cast<void**>(reinterpret_cast<unsigned long>(top) & ~15ul) - 20;
  for (int i = 0; i < 20; ++i) sp[i] = nullptr;
  sp[11] = reinterpret_cast<void*>(entry);
  return sp;
}

#else
#error "the emulated device switches threads on x86-64 and aarch64 only"
#endif
