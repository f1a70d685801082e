#include "block.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <random>
#include <stdexcept>

namespace convx::simt {

namespace {

thread_local Block* current_block = nullptr;
// CONVX_SIMT_SEED decides the order of fibers and blocks; another one with every launch.
uint64_t next_seed() {
    static uint64_t launches = 0;
    const char* text = std::getenv("CONVX_SIMT_SEED");
    return (text ? std::strtoull(text, nullptr, 10) : 1) + (launches++ << 32);
}

// As a number of any floating-point type, NaN.
constexpr int poison = 0xff;

}  // namespace

Block& Block::current() { return *current_block; }

void Block::run_grid(Index3 grid, int threads, size_t shared_bytes, const std::function<void()>& kernel) {
    if (threads < 1 || threads > 1024)
        throw std::logic_error("simt: a block of " + std::to_string(threads) + " threads");
    if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.y > 65535 || grid.z > 65535)
        throw std::logic_error("simt: a grid that no GPU takes");
    // As the largest devices allow; a kernel's own budget is for the compile gate.
    if (shared_bytes > 227 * 1024) throw std::logic_error("simt: too much shared memory");
    static thread_local Block block;
    block.grid_ = grid;
    block.threads_ = threads;
    block.kernel_ = &kernel;
    block.shared_size_ = shared_bytes;
    block.shared_.reset(new unsigned char[std::max<size_t>(shared_bytes, 1)]);
    while (block.fibers_.size() < static_cast<size_t>(threads)) block.fibers_.push_back(std::make_unique<Thread>());

    const uint64_t seed = next_seed();
    std::vector<uint64_t> order(static_cast<uint64_t>(grid.x) * grid.y * grid.z);
    std::iota(order.begin(), order.end(), uint64_t{0});
    std::shuffle(order.begin(), order.end(), std::mt19937_64(seed));
    current_block = &block;
    for (const uint64_t i : order)
        block.run({static_cast<unsigned>(i % grid.x), static_cast<unsigned>(i / grid.x % grid.y),
                   static_cast<unsigned>(i / grid.x / grid.y)},
                  seed + i);
    current_block = nullptr;
}

void Block::run(Index3 block_index, uint64_t seed) {
    block_index_ = block_index;
    error_.clear();
    std::memset(shared_.get(), poison, shared_size_);
    const size_t warps = (static_cast<size_t>(threads_) + warp_lanes - 1) / warp_lanes;
    warps_.assign(warps, Warp{});
    std::vector<int> order(static_cast<size_t>(threads_));
    std::iota(order.begin(), order.end(), 0);
    for (const int i : order) {
        Thread& thread = *fibers_[static_cast<size_t>(i)];
        thread.state = State::ready;
        thread.groups.clear();
        thread.open.clear();
        thread.fiber.prepare(&Block::thread_main, this);
    }
    std::mt19937_64 random(seed);
    std::shuffle(order.begin(), order.end(), random);
    for (;;) {
        bool ran = false;
        for (const int i : order) {
            Thread& thread = *fibers_[static_cast<size_t>(i)];
            if (thread.state != State::ready) continue;
            ran = true;
            running_ = i;
            scheduler_.switch_to(thread.fiber);
            if (!error_.empty()) throw std::logic_error("simt: " + error_);
        }
        if (ran) continue;
        int done = 0, at_barrier = 0;
        for (const int i : order) {
            done += fibers_[static_cast<size_t>(i)]->state == State::done;
            at_barrier += fibers_[static_cast<size_t>(i)]->state == State::at_barrier;
        }
        if (done == threads_) return;
        if (done + at_barrier < threads_)
            throw std::logic_error("simt: threads wait for each other: a warp-wide operation that not all lanes reach");
        for (const int i : order)
            if (fibers_[static_cast<size_t>(i)]->state == State::at_barrier)
                fibers_[static_cast<size_t>(i)]->state = State::ready;
        std::shuffle(order.begin(), order.end(), random);
    }
}

void Block::thread_main(void* pointer) {
    Block& block = *static_cast<Block*>(pointer);
    (*block.kernel_)();
    Thread& self = *block.fibers_[static_cast<size_t>(block.running_)];
    self.state = State::done;
    if (!self.groups.empty() || !self.open.empty()) block.error_ = "a thread ends while its copies are under way";
    self.fiber.switch_to(block.scheduler_, true);
}

void Block::wait(State state) {
    Thread& self = *fibers_[static_cast<size_t>(running_)];
    self.state = state;
    self.fiber.switch_to(scheduler_);
}

void Block::barrier() { wait(State::at_barrier); }

void Block::warp_together(void* mine, WarpWork work) {
    const int lane = running_ % warp_lanes;
    Warp& warp = warps_[static_cast<size_t>(running_ / warp_lanes)];
    if (threads_ % warp_lanes != 0) fail("a warp-wide operation in a block without whole warps");
    if (warp.arrived > 0 && warp.work != work) fail("lanes of a warp are in different warp-wide operations");
    warp.work = work;
    warp.lanes[lane] = mine;
    if (++warp.arrived < warp_lanes) return wait(State::in_warp);
    work(warp.lanes);
    warp.arrived = 0;
    const int first = running_ - lane;
    for (int i = first; i < first + warp_lanes; ++i) fibers_[static_cast<size_t>(i)]->state = State::ready;
}

void Block::copy_async(void* target, const void* source, size_t bytes, bool valid) {
    auto* const to = static_cast<unsigned char*>(target);
    if (reinterpret_cast<uintptr_t>(target) % bytes != 0 || reinterpret_cast<uintptr_t>(source) % bytes != 0)
        fail("a copy whose ends are not aligned to its size");
    if (to < shared_.get() || to + bytes > shared_.get() + shared_size_) fail("a copy to outside the shared memory");
    std::memset(to, poison, bytes);
    fibers_[static_cast<size_t>(running_)]->open.push_back(
        {to, static_cast<const unsigned char*>(source), bytes, valid});
}

void Block::copies_commit() {
    Thread& self = *fibers_[static_cast<size_t>(running_)];
    self.groups.push_back(std::move(self.open));
    self.open.clear();
}

void Block::copies_wait(size_t pending) {
    Thread& self = *fibers_[static_cast<size_t>(running_)];
    while (self.groups.size() > pending) {
        for (const Copy& copy : self.groups.front()) {
            if (copy.valid)
                std::memcpy(copy.target, copy.source, copy.bytes);
            else
                std::memset(copy.target, 0, copy.bytes);
        }
        self.groups.erase(self.groups.begin());
    }
}

void Block::fail(const std::string& message) {
    error_ = message;
    fibers_[static_cast<size_t>(running_)]->fiber.switch_to(scheduler_, true);
    __builtin_unreachable();
}

}  // namespace convx::simt
