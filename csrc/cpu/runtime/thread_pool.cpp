// A self-scheduling thread pool for short jobs.
//
// The laws:
//  - One 64-bit word, the ticket, holds a job's width and the number of its unclaimed tasks. A claim is one
//    compare-exchange that takes 1 off; at 0 the ticket is closed. A claim that succeeds is a claim of the job that is
//    live at that instant, however late the thread that makes it: a stale claim cannot exist.
//  - Which task a claim gets: tasks are dealt out in equal, contiguous shares, one a worker; a worker takes those of
//    its own share, then those that others left. Neighbouring tasks touch the same cache lines, and the same worker
//    gets the same tasks when an operation follows another: with one queue for all, 4 threads ran convolutions 10 to 20
//    % slower, each pulling lines out of the others' L2.
//  - A claim holds its job open. The fields of Job are written only while nothing is claimed, read only under a claim.
//  - The caller waits for claimed tasks only: a worker that sleeps, or that the system has descheduled, delays nobody.
//  - Nothing here is destroyed or joined, and no lock is held: the process may exit or fork at any moment. A forked
//    child forgets the pool, whose threads do not exist there, and builds another when it needs one.
//  - Workers compute in the caller's floating-point environment (rounding, flush to zero): same bits for any width.
//  - A team of OpenMP's threads does the same job by the same claims; its runtime wakes them and waits for them.
#include "cpu/runtime/thread_pool.h"

#include <algorithm>
#include <atomic>
#include <cfenv>
#include <chrono>
#include <climits>
#include <cstdlib>
#include <exception>
#include <fstream>
#include <memory>
#include <stdexcept>
#include <thread>
#include <utility>

#include <pthread.h>
#include <signal.h>

#ifdef __linux__
#include <linux/futex.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>
#else
#include <condition_variable>
#include <mutex>
#endif

namespace convx {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int max_threads = 1024;

// Long enough for operations that follow each other from Python; workers that poll longer take time from other pools.
constexpr int64_t default_spin_us = 100;
// Then a poll gives the CPU to whoever waits for it: another pool, or a worker of this job that was descheduled. With 3
// threads to a CPU a 0.2 ms operation between two NumPy matmuls took 0.63 ms on average, 0.82 with no yield, 1.07 with
// yields from the start (a caller that gives its CPU to a polling thread of OpenBLAS gets it back after 4 ms).
constexpr auto yield_after = std::chrono::microseconds(20);

// Settings are computed on first use. Computing one twice is harmless, so there is no lock that a fork could catch.
enum Reason : uint32_t { unset, by_call, by_fork, by_convx_variable, by_omp_variable, by_affinity, by_quota };
constexpr const char* reason_text[] = {
    "", "set_num_threads", "forked child", "CONVX_NUM_THREADS", "OMP_NUM_THREADS", "affinity", "cgroup quota"};

constexpr uint64_t pack(Reason reason, int threads) { return uint64_t{reason} << 32 | static_cast<uint32_t>(threads); }

std::atomic<uint64_t> thread_setting{0};
std::atomic<int64_t> spin_setting{-1};

// The leading number of a variable ("4", or OpenMP's "4,2" per level), or -1 where it is unset or no such number.
int64_t variable(const char* name, int64_t least) {
    const char* text = std::getenv(name);
    if (!text) return -1;
    char* end = nullptr;
    const long long value = std::strtoll(text, &end, 10);
    const bool whole = end != text && (*end == '\0' || *end == ',' || *end == ' ');
    return whole && value >= least && value <= INT_MAX ? value : -1;
}

int affinity_cpus() {
#ifdef __linux__
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0) return std::max(1, CPU_COUNT(&set));
#endif
    return static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
}

uint64_t detect_threads() {
    if (const int64_t n = variable("CONVX_NUM_THREADS", 1); n > 0) return pack(by_convx_variable, static_cast<int>(n));
    if (const int64_t n = variable("OMP_NUM_THREADS", 1); n > 0) return pack(by_omp_variable, static_cast<int>(n));
    const int cpus = affinity_cpus();
    const int quota = detail::cgroup_cpus("");
    return quota > 0 && quota < cpus ? pack(by_quota, quota) : pack(by_affinity, cpus);
}

