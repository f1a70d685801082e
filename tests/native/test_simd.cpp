// The vector primitives, function by function, against scalar definitions; vec_portable.h says what they mean.
//
// One program per instruction set: -DVEC_HEADER='"cpu/simd/vec_avx2.h"' with that set's compiler options. Exit status:
// 0 all right, 1 something is wrong (and printed), 77 this processor lacks the instructions.
#include VEC_HEADER

#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <string_view>
#include <vector>

namespace {

constexpr bool fused = std::string_view(VEC_HEADER) != "cpu/simd/vec_portable.h";

template <class T>
struct TypeTraits;
template <>
struct TypeTraits<float> {
    using Bits = uint32_t;
    static constexpr const char* name = "float";
};
template <>
struct TypeTraits<double> {
    using Bits = uint64_t;
    static constexpr const char* name = "double";
};
template <class T>
using Bits = typename TypeTraits<T>::Bits;

template <class To, class From>
To bit_cast(From from) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    std::memcpy(&to, &from, sizeof(to));
    return to;
}

int failures = 0;
char current[96] = "";  // what runs now: said when it ends in a signal

void report(int lane, double got, double expected) {
    if (++failures <= 20)
        std::printf("FAILED %s: lane %d is %.17g (%a), expected %.17g (%a)\n", current, lane, got, got, expected,
                    expected);
}

void on_signal(int) {
    const ssize_t written =
        write(1, "FAILED by a signal: ", 20) + write(1, current, std::strlen(current)) + write(1, "\n", 1);
    _exit(written > 0 ? 1 : 2);
}

template <class T>
void begin(const char* function, int n = -1) {
    if (n < 0)
        std::snprintf(current, sizeof(current), "%s<%s>", function, TypeTraits<T>::name);
    else
        std::snprintf(current, sizeof(current), "%s<%s>, n = %d", function, TypeTraits<T>::name, n);
}

template <class T>
bool same_bits(T a, T b) {
    return bit_cast<Bits<T>>(a) == bit_cast<Bits<T>>(b);
}
// Of two NaN operands the hardware keeps one; which is up to the compiler's order of the operands.
template <class T>
bool same_or_both_nan(T a, T b) {
    return same_bits(a, b) || (std::isnan(a) && std::isnan(b));
}
template <class T>
bool same_but_sign_of_zero(T a, T b) {
    return same_bits(a, b) || (a == 0 && b == 0);
}
// add_where may leave a lane alone by adding +0.0, which turns -0.0 into +0.0 and quiets a NaN.
template <class T>
bool same_sum(T a, T b) {
    return same_or_both_nan(a, b) || same_but_sign_of_zero(a, b);
}

template <class T, class V, class Expected, class Same>
void expect_lanes(V got, Expected expected, Same same) {
    constexpr int lanes = VecOf<T>::lanes;
    T out[lanes];
    store(out, got);
    for (int i = 0; i < lanes; ++i)
        if (!same(out[i], expected(i))) report(i, out[i], expected(i));
}

struct Random {  // splitmix64
    uint64_t state = 0;
    uint64_t next() {
        state += 0x9e3779b97f4a7c15u;
        uint64_t z = state;
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
        z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
        return z ^ (z >> 31);
    }
    // Any bit pattern, a number in [-2, 2), or a small integer (for ties).
    template <class T>
    T number() {
        const uint64_t kind = next() % 3, x = next();
        if (kind == 0) return bit_cast<T>(static_cast<Bits<T>>(x));
        if (kind == 1) return static_cast<T>(static_cast<double>(x >> 11) * 0x1p-51 - 2);
        return static_cast<T>(static_cast<int>(x % 5) - 2);
    }
};

