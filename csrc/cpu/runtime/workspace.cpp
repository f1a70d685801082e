// The cache of scratch buffers.
//
// Why it exists: the first touch of fresh memory costs 0.25 us per page of 4 KiB on one machine measured, 2.6 us on
// another (a virtual one, Zen 3). There a new 8 MiB buffer costs 5.7 ms, more than many a convolution; in huge pages it
// costs 0.28 ms, and a cached one 13 ns.
//
// A block is one word: the address of a mapping (a multiple of 4096) plus, in its low 12 bits, the class of its
// capacity. The cache is an array of blocks, 0 where empty. One compare-exchange of a word with 0 takes a block,
// another puts it back: there is no lock to wait for, to be forked under, or to destroy at exit. A compare-exchange
// that finds the word it saw before is right whatever happened in between, because equal words are the same free
// buffer.
#include "cpu/runtime/workspace.h"

#include <atomic>
#include <cstdlib>
#include <new>
#include <utility>

#include <sys/mman.h>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#endif

namespace convx {
namespace {

constexpr uintptr_t class_mask = 4095;
constexpr size_t least_capacity = size_t{32} << 10;
constexpr size_t largest_request = size_t{1} << 46;
constexpr size_t huge_page = size_t{2} << 20;
constexpr unsigned slots = 32;
// A buffer serves requests down to a quarter of its capacity: 2 octaves of 8 classes.
constexpr uintptr_t surplus_classes = 16;
// Enough for the largest plans (the transformed weights of a 512 x 512 Winograd layer, 37.7 MB, and 0.7 MB for each of
// 32 threads), and little beside the arrays of a network in training.
constexpr size_t default_limit = size_t{64} << 20;

std::atomic<uintptr_t> cache[slots];
std::atomic<size_t> cached{0};
std::atomic<unsigned> next_victim{0};
std::atomic<size_t> limit_setting{SIZE_MAX};  // SIZE_MAX: the environment has not been read yet

// Capacities have 8 steps to an octave, so that rounding up adds less than 1/8.
size_t capacity_of_class(uintptr_t c) { return least_capacity / 8 * (8 + c % 8) << c / 8; }
size_t capacity(uintptr_t block) { return capacity_of_class(block & class_mask); }
void* address(uintptr_t block) { return reinterpret_cast<void*>(block & ~class_mask); }

uintptr_t class_of(size_t bytes) {
    if (bytes <= least_capacity) return 0;
    const size_t last = bytes - 1;
    const unsigned octave = 63u - static_cast<unsigned>(__builtin_clzll(last));
    return (octave - 15) * 8 + (last >> (octave - 3) & 7) + 1;
}

size_t limit() {
    size_t bytes = limit_setting.load(std::memory_order_relaxed);
    if (bytes == SIZE_MAX) {
        const char* text = std::getenv("CONVX_WORKSPACE_BYTES");
        char* end = nullptr;
        const unsigned long long value = text ? std::strtoull(text, &end, 10) : 0;
        const bool valid = text && *text >= '0' && *text <= '9' && *end == '\0' && value < SIZE_MAX;
        bytes = valid ? static_cast<size_t>(value) : default_limit;
        limit_setting.store(bytes, std::memory_order_relaxed);
    }
    return bytes;
}

// For AddressSanitizer only the bytes asked for exist: an overrun is caught though the capacity would have held it.
void expose([[maybe_unused]] uintptr_t block, [[maybe_unused]] size_t bytes) {
#ifdef __SANITIZE_ADDRESS__
    __asan_poison_memory_region(address(block), capacity(block));
    __asan_unpoison_memory_region(address(block), bytes);
#endif
}

// From 2 MiB on aligned for huge pages, which are 19 times cheaper to touch first (see above).
uintptr_t map(uintptr_t c) {
    const size_t bytes = capacity_of_class(c);
    const size_t slack = bytes >= huge_page ? huge_page : 0;
    void* mapping = mmap(nullptr, bytes + slack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapping == MAP_FAILED) return 0;
    if (slack == 0) return reinterpret_cast<uintptr_t>(mapping) | c;
    const uintptr_t begin = reinterpret_cast<uintptr_t>(mapping);
    const uintptr_t aligned = (begin + huge_page - 1) & ~uintptr_t{huge_page - 1};
    if (aligned != begin) munmap(mapping, aligned - begin);
    if (aligned != begin + slack) munmap(reinterpret_cast<void*>(aligned + bytes), begin + slack - aligned);
#ifdef MADV_HUGEPAGE
    madvise(reinterpret_cast<void*>(aligned), bytes, MADV_HUGEPAGE);
#endif
    return aligned | c;
}

void unmap(uintptr_t block) {
    expose(block, capacity(block));
    munmap(address(block), capacity(block));
}

// The smallest cached block that fits and is not too large, or 0.
uintptr_t take(uintptr_t wanted) {
    for (;;) {
        uintptr_t best = 0, best_class = wanted + surplus_classes + 1;
        unsigned where = 0;
        for (unsigned i = 0; i < slots && best_class != wanted; ++i) {
            const uintptr_t block = cache[i].load(std::memory_order_relaxed);
            const uintptr_t c = block & class_mask;
            if (block != 0 && c >= wanted && c < best_class) best = block, best_class = c, where = i;
        }
        if (best == 0) return 0;
        if (cache[where].compare_exchange_strong(best, 0, std::memory_order_acquire)) {
            cached.fetch_sub(capacity_of_class(best_class), std::memory_order_relaxed);
            return best;
        }
    }
}

void drop(uintptr_t block) {
    if (block == 0) return;
    cached.fetch_sub(capacity(block), std::memory_order_relaxed);
    unmap(block);
}

// The block that comes back is the one used last, so where the cache is full it is others that go.
void put(uintptr_t block) {
    const size_t bytes = capacity(block);
    if (bytes > limit()) return unmap(block);
    expose(block, 0);
    while (cached.fetch_add(bytes, std::memory_order_relaxed) + bytes > limit()) {
        cached.fetch_sub(bytes, std::memory_order_relaxed);
        drop(cache[next_victim.fetch_add(1, std::memory_order_relaxed) % slots].exchange(0, std::memory_order_acquire));
    }
    for (std::atomic<uintptr_t>& slot : cache) {
        uintptr_t empty = 0;
        if (slot.load(std::memory_order_relaxed) == 0 &&
            slot.compare_exchange_strong(empty, block, std::memory_order_release))
            return;
    }
    drop(cache[next_victim.fetch_add(1, std::memory_order_relaxed) % slots].exchange(block, std::memory_order_acq_rel));
}

}  // namespace

Workspace::Workspace(size_t bytes) : size_(bytes) {
    if (bytes == 0) return;
    if (bytes > largest_request) throw std::bad_alloc();
    const uintptr_t c = class_of(bytes);
    block_ = take(c);
    if (block_ == 0) block_ = map(c);
    if (block_ == 0) {
        workspace_release();
        block_ = map(c);
    }
    if (block_ == 0) throw std::bad_alloc();
    expose(block_, bytes);
}

Workspace::Workspace(Workspace&& other) noexcept
    : block_(std::exchange(other.block_, 0)), size_(std::exchange(other.size_, 0)) {}

Workspace& Workspace::operator=(Workspace&& other) noexcept {
    std::swap(block_, other.block_);
    std::swap(size_, other.size_);
    return *this;
}

Workspace::~Workspace() {
    if (block_ != 0) put(block_);
}

size_t workspace_cached_bytes() { return cached.load(std::memory_order_relaxed); }

void workspace_release() {
    for (std::atomic<uintptr_t>& slot : cache) drop(slot.exchange(0, std::memory_order_acquire));
}

}  // namespace convx
