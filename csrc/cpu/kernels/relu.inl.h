// ReLU, forward and backward: two or three instructions per vector, so the loads and stores are all that matters.
#pragma once

namespace {

// output[i] = value(read) for i < count, where read(p) gives p[i]. `around_caches` streams whole vectors past them.
template <class T, class Value>
inline void map_run(T* output, int64_t count, bool around_caches, const Value& value) {
    constexpr int lanes = VecOf<T>::lanes;
    int64_t i = 0;
    const auto whole = [&](const T* p) { return load(p + i); };
    const auto some = [&](int n) {
        store(output + i, value([&](const T* p) { return load(p + i, n); }), n);
        i += n;
    };
    if (around_caches) {
        constexpr int64_t line = 64 / sizeof(T);
        const int64_t beyond = static_cast<int64_t>(reinterpret_cast<uintptr_t>(output) / sizeof(T)) % line;
        const int64_t head = beyond == 0 ? 0 : (count < line - beyond ? count : line - beyond);
        while (i < head) some(head - i < lanes ? static_cast<int>(head - i) : lanes);
        for (; i + lanes <= count; i += lanes) stream(output + i, value(whole));
        stream_fence();
    }
    for (; i + lanes <= count; i += lanes) store(output + i, value(whole));
    if (i < count) some(static_cast<int>(count - i));
}

template <class T>
void relu_run(T* output, const T* input, int64_t count, bool around_caches) {
    map_run(output, count, around_caches, [&](auto read) { return relu(read(input)); });
}

// The gradient passes where not (output <= 0): at 0 it is 0, a NaN lets it through.
template <class T>
void relu_backward_run(T* grad_input, const T* grad_output, const T* output, int64_t count, bool around_caches) {
    const Vec<T> zero = broadcast(T(0));
    map_run(grad_input, count, around_caches,
            [&](auto read) { return select(greater_or_nan(read(output), zero), read(grad_output), zero); });
}

}  // namespace