template <class T>
std::vector<T> special_numbers() {
    using Limits = std::numeric_limits<T>;
    std::vector<T> all;
    for (T x : {T(0), T(1), 1 + Limits::epsilon(), T(1) / 3, Limits::min(), Limits::denorm_min(),
                Limits::min() - Limits::denorm_min(), Limits::max(), Limits::infinity(), Limits::quiet_NaN(),
                bit_cast<T>(static_cast<Bits<T>>(bit_cast<Bits<T>>(Limits::infinity()) + 5))})  // a signalling NaN
        for (Bits<T> sign : {Bits<T>(0), Bits<T>(1) << (8 * sizeof(T) - 1)})
            all.push_back(bit_cast<T>(bit_cast<Bits<T>>(x) | sign));
    return all;
}

// The functions from lanes to lanes, for one choice of their operands.
template <class T>
void check_arithmetic(const T* a, const T* b, const T* c) {
    constexpr int lanes = VecOf<T>::lanes;
    const Vec<T> va = load(a), vb = load(b), vc = load(c);
    const auto replaces = [&](int i) { return a[i] > b[i] || std::isnan(a[i]); };
    const auto pair = [&](int place) { return place < lanes ? a[place] : b[place - lanes]; };

    begin<T>("add");
    expect_lanes<T>(add(va, vb), [&](int i) { return a[i] + b[i]; }, same_or_both_nan<T>);
    begin<T>("sub");
    expect_lanes<T>(sub(va, vb), [&](int i) { return a[i] - b[i]; }, same_or_both_nan<T>);
    begin<T>("mul");
    expect_lanes<T>(mul(va, vb), [&](int i) { return a[i] * b[i]; }, same_or_both_nan<T>);
    begin<T>("fma");
    expect_lanes<T>(
        fma(va, vb, vc), [&](int i) { return fused ? std::fma(a[i], b[i], c[i]) : a[i] * b[i] + c[i]; },
        same_or_both_nan<T>);
    begin<T>("relu");
    expect_lanes<T>(relu(va), [&](int i) { return a[i] <= 0 ? T(0) : a[i]; }, same_bits<T>);
    begin<T>("max of numbers");
    expect_lanes<T>(
        max(va, vb),
        [&](int i) {
            T got[lanes];
            store(got, max(va, vb));
            const bool undefined = std::isnan(a[i]) || std::isnan(b[i]);
            return undefined ? got[i] : a[i] > b[i] ? a[i] : b[i];
        },
        same_bits<T>);
    begin<T>("select(greater)");
    expect_lanes<T>(select(greater(va, vb), vc, vb), [&](int i) { return a[i] > b[i] ? c[i] : b[i]; }, same_bits<T>);
    begin<T>("any_nan");
    const bool some = std::any_of(a, a + lanes, [](T x) { return std::isnan(x); });
    expect_lanes<T>(broadcast(T(any_nan(va))), [&](int) { return T(some); }, same_bits<T>);
    begin<T>("select(greater_or_nan)");
    expect_lanes<T>(
        select(greater_or_nan(va, vb), vc, vb), [&](int i) { return replaces(i) ? c[i] : b[i]; }, same_bits<T>);
    begin<T>("select(greater_or_nan(a, 0))");
    expect_lanes<T>(
        select(greater_or_nan(va, broadcast(T(0))), vb, vc), [&](int i) { return a[i] <= 0 ? c[i] : b[i]; },
        same_bits<T>);
    begin<T>("select(equal)");
    expect_lanes<T>(select(equal(va, vb), vc, va), [&](int i) { return a[i] == b[i] ? c[i] : a[i]; }, same_bits<T>);
    begin<T>("add_where");
    expect_lanes<T>(
        add_where(equal(va, vb), vc, va), [&](int i) { return a[i] == b[i] ? c[i] + a[i] : c[i]; }, same_sum<T>);
    begin<T>("even_lanes");
    expect_lanes<T>(even_lanes(va, vb), [&](int i) { return pair(2 * i); }, same_bits<T>);
    begin<T>("odd_lanes");
    expect_lanes<T>(odd_lanes(va, vb), [&](int i) { return pair(2 * i + 1); }, same_bits<T>);
    begin<T>("interleave_low");
    expect_lanes<T>(interleave_low(va, vb), [&](int i) { return i % 2 == 0 ? a[i / 2] : b[i / 2]; }, same_bits<T>);
    begin<T>("interleave_high");
    expect_lanes<T>(
        interleave_high(va, vb), [&](int i) { return i % 2 == 0 ? a[(lanes + i) / 2] : b[(lanes + i) / 2]; },
        same_bits<T>);
    begin<T>("broadcast");
    expect_lanes<T>(broadcast(a[0]), [&](int) { return a[0]; }, same_bits<T>);
}

