// Signals: a kernel that crashes, or that its user interrupts, ends its launch and nothing else.
#include <pthread.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#include <csetjmp>
#include <csignal>
#include <cstdio>

#include "runtime.h"

namespace emulated {

volatile bool interrupted;

namespace {

constexpr int crashes[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP};
constexpr int crash_count = sizeof crashes / sizeof *crashes;

sigjmp_buf escape;
pthread_t launching;
volatile bool active;
struct sigaction former[crash_count], former_interrupt;

uintptr_t pc_of(const void* context) {
  const auto& machine = static_cast<const ucontext_t*>(context)->uc_mcontext;
#if defined(__x86_64__)
  return static_cast<uintptr_t>(machine.gregs[REG_RIP]);
#elif defined(__aarch64__)
  return static_cast<uintptr_t>(machine.pc);
#endif
}

void describe_crash(int number, const char* address) {
  char* text = report->message;
  constexpr size_t size = sizeof report->message;
  const char* stack = running().stack;
  if (number == SIGFPE) {
    snprintf(text, size, "an integer division by zero");
  } else if (number == SIGILL || number == SIGTRAP) {
    snprintf(text, size, "an illegal instruction, which marks what a compiler takes for impossible");
  } else if (address >= stack - guard_bytes && address < stack) {
    snprintf(text, size, "thread %u overflows its stack of %zu KiB", current.linear, stack_bytes / 1024);
  } else {
    snprintf(text, size, "an access to memory that is not there (address %p)", address);
  }
}

void on_crash(int number, siginfo_t* info, void* context) {
  if (!active || !pthread_equal(pthread_self(), launching)) {  // not ours: let it happen as if we were not here
    for (int i = 0; i < crash_count; ++i)
      if (crashes[i] == number) sigaction(number, &former[i], nullptr);
    if (info->si_code <= 0) raise(number);  // sent by somebody; all others come again by themselves
    return;
  }
  report->fault = Fault::crash;
  describe_crash(number, static_cast<const char*>(info->si_addr));
  describe_place(report->place, site_of_pc(pc_of(context)));
  siglongjmp(escape, 1);
}

void on_interrupt(int number) {
  interrupted = true;
  former_interrupt.sa_handler(number);
}

// Python handles Ctrl-C in its main thread, once the call that runs there returns: it must return soon.
bool interruptible() {
  return getpid() == static_cast<pid_t>(syscall(SYS_gettid)) && !(former_interrupt.sa_flags & SA_SIGINFO) &&
         former_interrupt.sa_handler != SIG_DFL && former_interrupt.sa_handler != SIG_IGN;
}

class Handlers {
 public:
  Handlers() : stack_(1 << 16) {
    stack_t mine{};
    mine.ss_sp = stack_.data();
    mine.ss_size = stack_.size();
    sigaltstack(&mine, &former_stack_);
    struct sigaction action{};
    action.sa_sigaction = on_crash;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    for (int i = 0; i < crash_count; ++i) sigaction(crashes[i], &action, &former[i]);
    sigaction(SIGINT, nullptr, &former_interrupt);
    struct sigaction interrupt = former_interrupt;
    interrupt.sa_handler = on_interrupt;
    if (interruptible()) sigaction(SIGINT, &interrupt, nullptr);
  }
  ~Handlers() {
    sigaction(SIGINT, &former_interrupt, nullptr);
    for (int i = 0; i < crash_count; ++i) sigaction(crashes[i], &former[i], nullptr);
    sigaltstack(&former_stack_, nullptr);
  }
  Handlers(const Handlers&) = delete;

 private:
  std::vector<char> stack_;  // for handlers: an overflow leaves no room on the thread's own
  stack_t former_stack_{};
};

}  // namespace

bool guarded(void (*work)()) {
  const Handlers handlers;
  interrupted = false;
  launching = pthread_self();
  active = true;
  const bool whole = sigsetjmp(escape, 1) == 0;
  if (whole) work();
  active = false;
  return whole;
}

}  // namespace emulated