uint64_t resolved_threads() {
    uint64_t setting = thread_setting.load(std::memory_order_relaxed);
    if (setting == 0) {
        const uint64_t detected = detect_threads();
        if (thread_setting.compare_exchange_strong(setting, detected)) return detected;
    }
    return setting;
}

void cpu_pause() {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

// Threads wait here until a condition holds: they poll it for a bounded time, then sleep. A waiter counts itself
// asleep before its last look at the condition, and the signaller makes the condition true before it looks for
// sleepers (all sequentially consistent): one of the two sees the other, so no wake-up is lost.
class Event {
public:
    template <class Condition>
    void wait(int64_t spin_us, uint32_t mask, const Condition& condition) {
        for (;;) {
            if (condition()) return;
            const auto start = Clock::now();
            const auto spin = std::chrono::microseconds(spin_us);
            for (Clock::duration waited{0}; waited < spin; waited = Clock::now() - start) {
                for (int i = 0; i < 16; ++i) {  // 16 pauses: 0.3 us on Zen 3, 1 us on Skylake and later
                    if (condition()) return;
                    cpu_pause();
                }
                if (waited > yield_after) std::this_thread::yield();
            }
            const uint32_t stamp = word_.load();
            sleepers_.fetch_add(1);
            if (!condition()) sleep(stamp, mask);
            sleepers_.fetch_sub(1);
        }
    }

    // Wakes the sleepers whose mask has a bit of this one. One system call for all of them.
    void signal(uint32_t mask) {
        if (sleepers_.load() != 0) wake(mask);
    }

private:
#ifdef __linux__
    void sleep(uint32_t stamp, uint32_t mask) {
        syscall(SYS_futex, &word_, FUTEX_WAIT_BITSET_PRIVATE, stamp, nullptr, nullptr, mask);
    }
    void wake(uint32_t mask) {
        word_.fetch_add(1);
        syscall(SYS_futex, &word_, FUTEX_WAKE_BITSET_PRIVATE, INT_MAX, nullptr, nullptr, mask);
    }
#else
    void sleep(uint32_t stamp, uint32_t) {
        std::unique_lock<std::mutex> lock(mutex_);
        changed_.wait(lock, [&] { return word_.load() != stamp; });
    }
    void wake(uint32_t) {
        {
            const std::lock_guard<std::mutex> lock(mutex_);
            word_.fetch_add(1);
        }
        changed_.notify_all();
    }
    std::mutex mutex_;
    std::condition_variable changed_;
#endif
    std::atomic<uint32_t> word_{0};
    std::atomic<uint32_t> sleepers_{0};
};
static_assert(sizeof(std::atomic<uint32_t>) == 4 && std::atomic<uint64_t>::is_always_lock_free);

// Wake mask of one worker; workers from 31 on share a bit, and one that is woken beyond the job's width sleeps
// again.
uint32_t mask_of(int worker) { return 1u << std::min(worker, 31); }
uint32_t mask_below(int width) { return width > 31 ? ~0u : (1u << width) - 1; }

struct Job {
    detail::TaskFunction function = nullptr;
    const void* body = nullptr;
    int64_t tasks = 0;
    int width = 1;
    std::fenv_t environment{};
    std::exception_ptr error;  // written by the one that sets failed
};

class Pool {
public:
    void run(int64_t tasks, int width, detail::TaskFunction function, const void* body);
    void run_in(const Team& team, int64_t tasks, int width, detail::TaskFunction function, const void* body);

    static constexpr uint64_t unclaimed_mask = (uint64_t{1} << 48) - 1;

private:
    static bool open_to(uint64_t ticket, int worker) {
        return (ticket & unclaimed_mask) != 0 && static_cast<int>(ticket >> 48) > worker;
    }
    int grow(int width);
    void publish(int64_t tasks, int width, detail::TaskFunction function, const void* body);
    void serve(int worker);
    void claim_and_run(int worker);
    int64_t take_task(int worker);

    // One cache line each: the ticket is hammered while a job runs, the count is touched once per thread and job.
    alignas(64) std::atomic<uint64_t> ticket_{0};
    alignas(64) std::atomic<int64_t> unfinished_{0};
    alignas(64) Event published_;
    alignas(64) Event finished_;
    alignas(64) Job job_;
    std::atomic<bool> failed_{false};
    struct alignas(64) Share {
        std::atomic<int64_t> next;
    };
    std::unique_ptr<Share[]> shares_;  // one for each worker: its tasks lie from next to the start of the next share
    int shares_size_ = 0;
    int workers_ = 0;  // threads started; their ids are 1 to workers_
};

// Starts threads until `width` can take part; returns how many can, fewer where the system refuses a thread.
int Pool::grow(int width) {
    if (workers_ + 1 >= width) return width;
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);  // inherited by the threads: signals belong to the program's own
    try {
        for (; workers_ + 1 < width; ++workers_) std::thread([this, worker = workers_ + 1] { serve(worker); }).detach();
    } catch (const std::exception&) {
    }
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
    return workers_ + 1;
}