// Every triple of special numbers in every lane, then random ones.
template <class T>
void check_all_arithmetic() {
    constexpr int lanes = VecOf<T>::lanes;
    const std::vector<T> special = special_numbers<T>();
    const size_t count = special.size(), triples = count * count * count;
    T a[lanes], b[lanes], c[lanes];
    for (size_t round = 0; round < triples; ++round) {
        for (int i = 0; i < lanes; ++i) {
            const size_t triple = (round + 977 * static_cast<size_t>(i)) % triples;
            a[i] = special[triple % count];
            b[i] = special[triple / count % count];
            c[i] = special[triple / count / count];
        }
        check_arithmetic(a, b, c);
    }
    Random random;
    for (int round = 0; round < 20000; ++round) {
        for (int i = 0; i < lanes; ++i) {
            a[i] = random.number<T>();
            b[i] = random.number<T>();
            c[i] = random.number<T>();
        }
        check_arithmetic(a, b, c);
    }
}

// Four elements at places that lie in no order, and back to other places.
template <class T>
void check_quads() {
    constexpr int lanes = VecOf<T>::lanes;
    Random random;
    T from[8 * lanes + 8], to[8 * lanes + 8] = {};
    for (T& x : from) x = random.number<T>();
    const T* sources[lanes];
    T* targets[lanes];
    for (int i = 0; i < lanes; ++i) {
        sources[i] = from + (5 * i + 3) % lanes * 8;
        targets[i] = to + (3 * i + 1) % lanes * 8;
    }
    Vec<T> columns[4];
    load_quads(sources, 2, columns);
    for (int j = 0; j < 4; ++j) {
        begin<T>("load_quads, column", j);
        expect_lanes<T>(columns[j], [&](int i) { return sources[i][2 + j]; }, same_bits<T>);
    }
    store_quads(targets, 1, columns);
    for (int j = 0; j < 6; ++j) {
        begin<T>("store_quads, column", j);
        for (int i = 0; i < lanes; ++i) {
            const T expected = j >= 1 && j < 5 ? sources[i][1 + j] : T(0);
            if (!same_bits(targets[i][j], expected)) report(i, targets[i][j], expected);
        }
    }
}

template <class T>
void check_transpose() {
    constexpr int lanes = VecOf<T>::lanes;
    Random random;
    for (int round = 0; round < 100; ++round) {
        T value[lanes][lanes];
        Vec<T> rows[lanes];
        for (int i = 0; i < lanes; ++i) {
            for (int j = 0; j < lanes; ++j) value[i][j] = round == 0 ? T(i * lanes + j) : random.number<T>();
            rows[i] = load(value[i]);
        }
        transpose(rows);
        for (int i = 0; i < lanes; ++i) {
            begin<T>("transpose, row", i);
            expect_lanes<T>(rows[i], [&](int j) { return value[j][i]; }, same_bits<T>);
        }
    }
}

