// One block of a kernel, run by one OS thread: every CUDA thread is a fiber, a barrier is a place where fibers wait.
// Made to find mistakes: shared memory starts as NaN and ends where the launch said (AddressSanitizer sees the end),
// the target of a copy is NaN until it was waited for, fibers and blocks run in an order that a seed decides
// (CONVX_SIMT_SEED), and threads that wait for each other are reported.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "fiber.h"

namespace convx::simt {

struct Index3 {
    unsigned x = 1, y = 1, z = 1;
    constexpr Index3(unsigned nx = 1, unsigned ny = 1, unsigned nz = 1) : x(nx), y(ny), z(nz) {}
};

constexpr int warp_lanes = 32;

class Block {
public:
    // Runs kernel() once for every thread of every block, and throws std::logic_error where the kernel broke a rule.
    static void run_grid(Index3 grid, int threads, size_t shared_bytes, const std::function<void()>& kernel);

    static Block& current();
    Index3 thread_index() const { return {static_cast<unsigned>(running_), 0, 0}; }
    Index3 block_index() const { return block_index_; }
    Index3 block_size() const { return {static_cast<unsigned>(threads_), 1, 1}; }
    Index3 grid_size() const { return grid_; }
    unsigned char* shared_bytes() const { return shared_.get(); }

    void barrier();

    // Every lane of a warp comes with a pointer of its own; when all are there, work(lanes) runs once.
    using WarpWork = void (*)(void* const (&lanes)[warp_lanes]);
    void warp_together(void* mine, WarpWork work);

    void copy_async(void* target, const void* source, size_t bytes, bool valid);
    void copies_commit();
    void copies_wait(size_t pending);

    // Leaves the kernel for good; launch throws the message.
    [[noreturn]] void fail(const std::string& message);

private:
    enum class State { ready, at_barrier, in_warp, done };
    struct Copy {
        unsigned char* target;
        const unsigned char* source;
        size_t bytes;
        bool valid;
    };
    struct Thread {
        Fiber fiber;
        State state = State::ready;
        std::vector<std::vector<Copy>> groups;  // committed, oldest first
        std::vector<Copy> open;
    };
    struct Warp {
        void* lanes[warp_lanes] = {};
        int arrived = 0;
        WarpWork work = nullptr;
    };

    void run(Index3 block_index, uint64_t seed);
    void wait(State state);
    static void thread_main(void* block);

    Index3 grid_, block_index_;
    int threads_ = 0;
    size_t shared_size_ = 0;
    const std::function<void()>* kernel_ = nullptr;
    std::unique_ptr<unsigned char[]> shared_;
    std::vector<std::unique_ptr<Thread>> fibers_;
    std::vector<Warp> warps_;
    Fiber scheduler_;
    int running_ = 0;
    std::string error_;
};

}  // namespace convx::simt
