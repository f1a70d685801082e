// The thread pool, and how many threads an operation may use.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

namespace convx {

// How many threads an operation may use now, at least 1, and where that number comes from: the first of
// "set_num_threads", "forked child" (1 until it calls set_num_threads), "CONVX_NUM_THREADS", "OMP_NUM_THREADS",
// and the smaller of "affinity" and "cgroup quota".
int num_threads();
std::string num_threads_reason();
void set_num_threads(int n);  // throws std::invalid_argument unless n >= 1

// The threads of an OpenMP runtime that the process has anyway, by the entry points that compilers call: with them
// operations run in that runtime's threads, and the pool starts none of its own. Two pools on one machine are in each
// other's way: OpenMP's threads poll for some milliseconds after each region, and a training step of MobileNetV2 in
// PyTorch took 510 to 600 ms with a pool beside them, 330 to 400 ms with theirs asleep at once (4 threads on 2 cores).
struct Team {
    void (*parallel)(void (*function)(void*), void* data, unsigned threads, unsigned flags);  // GOMP_parallel
    int (*thread_number)();                                                                   // omp_get_thread_num
    int (*most_threads)();                                                                    // omp_get_max_threads
};
void use_team(const Team* team);  // from the next operation on; null, and in a forked child: the pool's own threads
bool uses_team();

// How long an idle worker polls for the next job before it sleeps: CONVX_SPIN_US, or the default.
int64_t spin_microseconds();

namespace detail {
using TaskFunction = void (*)(const void* body, int64_t task, int worker);
void run_tasks(int64_t tasks, int max_width, TaskFunction function, const void* body);

// Whole CPUs that the control groups of this process (v2 cpu.max, v1 cfs) allow it, 0 where they set no limit; `root`
// stands in front of /proc and /sys, for tests.
int cgroup_cpus(const std::string& root);
}  // namespace detail

// Runs body(task, worker) for every task in [0, tasks) and returns when all are done. Worker ids lie in [0, width),
// width = min(num_threads(), max_width); no two threads use one id at the same time, and the caller takes part as 0.
// Worker i of w starts with task i * tasks / w and goes upward; who is done helps the others. The first exception
// thrown by a body is rethrown here; tasks that nobody had claimed by then are skipped. One call at a time has the
// pool: a call that finds it taken, by another thread or because it is nested in a body, runs all its tasks itself, in
// order, as worker 0.
//
// Costs, 4 threads on 4 virtual Zen 3 CPUs: an empty job 0.5 us, a claim 0.04 us. A ReLU of 1 MiB, 32 us on one thread,
// takes 12 us in 16 tasks when job follows job, 16 us after a pause of 20 us, and 45 us once the workers sleep; 200 us
// of work take 52, 52 and 71 us. So work of less than about 100 us is better done by the caller alone (max_width 1).
template <class Body>
void parallel_for(int64_t tasks, int max_width, const Body& body) {
    detail::run_tasks(
        tasks, max_width,
        [](const void* erased, int64_t task, int worker) { (*static_cast<const Body*>(erased))(task, worker); },
        std::addressof(body));
}

}  // namespace convx
