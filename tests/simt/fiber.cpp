#include "fiber.h"

#include <sys/mman.h>

#include <cstdint>
#include <new>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#if !defined(__x86_64__)
#error "the SIMT shim's fibers are written for x86-64"
#endif

namespace convx::simt {

namespace {

// The two ends of the switch under way.
thread_local Fiber* arriving = nullptr;
thread_local Fiber* leaving = nullptr;

}  // namespace

// void switch_stacks(void** save, void* load): System V, rbx rbp r12-r15 belong to the caller.
extern "C" void convx_simt_switch_stacks(void** save, void* load);
asm(R"(
.text
.type convx_simt_switch_stacks, @function
convx_simt_switch_stacks:
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
.size convx_simt_switch_stacks, .-convx_simt_switch_stacks
)");

Fiber::~Fiber() {
    if (stack_) munmap(stack_, stack_bytes);
}

void Fiber::prepare(void (*entry)(void*), void* argument) {
    if (!stack_) {
        void* memory = mmap(nullptr, stack_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (memory == MAP_FAILED) throw std::bad_alloc();
        stack_ = static_cast<char*>(memory);
        stack_bottom_ = stack_;
        stack_size_ = stack_bytes;
    }
#if defined(__SANITIZE_ADDRESS__)
    // A fiber that was left in the middle leaves the borders of its frames behind.
    __asan_unpoison_memory_region(stack_, stack_bytes);
#endif
    entry_ = entry;
    argument_ = argument;
    // Six registers and the address to return to; 16-byte alignment as after a call.
    auto** top = reinterpret_cast<void**>(stack_ + stack_bytes - 64);
    *--top = nullptr;
    *--top = reinterpret_cast<void*>(&Fiber::start);
    for (int i = 0; i < 6; ++i) *--top = nullptr;
    stack_pointer_ = top;
}

void Fiber::switch_to(Fiber& to, bool last) {
    arriving = &to;
    leaving = this;
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(last ? nullptr : &fake_stack_, to.stack_bottom_, to.stack_size_);
#else
    (void)last;
#endif
    convx_simt_switch_stacks(&stack_pointer_, to.stack_pointer_);
    arrive();
}

void Fiber::arrive() {
#if defined(__SANITIZE_ADDRESS__)
    // Also tells where the OS thread's own stack lies, the first time that a fiber is entered from it.
    __sanitizer_finish_switch_fiber(fake_stack_, &leaving->stack_bottom_, &leaving->stack_size_);
#endif
}

void Fiber::start() {
    Fiber* self = arriving;
    self->arrive();
    self->entry_(self->argument_);
    __builtin_trap();
}

}  // namespace convx::simt
