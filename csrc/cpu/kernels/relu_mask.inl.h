// ReLU that keeps one bit an element, and its gradient from these bits: !(y <= 0), bit i of the mask in bit i % 8 of
// byte i / 8. As relu.inl.h bound by memory, of which the mask is 1/32: backward reads two arrays instead of three.
// Bits go in and out 64 at a time, which for stores around the caches may start anywhere: the output's cache lines
// decide.
#pragma once

namespace {

// Appends bits to memory.
struct BitSink {
    uint8_t* to;
    uint64_t waiting = 0;
    int count = 0;  // of waiting bits, less than 64

    // The n lowest bits, at most 64; those above are zero.
    void put(uint64_t bits, int n) {
        waiting |= bits << count;
        if (count + n < 64) return static_cast<void>(count += n);
        for (int byte = 0; byte < 8; ++byte) to[byte] = static_cast<uint8_t>(waiting >> 8 * byte);
        to += 8;
        waiting = count == 0 ? 0 : bits >> (64 - count);
        count += n - 64;
    }
    void finish() {
        for (; count > 0; count -= 8, waiting >>= 8) *to++ = static_cast<uint8_t>(waiting);
    }
};

// Takes bits from memory; no byte beyond those of the bits taken is read.
struct BitSource {
    const uint8_t* from;
    int64_t at = 0;

    uint64_t take(int n) {
        const uint8_t* p = from + at / 8;
        const int skipped = static_cast<int>(at % 8), bytes = (skipped + n + 7) / 8;
        uint64_t bits = 0;
        for (int byte = 0; byte < (bytes < 8 ? bytes : 8); ++byte) bits |= static_cast<uint64_t>(p[byte]) << 8 * byte;
        bits >>= skipped;
        if (bytes > 8) bits |= static_cast<uint64_t>(p[8]) << (64 - skipped);
        at += n;
        return bits;
    }
};

// Calls block(i) for 64 elements at a time, and some(i, n) for n of a vector's at both ends: with `around_caches`
// blocks begin where a cache line of the output does.
template <class T, class Some, class Block>
inline void for_each_block(const T* output, int64_t count, bool around_caches, const Some& some, const Block& block) {
    constexpr int lanes = VecOf<T>::lanes;
    int64_t i = 0;
    const auto until = [&](int64_t end) {
        for (; i < end; i += lanes) some(i, static_cast<int>(end - i < lanes ? end - i : lanes));
        i = end;
    };
    if (around_caches) {
        constexpr int64_t line = 64 / sizeof(T);
        const int64_t beyond = static_cast<int64_t>(reinterpret_cast<uintptr_t>(output) / sizeof(T)) % line;
        const int64_t head = beyond == 0 ? 0 : line - beyond;
        until(count < head ? count : head);
    }
    for (; i + 64 <= count; i += 64) block(i);
    until(count);
    if (around_caches) stream_fence();
}

template <class T>
void relu_mask_run(T* output, uint8_t* mask, const T* input, int64_t count, bool around_caches) {
    constexpr int lanes = VecOf<T>::lanes;
    const Vec<T> zero = broadcast(T(0));
    BitSink bits{mask};
    const auto block = [&](int64_t first, const auto& write) {
        uint64_t word = 0;
        for (int i = 0; i < 64; i += lanes) {
            const Vec<T> x = load(input + first + i);
            const Mask<T> kept = greater_or_nan(x, zero);
            write(output + first + i, select(kept, x, zero));
            word |= static_cast<uint64_t>(lane_bits(kept)) << i;
        }
        bits.put(word, 64);
    };
    for_each_block(
        output, count, around_caches,
        [&](int64_t first, int n) {  // the lanes past the end are zero, as their bits
            const Vec<T> x = load(input + first, n);
            const Mask<T> kept = greater_or_nan(x, zero);
            store(output + first, select(kept, x, zero), n);
            bits.put(lane_bits(kept), n);
        },
        [&](int64_t first) {
            if (around_caches)
                block(first, [](T* to, Vec<T> y) { stream(to, y); });
            else
                block(first, [](T* to, Vec<T> y) { store(to, y); });
        });
    bits.finish();
}

template <class T>
void relu_mask_backward_run(T* grad_input, const T* grad_output, const uint8_t* mask, int64_t count,
                            bool around_caches) {
    constexpr int lanes = VecOf<T>::lanes;
    const Vec<T> zero = broadcast(T(0));
    BitSource bits{mask};
    const auto block = [&](int64_t first, const auto& write) {
        const uint64_t word = bits.take(64);
        for (int i = 0; i < 64; i += lanes) {
            const Mask<T> kept = lanes_of_bits<T>(static_cast<uint32_t>(word >> i));
            write(grad_input + first + i, select(kept, load(grad_output + first + i), zero));
        }
    };
    for_each_block(
        grad_input, count, around_caches,
        [&](int64_t first, int n) {
            const Mask<T> kept = lanes_of_bits<T>(static_cast<uint32_t>(bits.take(n)));
            store(grad_input + first, select(kept, load(grad_output + first, n), zero), n);
        },
        [&](int64_t first) {
            if (around_caches)
                block(first, [](T* to, Vec<T> g) { stream(to, g); });
            else
                block(first, [](T* to, Vec<T> g) { store(to, g); });
        });
}

}  // namespace
