// The shim finds what it was made to find: each mistake below, in a kernel of a few lines, must be reported or must
// poison the result; the same kernel without the mistake must give the right one.
#include <cmath>
#include <cstdio>
#include <functional>
#include <string>

#include "cuda/device.cuh"

using namespace convx::cuda;
using convx::simt::Block;
using convx::simt::Index3;

namespace {

int failures = 0;

void expect(const char* name, bool good) {
    std::printf("%-60s %s\n", name, good ? "ok" : "FAILED");
    failures += !good;
}

std::string error_of(int threads, size_t shared, const std::function<void()>& kernel, Index3 grid = {}) {
    try {
        Block::run_grid(grid, threads, shared, kernel);
    } catch (const std::logic_error& error) {
        return error.what();
    }
    return "";
}

void expect_error(const char* name, const char* words, int threads, const std::function<void()>& kernel,
                  size_t shared = 4096) {
    expect(name, error_of(threads, shared, kernel).find(words) != std::string::npos);
}

struct Numbers {
    float value[1024];
};
int thread() { return static_cast<int>(threadIdx.x); }

// Each thread takes its neighbour's number, over shared memory.
bool neighbours_agree(bool with_barrier) {
    constexpr int count = 256;
    static float result[count];
    Block::run_grid({}, count, sizeof(Numbers), [&] {
        Numbers& shared = shared_memory<Numbers>();
        shared.value[thread()] = static_cast<float>(thread());
        if (with_barrier) block_barrier();
        result[thread()] = shared.value[(thread() + 1) % count];
    });
    for (int i = 0; i < count; ++i)
        if (!(result[i] == static_cast<float>((i + 1) % count))) return false;
    return true;
}

alignas(16) float source[4] = {1, 2, 3, 4};

// What a thread reads of 16 copied bytes.
float copied(bool wait) {
    float result = 0;
    Block::run_grid({}, 1, sizeof(Numbers), [&] {
        Numbers& shared = shared_memory<Numbers>();
        copy_async_16(shared.value, source, true);
        copies_commit();
        if (wait) copies_wait<0>();
        result = shared.value[2];
        copies_wait<0>();
    });
    return result;
}

// One warp multiplies the unit matrix by numbers: fragments laid out as the PTX ISA says give b back.
bool multiplies() {
    static float result[32][4];
    Block::run_grid({}, 32, 0, [] {
        const int lane = thread();
        float sum[4] = {};
        const uint32_t a[4] = {bits_of(lane / 4 == lane % 4 ? 1.0f : 0.0f), 0,
                               bits_of(lane / 4 == lane % 4 + 4 ? 1.0f : 0.0f), 0};
        const uint32_t b[2] = {bits_of(static_cast<float>(lane % 4 * 8 + lane / 4)),
                               bits_of(static_cast<float>((lane % 4 + 4) * 8 + lane / 4))};
        mma_tf32(sum, a, b);
        for (int i = 0; i < 4; ++i) result[lane][i] = sum[i];
    });
    for (int lane = 0; lane < 32; ++lane)
        for (int i = 0; i < 4; ++i)
            if (result[lane][i] != (i < 2 ? static_cast<float>(lane / 4 * 8 + lane % 4 * 2 + i) : 0.0f)) return false;
    return true;
}

// Every third lane of two warps says yes.
bool ballots() {
    static uint32_t result[64];
    Block::run_grid({}, 64, 0, [] { result[thread()] = ballot(thread() % 3 == 0); });
    for (int i = 0; i < 64; ++i)
        if (result[i] != (i < 32 ? 0x49249249u : 0x92492492u)) return false;
    return true;
}

}  // namespace

int main() {
    expect("numbers cross the block behind a barrier", neighbours_agree(true));
    expect("a forgotten barrier poisons the result", !neighbours_agree(false));
    expect("a copy that was waited for", copied(true) == 3);
    expect("a copy that was not is NaN", std::isnan(copied(false)));
    expect("mma's fragments", multiplies());
    expect("a ballot of each warp", ballots());
    expect_error("a ballot that a lane skips", "not all lanes reach", 32, [] {
        if (thread() != 31) ballot(true);
    });
    expect_error("threads that skip a warp-wide operation", "not all lanes reach", 32, [] {
        if (thread() != 7) shuffle_xor(1.0f, 1);
    });
    expect_error("lanes in different warp-wide operations", "different warp-wide operations", 32, [] {
        if (thread() < 16)
            shuffle_xor(1.0f, 1);
        else
            shuffle_xor(1.0, 1);
    });
    expect_error("a warp-wide operation in half a warp", "without whole warps", 48, [] { shuffle_xor(1.0f, 1); });
    expect_error("a copy that is never waited for", "ends while its copies are under way", 1, [] {
        copy_async_16(shared_memory<Numbers>().value, source, true);
        copies_commit();
    });
    expect_error("a copy to outside the shared memory", "outside the shared memory", 1,
                 [] { copy_async_16(shared_memory<Numbers>().value + 1024, source, true); });
    expect_error("a copy that is not aligned", "not aligned", 1,
                 [] { copy_async_16(shared_memory<Numbers>().value + 1, source, true); });
    expect_error("more shared memory than a GPU has", "too much shared memory", 32, [] {}, 300 * 1024);
    expect_error("more threads than a block has", "a block of 2048 threads", 2048, [] {});
    expect("a grid that no GPU takes", error_of(32, 0, [] {}, {1, 70000, 1}).find("no GPU takes") != std::string::npos);
    expect("the shim works on after errors", neighbours_agree(true));
    return failures != 0;
}
