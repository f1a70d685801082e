// Tests of csrc/cpu/runtime/workspace.cpp as a program of its own, for ThreadSanitizer and AddressSanitizer:
//
//     g++ -std=c++17 -g -O1 -fsanitize=thread -Icsrc tests/native/test_workspace.cpp csrc/cpu/runtime/workspace.cpp
//     -pthread
#include "cpu/runtime/workspace.h"

#include "testing.h"

#include <atomic>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <new>
#include <thread>
#include <utility>
#include <vector>

#include <sys/resource.h>

namespace {

using convx::Workspace;
using convx::workspace_cached_bytes;
using convx::workspace_release;

constexpr size_t KiB = 1024, MiB = 1024 * KiB;

bool throws_bad_alloc(size_t bytes) {
    try {
        const Workspace workspace(bytes);
        return false;
    } catch (const std::bad_alloc&) {
        return true;
    }
}

void test_sizes_and_alignment() {
    CHECK(Workspace(0).data() == nullptr && Workspace(0).size() == 0);
    // Both sides of every step between capacities from 32 KiB to 64 MiB.
    for (size_t octave = 32 * KiB; octave <= 64 * MiB; octave *= 2) {
        for (size_t step = 8; step < 16; ++step) {
            for (size_t bytes : {octave / 8 * step - 1, octave / 8 * step, octave / 8 * step + 1}) {
                const Workspace workspace(bytes);
                CHECK_SHOW(workspace.size() == bytes, "%zu", bytes);
                CHECK_SHOW(reinterpret_cast<uintptr_t>(workspace.data()) % 64 == 0, "%zu", bytes);
                auto* data = static_cast<unsigned char*>(workspace.data());
                data[0] = data[bytes - 1] = 1;
            }
        }
    }
    std::vector<Workspace> workspaces;
    for (size_t bytes = 1; bytes < 100 * KiB; bytes = bytes * 3 + 1) {
        workspaces.emplace_back(bytes);
        std::memset(workspaces.back().data(), static_cast<int>(workspaces.size()), bytes);
    }
    for (size_t i = 0; i < workspaces.size(); ++i) {
        const auto* data = static_cast<const unsigned char*>(workspaces[i].data());
        for (size_t byte = 0; byte < workspaces[i].size(); ++byte) CHECK_SHOW(data[byte] == i + 1, "buffer %zu", i);
    }
}

void test_cache() {
    workspace_release();
    CHECK(workspace_cached_bytes() == 0);
    void* first = nullptr;
    {
        const Workspace workspace(10 * MiB);
        first = workspace.data();
        CHECK(workspace_cached_bytes() == 0);
    }
    CHECK_SHOW(workspace_cached_bytes() == 10 * MiB, "%zu", workspace_cached_bytes());
    CHECK_SHOW(Workspace(9 * MiB).data() == first, "a smaller request is served by the cached buffer");
    CHECK_SHOW(Workspace(MiB).data() != first, "a much smaller one is not");
    CHECK_SHOW(Workspace(11 * MiB).data() != first, "nor a larger one");
    {
        const Workspace a(10 * MiB), b(10 * MiB);
        CHECK(a.data() == first && b.data() != first);
        Workspace c(MiB);
        void* moved = c.data();
        Workspace d(std::move(c));
        CHECK(d.data() == moved && d.size() == MiB && c.data() == nullptr && c.size() == 0);
        c = std::move(d);
        CHECK(c.data() == moved && c.size() == MiB && d.data() == nullptr);
    }
    workspace_release();
    CHECK(workspace_cached_bytes() == 0);
}

void test_cache_is_bounded() {
    workspace_release();
    for (int repeat = 0; repeat < 100; ++repeat) {  // more buffers than the cache has places
        std::vector<Workspace> workspaces;
        for (int i = 0; i < 100; ++i) workspaces.emplace_back(KiB << (i + repeat) % 13);
    }
    CHECK_SHOW(workspace_cached_bytes() <= 64 * MiB, "%zu", workspace_cached_bytes());
    {
        std::vector<Workspace> workspaces;
        for (int i = 0; i < 20; ++i) workspaces.emplace_back(8 * MiB);
    }
    CHECK_SHOW(workspace_cached_bytes() == 64 * MiB, "%zu", workspace_cached_bytes());
    {
        const Workspace larger_than_the_cache(65 * MiB);
    }
    CHECK_SHOW(workspace_cached_bytes() <= 64 * MiB, "%zu", workspace_cached_bytes());
    void* last = nullptr;
    {
        last = (Workspace(50 * MiB)).data();
    }
    CHECK_SHOW(Workspace(50 * MiB).data() == last, "what was used last stays, what was there before it goes");
    workspace_release();
}

void test_limit_from_environment() {
    const auto cached_after = [](size_t bytes) {
        {
            const Workspace workspace(bytes);
        }
        return workspace_cached_bytes();
    };
    for (const char* text : {"0", "1048576"}) {
        CHECK(child_passes([&] {
            setenv("CONVX_WORKSPACE_BYTES", text, 1);
            const size_t limit = std::strtoull(text, nullptr, 10);
            CHECK(cached_after(2 * MiB) == 0);
            CHECK(cached_after(MiB) == limit);
            CHECK(cached_after(512 * KiB) <= limit);
        }));
    }
    for (const char* text : {"", "-1", "many", "64 MiB"}) {
        CHECK_SHOW(child_passes([&] {
                       setenv("CONVX_WORKSPACE_BYTES", text, 1);
                       CHECK(cached_after(64 * MiB) == 64 * MiB);
                   }),
                   "'%s' is not a number: the default holds", text);
    }
}

void test_allocation_fails() {
    CHECK(throws_bad_alloc(SIZE_MAX));
    CHECK(throws_bad_alloc(SIZE_MAX / 2 + 1));
    CHECK(throws_bad_alloc(size_t{1} << 47));
    if (thread_sanitized || address_sanitized) return;  // their shadow memory needs all of the address space
    CHECK(child_passes([] {
        {
            const Workspace cached(60 * MiB);
        }
        long pages = 0;
        std::ifstream("/proc/self/statm") >> pages;
        const rlim_t bytes = static_cast<rlim_t>(pages * sysconf(_SC_PAGESIZE)) + 20 * MiB;
        const rlimit limit{bytes, bytes};
        CHECK(setrlimit(RLIMIT_AS, &limit) == 0);
        CHECK(throws_bad_alloc(200 * MiB));
        CHECK_SHOW(workspace_cached_bytes() == 0, "the cache gives way before a request fails");
        const Workspace workspace(70 * MiB);
        std::memset(workspace.data(), 1, workspace.size());
    }));
}

void test_threads_share_the_cache() {
    std::vector<std::thread> threads;
    for (unsigned thread = 0; thread < 6; ++thread) {
        threads.emplace_back([thread] {
            unsigned random = thread;
            for (int repeat = 0; repeat < 5000; ++repeat) {
                random = random * 1664525 + 1013904223;
                const Workspace workspace(1 + random % (256 * KiB));
                auto* data = static_cast<unsigned char*>(workspace.data());
                const size_t ends[] = {0, workspace.size() / 2, workspace.size() - 1};
                for (size_t at : ends) data[at] = static_cast<unsigned char>(thread);
                for (size_t at : ends) CHECK_SHOW(data[at] == thread, "thread %u shares its buffer", thread);
            }
        });
    }
    for (std::thread& thread : threads) thread.join();
    CHECK(workspace_cached_bytes() > 0 && workspace_cached_bytes() <= 64 * MiB);
    workspace_release();
    CHECK_SHOW(workspace_cached_bytes() == 0, "%zu bytes are not accounted for", workspace_cached_bytes());
}

void test_fork() {
    std::atomic<bool> stop{false};
    std::thread neighbour([&] {
        while (!stop.load()) const Workspace workspace(64 * KiB);
    });
    for (int repeat = 0; repeat < (thread_sanitized ? 5 : 100); ++repeat) {
        CHECK(child_passes([] {
            for (int i = 0; i < 100; ++i) {
                const Workspace workspace(64 * KiB);
                std::memset(workspace.data(), 1, workspace.size());
            }
            workspace_release();
        }));
    }
    stop.store(true);
    neighbour.join();
}

void test_overrun_is_caught() {
    if (!address_sanitized) return;
    CHECK(!child_passes([] {
        std::fclose(stderr);
        const Workspace workspace(33 * KiB);  // has a capacity of 36 KiB
        static_cast<volatile char*>(workspace.data())[33 * KiB] = 1;
    }));
    CHECK(!child_passes([] {
        std::fclose(stderr);
        volatile char* data = nullptr;
        {
            data = static_cast<volatile char*>(Workspace(33 * KiB).data());
        }
        data[0] = 1;
    }));
}

}  // namespace

int main() {
    run_tests({
        {"limit from environment", test_limit_from_environment},  // first: the limit is read once
        {"sizes and alignment", test_sizes_and_alignment},
        {"cache", test_cache},
        {"cache is bounded", test_cache_is_bounded},
        {"allocation fails", test_allocation_fails},
        {"threads share the cache", test_threads_share_the_cache},
        {"fork", test_fork},
        {"overrun is caught", test_overrun_is_caught},
    });
    return 0;
}
