// What the C++ tests share: checks, children, a list of tests that prints as it goes.
#pragma once

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <initializer_list>

#include <sys/wait.h>
#include <unistd.h>

#ifdef __SANITIZE_THREAD__
constexpr bool thread_sanitized = true;
#else
constexpr bool thread_sanitized = false;
#endif
#ifdef __SANITIZE_ADDRESS__
constexpr bool address_sanitized = true;
#else
constexpr bool address_sanitized = false;
#endif

// A forked child has no use for LeakSanitizer: it looks for the threads that the child has left behind.
static int in_child = 0;
extern "C" int __lsan_is_turned_off() { return in_child; }

#define CHECK_SHOW(condition, ...)                                               \
    do {                                                                         \
        if (!(condition)) {                                                      \
            std::fprintf(stderr, "%s:%d: %s: ", __FILE__, __LINE__, #condition); \
            std::fprintf(stderr, __VA_ARGS__);                                   \
            std::fprintf(stderr, "\n");                                          \
            std::_Exit(1);                                                       \
        }                                                                        \
    } while (false)
#define CHECK(condition) CHECK_SHOW(condition, "false")

// Runs `body` in a forked child; true if the child leaves through exit(0) within a minute.
template <class Body>
bool child_passes(const Body& body) {
    std::fflush(nullptr);
    const pid_t child = fork();
    if (child == 0) {
        in_child = 1;
        alarm(60);
        body();
        std::exit(0);
    }
    int status = 0;
    waitpid(child, &status, 0);
    if (WIFSIGNALED(status)) std::fprintf(stderr, "the child was ended by signal %d\n", WTERMSIG(status));
    return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

struct Test {
    const char* name;
    void (*run)();
};

inline void run_tests(std::initializer_list<Test> tests) {
    for (const Test& test : tests) {
        const auto start = std::chrono::steady_clock::now();
        test.run();
        const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
        std::printf("%-40s %6.2f s\n", test.name, seconds.count());
        std::fflush(stdout);
    }
}