// A page between two that may not be touched.
class GuardedPage {
public:
    GuardedPage() {
        void* pages = mmap(nullptr, 3 * size(), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (pages == MAP_FAILED) std::abort();
        begin_ = static_cast<char*>(pages) + size();
        if (mprotect(begin_, size(), PROT_READ | PROT_WRITE) != 0) std::abort();
    }
    GuardedPage(const GuardedPage&) = delete;
    GuardedPage& operator=(const GuardedPage&) = delete;
    ~GuardedPage() { munmap(begin_ - size(), 3 * size()); }

    static size_t size() { return static_cast<size_t>(sysconf(_SC_PAGESIZE)); }
    char* first() const { return begin_; }
    char* last(size_t bytes) const { return begin_ + size() - bytes; }

private:
    char* begin_;
};

// Calls check(p) for `count` elements at the start of a page, at the end of one, unaligned in between, and in a heap
// block of just that size (where AddressSanitizer watches).
template <class E, class Check>
void everywhere(const GuardedPage& page, int count, Check check) {
    const size_t bytes = static_cast<size_t>(count) * sizeof(E);
    void* block = std::malloc(bytes);
    for (void* p : {static_cast<void*>(page.first()), static_cast<void*>(page.last(bytes)),
                    static_cast<void*>(page.first() + 512 + 3 * sizeof(E)), block})
        check(static_cast<E*>(p));
    std::free(block);
}

// Fills the page, runs write(p) and checks that only `count` elements at p, in the page, have changed.
template <class E, class Write, class Expected>
void expect_written(const GuardedPage& page, E* p, int count, Write write_to, Expected expected) {
    std::memset(page.first(), 0xa5, GuardedPage::size());
    write_to(p);
    for (int i = 0; i < count; ++i) {
        if (std::memcmp(&p[i], &expected[i], sizeof(E)) != 0) report(i, double(p[i]), double(expected[i]));
        std::memset(&p[i], 0xa5, sizeof(E));
    }
    for (size_t i = 0; i < GuardedPage::size(); ++i)
        if (page.first()[i] != static_cast<char>(0xa5)) {
            report(-1, page.first()[i], static_cast<char>(0xa5));
            break;
        }
}

template <class T>
void check_memory(const GuardedPage& page) {
    constexpr int lanes = VecOf<T>::lanes;
    Random random;
    T value[lanes];
    for (T& x : value) x = random.number<T>();
    const Vec<T> v = load(value);

    for (int n = 0; n <= lanes + 1; ++n) {
        const int count = n < lanes ? n : lanes;
        everywhere<T>(page, count, [&](T* p) {
            std::memcpy(p, value, static_cast<size_t>(count) * sizeof(T));
            begin<T>("load", n);
            expect_lanes<T>(load(p, n), [&](int i) { return i < count ? value[i] : T(0); }, same_bits<T>);
            begin<T>("store", n);
            expect_written(page, p, count, [&](T* to) { store(to, v, n); }, value);
        });
    }
    everywhere<T>(page, lanes, [&](T* p) {
        std::memcpy(p, value, sizeof(value));
        begin<T>("load");
        expect_lanes<T>(load(p), [&](int i) { return value[i]; }, same_bits<T>);
        begin<T>("store");
        expect_written(page, p, lanes, [&](T* to) { store(to, v); }, value);
    });
    for (char* p : {page.first(), page.first() + 64, page.last(64)}) {
        begin<T>("stream");
        const auto stream_to = [&](T* to) {
            stream(to, v);
            stream_fence();
        };
        expect_written(page, reinterpret_cast<T*>(p), lanes, stream_to, value);
    }
}

template <class T>
void check_codes(const GuardedPage& page) {
    constexpr int lanes = VecOf<T>::lanes;
    for (int first = 0; first < 256; ++first) {
        T value[lanes];
        uint8_t codes[lanes];
        for (int i = 0; i < lanes; ++i) value[i] = T(codes[i] = static_cast<uint8_t>(first + 37 * i));
        const Vec<T> v = load(value);
        everywhere<uint8_t>(page, lanes, [&](uint8_t* p) {
            begin<T>("store_codes");
            expect_written(page, p, lanes, [&](uint8_t* to) { store_codes(to, v); }, codes);
            begin<T>("codes_equal, code", first);
            for (int i = 0; i < lanes; ++i) p[i] = first % (i + 2) == 0 ? static_cast<uint8_t>(first) : codes[i];
            const Vec<T> chosen =
                select(codes_equal<T>(p, broadcast_code(static_cast<uint8_t>(first))), v, broadcast(T(-1)));
            expect_lanes<T>(chosen, [&](int i) { return p[i] == first ? value[i] : T(-1); }, same_bits<T>);
        });
        for (int n = 0; n <= lanes; ++n)
            everywhere<uint8_t>(page, n, [&](uint8_t* p) {
                std::memcpy(p, codes, static_cast<size_t>(n));
                begin<T>("load_codes", n);
                expect_lanes<T>(load_codes<T>(p, n), [&](int i) { return i < n ? value[i] : T(0); }, same_bits<T>);
                begin<T>("store_codes", n);
                expect_written(page, p, n, [&](uint8_t* to) { store_codes(to, v, n); }, codes);
            });
    }
}

template <class T>
void check_indices(const GuardedPage& page) {
    constexpr int lanes = VecOf<T>::lanes;
    const int64_t origin = int64_t{1} << 40;
    int32_t ramp[lanes];
    int64_t indices[lanes];
    T offset[lanes];
    for (int i = 0; i < lanes; ++i) {
        ramp[i] = 5 * i - 3;
        offset[i] = T((1 << 24) - 1 - 1000 * i);
        indices[i] = origin + ramp[i] + static_cast<int64_t>(offset[i]);
    }
    const Vec<T> v = load(offset);
    everywhere<int64_t>(page, lanes, [&](int64_t* p) {
        begin<T>("store_indices");
        expect_written(page, p, lanes, [&](int64_t* to) { store_indices(to, v, ramp, origin); }, indices);
        std::memcpy(p, indices, sizeof(indices));
        begin<T>("load_indices");
        expect_lanes<T>(load_indices<T>(p, ramp, origin), [&](int i) { return offset[i]; }, same_bits<T>);
    });
    for (int n = 0; n <= lanes; ++n)
        everywhere<int64_t>(page, n, [&](int64_t* p) {
            begin<T>("store_indices", n);
            expect_written(page, p, n, [&](int64_t* to) { store_indices(to, v, ramp, origin, n); }, indices);
        });
    // What is far away stays far away.
    for (int bit = 25; bit < 63; ++bit)
        for (const int64_t sign : {-1, 1}) {
            for (int i = 0; i < lanes; ++i) indices[i] = origin + ramp[i] + sign * (int64_t{1} << bit);
            T far[lanes];
            store(far, load_indices<T>(indices, ramp, origin));
            begin<T>("load_indices of far ones, bit", bit);
            for (int i = 0; i < lanes; ++i)
                if (std::abs(far[i]) <= T(1 << 23)) report(i, far[i], 0);
        }
}

template <class T>
void check_load_transposed() {
    constexpr int lanes = VecOf<T>::lanes;
    T rows[lanes][lanes + 1];
    for (int r = 0; r < lanes; ++r)
        for (int e = 0; e < lanes; ++e) rows[r][e] = T(100 * r + e);
    Vec<T> block[lanes];
    load_transposed(block, [&](int r) { return rows[r]; });
    for (int e = 0; e < lanes; ++e) {
        begin<T>("load_transposed, vector", e);
        expect_lanes<T>(block[e], [&](int r) { return rows[r][e]; }, same_bits<T>);
    }
}

template <class T>
void check_all() {
    const GuardedPage page;
    check_memory<T>(page);
    check_codes<T>(page);
    check_indices<T>(page);
    check_load_transposed<T>();
    check_transpose<T>();
    check_quads<T>();
    check_all_arithmetic<T>();
}

bool runs_here() {
#if defined(__AVX512F__)
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#elif defined(__AVX2__)
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#else
    return true;
#endif
}

}  // namespace

int main() {
    if (!runs_here()) {
        std::printf("skipped: this processor cannot run %s\n", VEC_HEADER);
        return 77;
    }
    for (int number : {SIGSEGV, SIGBUS, SIGILL}) signal(number, on_signal);
    check_all<float>();
    check_all<double>();
    std::printf("%s: %d lanes of float, %d failures\n", VEC_HEADER, VecOf<float>::lanes, failures);
    return failures != 0;
}