void Pool::serve(int worker) {
    for (;;) {
        published_.wait(spin_microseconds(), mask_of(worker), [&] { return open_to(ticket_.load(), worker); });
        claim_and_run(worker);
    }
}

// Every claim has a task: a share that was seen empty stays empty, and there were as many claims to give as tasks.
int64_t Pool::take_task(int worker) {
    for (int share = worker;; share = share + 1 < job_.width ? share + 1 : 0) {
        const int64_t end = job_.tasks * (share + 1) / job_.width;
        if (shares_[share].next.load(std::memory_order_relaxed) >= end) continue;
        const int64_t task = shares_[share].next.fetch_add(1, std::memory_order_relaxed);
        if (task < end) return task;
    }
}

void Pool::claim_and_run(int worker) {
    int64_t done = 0;
    uint64_t ticket = ticket_.load(std::memory_order_acquire);
    while (open_to(ticket, worker)) {
        if (!ticket_.compare_exchange_weak(ticket, ticket - 1, std::memory_order_acq_rel)) continue;
        if (done == 0 && worker != 0) std::fesetenv(&job_.environment);
        try {
            job_.function(job_.body, take_task(worker), worker);
        } catch (...) {
            if (!failed_.exchange(true)) job_.error = std::current_exception();
            done += static_cast<int64_t>(ticket_.exchange(0) & unclaimed_mask);  // the tasks that are skipped
        }
        ++done;
        ticket = ticket_.load(std::memory_order_acquire);
    }
    if (done != 0 && unfinished_.fetch_sub(done) == done && worker != 0) finished_.signal(~0u);
}

void Pool::publish(int64_t tasks, int width, detail::TaskFunction function, const void* body) {
    if (width > shares_size_) {
        shares_.reset(new Share[width]);
        shares_size_ = width;
    }
    job_.function = function;
    job_.body = body;
    job_.tasks = tasks;
    job_.width = width;
    for (int share = 0; share < width; ++share)
        shares_[share].next.store(tasks * share / width, std::memory_order_relaxed);
    std::fegetenv(&job_.environment);
    failed_.store(false, std::memory_order_relaxed);
    unfinished_.store(tasks, std::memory_order_relaxed);
    ticket_.store(static_cast<uint64_t>(width) << 48 | static_cast<uint64_t>(tasks));
}

void Pool::run(int64_t tasks, int width, detail::TaskFunction function, const void* body) {
    width = grow(width);
    publish(tasks, width, function, body);
    published_.signal(mask_below(width));
    claim_and_run(0);
    finished_.wait(spin_microseconds(), ~0u, [&] { return unfinished_.load() == 0; });
    if (job_.error) std::rethrow_exception(std::exchange(job_.error, nullptr));
}

// All of the runtime's threads come, those beyond the width to leave again: teams of changing sizes make it end threads
// and start others.
void Pool::run_in(const Team& team, int64_t tasks, int width, detail::TaskFunction function, const void* body) {
    struct Region {
        Pool* pool;
        const Team& team;
    } region{this, team};
    const int most = std::max(1, team.most_threads());
    publish(tasks, std::min(width, most), function, body);
    team.parallel(
        [](void* data) {
            const Region& of = *static_cast<const Region*>(data);
            const int worker = of.team.thread_number();
            std::fenv_t own;
            std::fegetenv(&own);
            of.pool->claim_and_run(worker);
            if (worker != 0) std::fesetenv(&own);
        },
        &region, static_cast<unsigned>(most), 0);
    if (job_.error) std::rethrow_exception(std::exchange(job_.error, nullptr));
}

