// Fibers: stacks that give the processor to one another by name. A switch saves the six registers that a call must
// preserve and costs a few nanoseconds; ucontext's is a system call.
#pragma once

#include <cstddef>

namespace convx::simt {

class Fiber {
public:
    Fiber() = default;
    Fiber(const Fiber&) = delete;
    Fiber& operator=(const Fiber&) = delete;
    ~Fiber();

    // Makes the fiber run entry(argument) when it is next switched to; entry never returns: it leaves by switch_to.
    void prepare(void (*entry)(void*), void* argument);
    // Runs `to` until something switches back here. `last`: this fiber's stack is done for now.
    void switch_to(Fiber& to, bool last = false);

    static constexpr size_t stack_bytes = 64 * 1024;

private:
    static void start();
    void arrive();

    void* stack_pointer_ = nullptr;
    char* stack_ = nullptr;  // none: the stack of the OS thread
    const void* stack_bottom_ = nullptr;
    size_t stack_size_ = 0;
    void* fake_stack_ = nullptr;  // AddressSanitizer's
    void (*entry_)(void*) = nullptr;
    void* argument_ = nullptr;
};

}  // namespace convx::simt
