// Tests of csrc/cpu/runtime/thread_pool.cpp as a program of its own, so that ThreadSanitizer sees nothing but the pool:
//
//     g++ -std=c++17 -g -O1 -fsanitize=thread -Icsrc tests/native/test_thread_pool.cpp
//         csrc/cpu/runtime/thread_pool.cpp -pthread
//
// Exit status 0: all passed. `setarch -R ./a.out` where an old ThreadSanitizer finds its shadow memory taken.
#include "cpu/runtime/thread_pool.h"

#include "testing.h"

#include <algorithm>
#include <atomic>
#include <cfenv>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <functional>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include <pthread.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

namespace {

using convx::num_threads;
using convx::num_threads_reason;
using convx::parallel_for;
using convx::set_num_threads;

// Returns once `count` threads are in it at the same time: none of them is a worker that ran two tasks in turn.
class Meeting {
public:
    explicit Meeting(int count) : missing_(count) {}
    void join() {
        missing_.fetch_sub(1);
        const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(60);
        while (missing_.load() > 0) {
            CHECK_SHOW(std::chrono::steady_clock::now() < deadline, "%d threads did not come", missing_.load());
            std::this_thread::yield();
        }
    }

private:
    std::atomic<int> missing_;
};

void check_uses_threads(int count) {
    Meeting meeting(count);
    parallel_for(count, count, [&](int64_t, int) { meeting.join(); });
}

void test_every_task_once_and_workers_exclusive() {
    for (int threads : {1, 2, 3, 4, 7}) {
        set_num_threads(threads);
        for (int max_width : {1, 2, 4, 40}) {
            for (int64_t tasks : {0, 1, 2, 3, 5, 64, 1000}) {
                const int width = std::min(threads, max_width);
                std::vector<int> runs(static_cast<size_t>(tasks));  // not atomic: the pool has to order these writes
                std::vector<int64_t> last(static_cast<size_t>(width), -1);
                std::vector<std::atomic<bool>> inside(static_cast<size_t>(width));
                parallel_for(tasks, max_width, [&](int64_t task, int worker) {
                    CHECK_SHOW(task >= 0 && task < tasks, "task %ld of %ld", static_cast<long>(task),
                               static_cast<long>(tasks));
                    CHECK_SHOW(worker >= 0 && worker < width, "worker %d of %d", worker, width);
                    const auto w = static_cast<size_t>(worker);
                    CHECK_SHOW(!inside[w].exchange(true), "worker %d is used twice", worker);
                    // Upward from the worker's own share, round to the shares before it.
                    const int64_t dealt = std::min<int64_t>(width, tasks);
                    const int64_t place = (task - worker * tasks / dealt + tasks) % tasks;
                    CHECK_SHOW(last[w] < place, "worker %d: task %ld in place %ld after %ld", worker,
                               static_cast<long>(task), static_cast<long>(place), static_cast<long>(last[w]));
                    last[w] = place;
                    ++runs[static_cast<size_t>(task)];
                    inside[w].store(false);
                });
                for (size_t task = 0; task < runs.size(); ++task)
                    CHECK_SHOW(runs[task] == 1, "threads %d, width %d: task %zu of %zu ran %d times", threads,
                               max_width, task, runs.size(), runs[task]);
            }
        }
    }
}

void test_uses_the_threads_it_reports() {
    for (int threads : {2, 4, 3, 6}) {
        set_num_threads(threads);
        CHECK_SHOW(num_threads() == threads && num_threads_reason() == "set_num_threads", "%d", num_threads());
        for (int repeat = 0; repeat < 20; ++repeat) check_uses_threads(threads);
    }
}

// Each job's body and counters live on this stack frame: a claim of an old job would write into a dead one.
void test_many_tiny_jobs() {
    set_num_threads(4);
    constexpr int jobs = thread_sanitized ? 20000 : 100000;
    for (int job = 0; job < jobs; ++job) {
        const int64_t tasks = 2 + job % 5;
        int seen[6] = {};
        parallel_for(tasks, 4, [&, job](int64_t task, int) { seen[task] = job + 1; });
        for (int64_t task = 0; task < tasks; ++task) CHECK_SHOW(seen[task] == job + 1, "job %d", job);
    }
}

void test_sleeping_workers_wake() {
    set_num_threads(4);
    for (int repeat = 0; repeat < 50; ++repeat) {
        std::this_thread::sleep_for(std::chrono::microseconds(convx::spin_microseconds() + 40 * repeat));
        check_uses_threads(4);
    }
}

void test_exceptions() {
    set_num_threads(4);
    for (int repeat = 0; repeat < 200; ++repeat) {
        constexpr int64_t tasks = 500;
        const int64_t bad = repeat % 2 ? 7 : repeat;
        std::atomic<int64_t> runs{0};
        std::string caught;
        try {
            parallel_for(tasks, 4, [&](int64_t task, int) {
                runs.fetch_add(1);
                if (task == bad) throw std::runtime_error("task " + std::to_string(task));
            });
        } catch (const std::runtime_error& error) {
            caught = error.what();
        }
        CHECK_SHOW(caught == "task " + std::to_string(bad), "caught '%s'", caught.c_str());
        const int64_t after = runs.load();
        CHECK_SHOW(after >= 1 && after <= tasks, "%ld tasks ran", static_cast<long>(after));

        bool thrown = false;
        try {
            parallel_for(tasks, 4, [&](int64_t task, int) {
                runs.fetch_add(1);
                throw task;
            });
        } catch (int64_t) {
            thrown = true;
        }
        CHECK(thrown);
        CHECK_SHOW(runs.load() - after <= 4, "%ld tasks: a thread went on after its exception",
                   static_cast<long>(runs.load() - after));
        check_uses_threads(4);
    }
    bool thrown = false;
    set_num_threads(1);
    try {
        parallel_for(3, 4, [](int64_t task, int) {
            CHECK(task < 2);
            if (task == 1) throw std::bad_alloc();
        });
    } catch (const std::bad_alloc&) {
        thrown = true;
    }
    CHECK(thrown);
}

void test_nested_runs_inline() {
    set_num_threads(4);
    std::atomic<int> total{0};
    parallel_for(20, 4, [&](int64_t, int) {
        const auto self = std::this_thread::get_id();
        parallel_for(30, 4, [&](int64_t, int worker) {
            CHECK(worker == 0 && std::this_thread::get_id() == self);
            total.fetch_add(1);
        });
    });
    CHECK_SHOW(total.load() == 600, "%d", total.load());
}

void test_many_callers() {
    std::vector<std::thread> callers;
    for (int caller = 0; caller < 6; ++caller) {
        callers.emplace_back([caller] {
            for (int job = 0; job < 2000; ++job) {
                const int64_t tasks = 1 + (job + caller) % 17;
                std::vector<int64_t> squares(17);
                parallel_for(tasks, 1 + job % 5,
                             [&](int64_t task, int) { squares[static_cast<size_t>(task)] = task * task; });
                for (int64_t task = 0; task < tasks; ++task)
                    CHECK_SHOW(squares[static_cast<size_t>(task)] == task * task, "caller %d job %d", caller, job);
                if (caller == 0) set_num_threads(1 + job % 6);
            }
        });
    }
    for (std::thread& caller : callers) caller.join();
}

// The caller's rounding mode holds in every worker.
void test_floating_point_environment() {
    set_num_threads(4);
    const auto thirds = [] {
        std::vector<float> values(4);
        Meeting meeting(4);
        parallel_for(4, 4, [&](int64_t task, int) {
            const volatile float one = 1, three = 3;
            values[static_cast<size_t>(task)] = one / three;
            meeting.join();
        });
        for (float value : values) CHECK_SHOW(value == values[0], "%.9g, %.9g", double{value}, double{values[0]});
        return values[0];
    };
    const float nearest = thirds();
    std::fesetround(FE_DOWNWARD);
    const float downward = thirds();
    std::fesetround(FE_TONEAREST);
    CHECK_SHOW(downward < nearest, "%.9g, %.9g", double{downward}, double{nearest});
    CHECK(thirds() == nearest);
}

void test_workers_take_no_signals() {
    set_num_threads(4);
    Meeting meeting(4);
    parallel_for(4, 4, [&](int64_t, int worker) {
        sigset_t blocked;
        pthread_sigmask(SIG_SETMASK, nullptr, &blocked);
        CHECK_SHOW((sigismember(&blocked, SIGINT) == 1) == (worker != 0), "worker %d", worker);
        meeting.join();
    });
}

void test_fork() {
    const auto child = [] {
        CHECK_SHOW(num_threads() == 1 && num_threads_reason() == "forked child", "%d", num_threads());
        int64_t sum = 0;
        parallel_for(100, 4, [&](int64_t task, int) { sum += task; });
        CHECK(sum == 4950);
        set_num_threads(3);
        CHECK(num_threads_reason() == "set_num_threads");
        if (thread_sanitized) return;  // it takes a child's threads for those of the parent
        for (int repeat = 0; repeat < 10; ++repeat) check_uses_threads(3);
        CHECK(child_passes([] {
            set_num_threads(2);
            check_uses_threads(2);
        }));
    };
    set_num_threads(4);
    check_uses_threads(4);
    CHECK_SHOW(child_passes(child), "fork just after a job, while the workers poll");
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    CHECK_SHOW(child_passes(child), "fork while the workers sleep");
    check_uses_threads(4);

    std::atomic<bool> stop{false};
    std::thread neighbour([&] {
        while (!stop.load()) parallel_for(8, 4, [](int64_t, int) { std::this_thread::yield(); });
    });
    for (int repeat = 0; repeat < (thread_sanitized ? 5 : 50); ++repeat)  // a fork of its shadow memory takes 0.5 s
        CHECK_SHOW(child_passes(child), "fork in the midst of a neighbour's jobs");
    stop.store(true);
    neighbour.join();
    check_uses_threads(4);
}

void test_thread_creation_fails() {
    if (thread_sanitized || address_sanitized) return;  // their shadow memory needs all of the address space
    CHECK(child_passes([] {
        long pages = 0;
        std::ifstream("/proc/self/statm") >> pages;
        const rlim_t bytes = static_cast<rlim_t>(pages * sysconf(_SC_PAGESIZE)) + (2 << 20);  // a stack takes 8 MiB
        const rlimit limit{bytes, bytes};
        CHECK(setrlimit(RLIMIT_AS, &limit) == 0);
        set_num_threads(4);
        int64_t sum = 0;
        parallel_for(100, 4, [&](int64_t task, int worker) {
            CHECK(worker == 0);
            sum += task;
        });
        CHECK(sum == 4950);
    }));
}

// A stand-in for an OpenMP runtime: fresh threads for every region.
thread_local int team_number = 0;
std::atomic<int> regions{0};

void fork_and_join(void (*function)(void*), void* data, unsigned threads, unsigned) {
    regions.fetch_add(1);
    std::vector<std::thread> others;
    for (unsigned number = 1; number < threads; ++number)
        others.emplace_back([=] {
            team_number = static_cast<int>(number);
            const int rounding = std::fegetround();
            function(data);
            CHECK_SHOW(std::fegetround() == rounding, "a thread of the team goes on with the caller's environment");
        });
    function(data);
    for (std::thread& other : others) other.join();
}

void test_team() {
    set_num_threads(4);
    check_uses_threads(4);  // the pool's own workers are still there, and must stay out of what follows
    const convx::Team seven{&fork_and_join, [] { return team_number; }, [] { return 7; }};
    convx::use_team(&seven);
    CHECK(convx::uses_team());
    const int before = regions.load();
    check_uses_threads(4);
    CHECK(regions.load() == before + 1);
    test_every_task_once_and_workers_exclusive();
    test_exceptions();
    test_nested_runs_inline();
    test_floating_point_environment();
    set_num_threads(4);
    CHECK(child_passes([] {
        CHECK(!convx::uses_team());
        set_num_threads(3);
        if (!thread_sanitized) check_uses_threads(3);
    }));

    const convx::Team two{&fork_and_join, [] { return team_number; }, [] { return 2; }};  // fewer than asked for
    convx::use_team(&two);
    std::atomic<int64_t> sum{0};
    parallel_for(100, 4, [&](int64_t task, int worker) {
        CHECK_SHOW(worker < 2, "worker %d of a team of 2", worker);
        sum.fetch_add(task);
    });
    CHECK(sum.load() == 4950);
    convx::use_team(nullptr);
    check_uses_threads(4);
}

// What a process of this program with these variables set answers to --threads.
std::string threads_with(const std::string& environment) {
    const std::string command = "env -u CONVX_NUM_THREADS -u OMP_NUM_THREADS " + environment;
    std::FILE* pipe = popen(command.c_str(), "r");
    char line[200] = {};
    CHECK_SHOW(pipe && std::fgets(line, sizeof line, pipe), "%s", command.c_str());
    pclose(pipe);
    return std::string(line, std::strcspn(line, "\n"));
}

void test_order_of_settings() {
    char path[4096] = {};
    CHECK(readlink("/proc/self/exe", path, sizeof path - 1) > 0);
    const std::string self = "'" + std::string(path) + "' --threads";
    const auto check = [&](const std::string& environment, const std::string& expected) {
        const std::string got = threads_with(environment + " " + self);
        CHECK_SHOW(got == expected, "%s: got '%s', expected '%s'", environment.c_str(), got.c_str(), expected.c_str());
    };
    check("CONVX_NUM_THREADS=3 OMP_NUM_THREADS=2", "3 CONVX_NUM_THREADS");
    check("OMP_NUM_THREADS=2", "2 OMP_NUM_THREADS");
    check("OMP_NUM_THREADS=5,2", "5 OMP_NUM_THREADS");
    check("CONVX_NUM_THREADS=0 OMP_NUM_THREADS=2", "2 OMP_NUM_THREADS");
    check("CONVX_NUM_THREADS=many OMP_NUM_THREADS=2", "2 OMP_NUM_THREADS");
#ifdef __linux__
    check("CONVX_NUM_THREADS=99999999999 taskset -c 0", "1 affinity");
    check("taskset -c 0", "1 affinity");
#endif

    for (int bad : {0, -1}) {
        bool thrown = false;
        try {
            set_num_threads(bad);
        } catch (const std::invalid_argument& error) {
            thrown = std::strstr(error.what(), "at least 1") != nullptr;
        }
        CHECK_SHOW(thrown, "%d", bad);
    }
}

void test_cgroup_quota() {
    char root[] = "/tmp/test_thread_pool.XXXXXX";
    CHECK(mkdtemp(root));
    const auto write = [&](const std::string& path, const std::string& text) {
        const std::string file = root + path;
        for (size_t slash = file.find('/', 1); slash != std::string::npos; slash = file.find('/', slash + 1))
            mkdir(file.substr(0, slash).c_str(), 0700);
        std::ofstream(file) << text << '\n';
    };
    const auto quota = [&] { return convx::detail::cgroup_cpus(root); };
    CHECK_SHOW(quota() == 0, "no control groups");
    write("/proc/self/cgroup", "0::/box/job");
    CHECK_SHOW(quota() == 0, "no file");
    write("/sys/fs/cgroup/box/job/cpu.max", "max 100000");
    CHECK_SHOW(quota() == 0, "%d", quota());
    write("/sys/fs/cgroup/box/job/cpu.max", "350000 100000");
    CHECK_SHOW(quota() == 3, "%d", quota());
    write("/sys/fs/cgroup/box/cpu.max", "200000 100000");
    CHECK_SHOW(quota() == 2, "the parent's limit: %d", quota());
    write("/sys/fs/cgroup/box/cpu.max", "50000 100000");
    CHECK_SHOW(quota() == 1, "%d", quota());
    write("/proc/self/cgroup", "0::/");
    write("/sys/fs/cgroup/cpu.max", "600000 100000");
    CHECK_SHOW(quota() == 6, "%d", quota());
    write("/proc/self/cgroup", "3:cpuset:/\n2:cpu,cpuacct:/docker/0123\n1:name=systemd:/\n");
    write("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "-1");
    write("/sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000");
    CHECK_SHOW(quota() == 0, "%d", quota());
    write("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "400000");
    CHECK_SHOW(quota() == 4, "a path of the host: %d", quota());
    CHECK(std::system(("rm -r " + std::string(root)).c_str()) == 0);
}

}  // namespace

int main(int argc, char** argv) {
    if (argc == 2 && std::strcmp(argv[1], "--threads") == 0) {
        std::printf("%d %s\n", num_threads(), num_threads_reason().c_str());
        return 0;
    }
    CHECK_SHOW(child_passes([] { CHECK(num_threads() == 1); }), "fork before the first use");
    run_tests({
        {"thread creation fails", test_thread_creation_fails},  // first: later, the C library has stacks to reuse
        {"order of settings", test_order_of_settings},
        {"cgroup quota", test_cgroup_quota},
        {"every task once, workers exclusive", test_every_task_once_and_workers_exclusive},
        {"uses the threads it reports", test_uses_the_threads_it_reports},
        {"many tiny jobs", test_many_tiny_jobs},
        {"sleeping workers wake", test_sleeping_workers_wake},
        {"exceptions", test_exceptions},
        {"nested runs inline", test_nested_runs_inline},
        {"many callers", test_many_callers},
        {"floating-point environment", test_floating_point_environment},
        {"workers take no signals", test_workers_take_no_signals},
        {"fork", test_fork},
        {"team", test_team},
    });
    // The process ends with a job in flight; the sanitizers watch.
    set_num_threads(4);
    std::thread([] {
        for (;;) parallel_for(8, 4, [](int64_t, int) { std::this_thread::yield(); });
    }).detach();
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
    return 0;
}