std::atomic<bool> pool_taken{false};
Pool* pool = nullptr;       // touched only by the thread that has taken it; never freed, its workers sleep in it
Pool* team_pool = nullptr;  // the same, without workers: two threads with one id would be one too many
std::atomic<const Team*> team_setting{nullptr};

[[maybe_unused]] const int fork_handler = pthread_atfork(nullptr, nullptr, [] {
    pool = nullptr;
    team_pool = nullptr;
    team_setting.store(nullptr);  // the runtime's threads do not exist here either
    pool_taken.store(false);
    // It has its parent's memory, not its parent's share of the machine: often there are as many children as CPUs.
    thread_setting.store(pack(by_fork, 1));
});

}  // namespace

int num_threads() { return static_cast<int>(static_cast<uint32_t>(resolved_threads())); }

std::string num_threads_reason() { return reason_text[resolved_threads() >> 32]; }

void set_num_threads(int n) {
    if (n < 1) throw std::invalid_argument("set_num_threads: n is " + std::to_string(n) + ", expected at least 1");
    thread_setting.store(pack(by_call, n));
}

void use_team(const Team* team) {
    team_setting.store(team ? new Team(*team) : nullptr);  // never freed: an operation may be in it
}

bool uses_team() { return team_setting.load() != nullptr; }

int64_t spin_microseconds() {
    int64_t spin = spin_setting.load(std::memory_order_relaxed);
    if (spin < 0) {
        spin = variable("CONVX_SPIN_US", 0);
        if (spin < 0) spin = default_spin_us;
        spin_setting.store(spin, std::memory_order_relaxed);
    }
    return spin;
}

namespace detail {

int cgroup_cpus(const std::string& root) {
    double cpus = 0;
    const auto limit = [&](double quota, double period) {
        if (quota > 0 && period > 0) cpus = cpus > 0 ? std::min(cpus, quota / period) : quota / period;
    };
    std::ifstream groups(root + "/proc/self/cgroup");
    for (std::string line; std::getline(groups, line);) {  // hierarchy:controllers:path
        const size_t first = line.find(':');
        const size_t second = line.find(':', first + 1);
        if (second == std::string::npos) continue;
        const std::string controllers = "," + line.substr(first + 1, second - first - 1) + ",";
        const bool version2 = controllers == ",,";
        if (!version2 && controllers.find(",cpu,") == std::string::npos) continue;
        const std::string mount = root + (version2 ? "/sys/fs/cgroup" : "/sys/fs/cgroup/cpu");
        // Every ancestor's limit holds too. Inside a container the path may name a directory of the host, which is not
        // there: the walk then ends at the root of the mount, which is the container's own group.
        for (std::string path = line.substr(second + 1);; path.resize(path.rfind('/'))) {
            if (path == "/") path.clear();
            double quota = 0, period = 0;
            if (version2) {
                std::ifstream(mount + path + "/cpu.max") >> quota >> period;  // "max 100000" leaves quota at 0
            } else {
                std::ifstream(mount + path + "/cpu.cfs_quota_us") >> quota;  // -1: no limit
                std::ifstream(mount + path + "/cpu.cfs_period_us") >> period;
            }
            limit(quota, period);
            if (path.find('/') == std::string::npos) break;
        }
    }
    // Rounded down: a pool wider than its quota is stopped for the rest of each period (0.1 s), in mid-job.
    return cpus > 0 ? std::max(1, static_cast<int>(std::min(cpus, 1e6))) : 0;
}

void run_tasks(int64_t tasks, int max_width, TaskFunction function, const void* body) {
    const int width = static_cast<int>(std::min<int64_t>({num_threads(), max_width, max_threads, tasks}));
    const bool fits = tasks <= static_cast<int64_t>(Pool::unclaimed_mask);
    if (width > 1 && fits && !pool_taken.exchange(true, std::memory_order_acquire)) {
        struct Return {
            ~Return() { pool_taken.store(false, std::memory_order_release); }
        } give_back;
        const Team* const team = team_setting.load();
        Pool*& taken = team ? team_pool : pool;
        if (!taken) taken = new Pool;
        team ? taken->run_in(*team, tasks, width, function, body) : taken->run(tasks, width, function, body);
        return;
    }
    for (int64_t task = 0; task < tasks; ++task) function(body, task, 0);
}

}  // namespace detail
}  // namespace convx
