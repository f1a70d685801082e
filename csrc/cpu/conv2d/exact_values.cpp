// Values whose sums users know exactly, and which Winograd's transforms would spoil by a rounding error:
//
//   masks         a tap that is zero in every filter (a causal convolution): the pixel under it must not be seen
//   whole numbers sums of whole numbers are exact in any order, a sum over frequencies is not
//   signs         products of one sign add up to that sign; a tile gives -1e-7 where the sum is 0
//
// The weights (of a weight gradient: grad_output) are looked at first, and of common ones the first few values answer
// no, so that nothing else is read. What is decided follows from the weights and one image alone: never from the batch.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "cpu/conv2d/methods.h"
#include "cpu/conv2d/winograd_parts.h"
#include "cpu/runtime/thread_pool.h"

namespace convx {

namespace {

constexpr int64_t chunk = 64;  // values looked at before the answer is asked for

inline int32_t bits_of(float x) {
    int32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    return bits;
}
inline int64_t bits_of(double x) {
    int64_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    return bits;
}

// Signs that were met, by the bits of the values: the compiler makes vectors of that (a NaN has some sign; the image
// or gradient that has one is computed by the direct method anyway).
struct Signs {
    bool negative = false, positive = false;

    bool differ() const { return negative && positive; }
    int sign() const { return differ() ? 0 : negative ? -1 : 1; }  // zeros alone count as positive
    void add(Signs other) {
        negative |= other.negative;
        positive |= other.positive;
    }
    template <class T>
    void add(const T* x, int64_t stride, int64_t count) {
        using Bits = decltype(bits_of(T()));
        Bits below = 0, above = 0;
        for (int64_t i = 0; i < count; ++i) {
            const Bits bits = bits_of(x[i * stride]);
            below |= bits < 0 && bits != std::numeric_limits<Bits>::min();
            above |= bits > 0;
        }
        negative |= below != 0;
        positive |= above != 0;
    }
    template <class T>
    void add_run(const T* x, int64_t stride, int64_t count) {
        if (stride == 1)
            add(x, 1, count);  // inlined with the constant: vectors
        else
            add(x, stride, count);
    }
};

// The same values, the axes by their strides, and those that follow each other in memory as one.
template <class T>
TensorView<const T> in_memory_order(TensorView<const T> view) {
    for (size_t end = 3; end > 0; --end)
        for (size_t axis = 0; axis < end; ++axis)
            if (std::abs(view.stride[axis]) < std::abs(view.stride[axis + 1])) {
                std::swap(view.stride[axis], view.stride[axis + 1]);
                std::swap(view.shape[axis], view.shape[axis + 1]);
            }
    for (int axis = 2; axis >= 0; --axis) {
        const size_t i = static_cast<size_t>(axis);
        if (view.shape[i] != 1 && view.stride[i] != view.shape[3] * view.stride[3]) break;
        view.shape[3] *= view.shape[i];
        view.shape[i] = 1;
    }
    return view;
}

// visit(first value, stride, count) of chunks in some order, until it returns false.
template <class T, class Visit>
void visit_chunks(TensorView<const T> values, const Visit& visit) {
    const TensorView<const T> view = in_memory_order(values);
    for (int64_t n = 0; n < view.shape[0]; ++n)
        for (int64_t c = 0; c < view.shape[1]; ++c)
            for (int64_t h = 0; h < view.shape[2]; ++h)
                for (int64_t w = 0; w < view.shape[3]; w += chunk)
                    if (!visit(view.at(n, c, h, w), view.stride[3], std::min(chunk, view.shape[3] - w))) return;
}

template <class T>
Signs signs_in(TensorView<const T> view) {
    Signs signs;
    visit_chunks(view, [&](const T* x, int64_t stride, int64_t count) {
        signs.add_run(x, stride, count);
        return !signs.differ();
    });
    return signs;
}

// The signs in `count` views, view_of(i) of about `size` values each. Most have both in their first chunk; the threads
// share the others.
template <class ViewOf>
std::vector<Signs> signs_in_each(int64_t count, int64_t size, const ViewOf& view_of) {
    std::vector<Signs> signs(static_cast<size_t>(count));
    std::vector<int64_t> undecided;
    for (int64_t i = 0; i < count; ++i) {
        Signs& first = signs[static_cast<size_t>(i)];
        visit_chunks(view_of(i), [&](const auto* x, int64_t stride, int64_t values) {
            first.add_run(x, stride, values);
            return false;
        });
        if (!first.differ()) undecided.push_back(i);
    }
    const int64_t tasks = static_cast<int64_t>(undecided.size());
    parallel_for(tasks, parallel_width(2 * tasks * size), [&](int64_t task, int) {
        const int64_t i = undecided[static_cast<size_t>(task)];
        signs[static_cast<size_t>(i)] = signs_in(view_of(i));
    });
    return signs;
}

template <class T>
std::vector<Signs> signs_in_channels(TensorView<const T> view) {
    return signs_in_each(view.shape[1], view.shape[0] * view.shape[2] * view.shape[3], [&](int64_t c) {
        return TensorView<const T>{view.at(0, c, 0, 0), {view.shape[0], 1, view.shape[2], view.shape[3]}, view.stride};
    });
}

// From 2^24 (2^53) on every value is whole.
template <class T>
bool is_whole_value(T x) {
    return std::abs(x) < T(int64_t{1} << 53) ? static_cast<T>(static_cast<int64_t>(x)) == x : true;
}

template <class T>
bool is_whole_array(TensorView<const T> view) {
    bool whole = true;
    visit_chunks(view, [&](const T* x, int64_t stride, int64_t count) {
        for (int64_t i = 0; i < count && whole; ++i) whole = is_whole_value(x[i * stride]);
        return whole;
    });
    return whole;
}

// Values that have to lie above the bound (sign 1) or below it (-1).
template <class T>
void bound_values(T* x, int64_t stride, int64_t count, T bound, int sign) {
    if (sign > 0)
        for (int64_t i = 0; i < count; ++i) x[i * stride] = x[i * stride] < bound ? bound : x[i * stride];
    else
        for (int64_t i = 0; i < count; ++i) x[i * stride] = x[i * stride] > bound ? bound : x[i * stride];
}

// The filters of some output channels of a group.
template <class T>
TensorView<const T> filters_of(const ImplicitGemm<T>& gemm, int64_t group, int64_t first, int64_t count) {
    const auto kernel = [](const AxisTable& table) { return static_cast<int64_t>(table.taps.size()); };
    return {gemm.weight + group * gemm.weight_group + first * gemm.weight_row,
            {count, gemm.channels, kernel(*gemm.h), kernel(*gemm.w)},
            {gemm.weight_row, gemm.weight_channel, gemm.weight_h, gemm.weight_w}};
}

// All weights of one sign are found in one pass over memory, those of single output channels only after that.
template <class T>
std::vector<Signs> weight_signs(const ImplicitGemm<T>& gemm) {
    Signs all;
    for (int64_t group = 0; group < gemm.groups && !all.differ(); ++group)
        all.add(signs_in(filters_of(gemm, group, 0, gemm.rows)));
    const int64_t rows = gemm.groups * gemm.rows;
    if (!all.differ()) return std::vector<Signs>(static_cast<size_t>(rows), all);
    return signs_in_each(rows, gemm.channels * gemm.taps(),
                         [&](int64_t row) { return filters_of(gemm, row / gemm.rows, row % gemm.rows, 1); });
}

// Bit t: tap t is not zero in some filter. Ends with the first filter of a dense weight.
template <class T>
bool has_a_tap_of_zeros(const ImplicitGemm<T>& gemm) {
    const int64_t taps = gemm.taps();
    const uint32_t all = (1u << taps) - 1;
    uint32_t seen = 0;
    for (int64_t row = 0; row < gemm.groups * gemm.rows; ++row) {
        const TensorView<const T> filter = filters_of(gemm, row / gemm.rows, row % gemm.rows, 1);
        for (int64_t c = 0; c < gemm.channels; ++c) {
            for (int64_t tap = 0; tap < taps; ++tap)
                if (!(*filter.at(0, c, tap / filter.shape[3], tap % filter.shape[3]) == T(0))) seen |= 1u << tap;
            if (seen == all) return false;
        }
    }
    return true;
}

template <class T>
TensorView<const T> source_of(const ImplicitGemm<T>& gemm) {
    const auto extent = [](const AxisTable& table) {
        return table.index.empty() ? 0 : 1 + *std::max_element(table.index.begin(), table.index.end());
    };
    const Strides& from = gemm.source_stride;
    return {gemm.source,
            {gemm.batch, gemm.groups * gemm.channels, extent(*gemm.h), extent(*gemm.w)},
            {from.n, from.c, from.h, from.w}};
}

// Of the images of a window sum.
template <class T>
class ExactValues {
public:
    explicit ExactValues(const ImplicitGemm<T>& gemm)
        : gemm_(gemm), source_(source_of(gemm)), masked_(has_a_tap_of_zeros(gemm)),
          whole_weights_(is_whole_value(gemm.pad)) {
        if (masked_) return;
        for (int64_t group = 0; group < gemm.groups && whole_weights_; ++group)
            whole_weights_ = is_whole_array(filters_of(gemm, group, 0, gemm.rows));
        for (const Signs& signs : weight_signs(gemm)) {
            signs_.push_back(static_cast<int8_t>(signs.sign()));
            signed_weights_ |= signs.sign() != 0;
        }
    }

    // A tap is zero in every filter.
    bool is_masked() const { return masked_; }
    // Image n and the weights are whole numbers.
    bool is_whole(int64_t n) const { return whole_weights_ && is_whole_array(source_.images(n, 1)); }

    // Raise or lower results of image n to the sign that they must have.
    void restore_signs(int64_t n) const {
        if (!signed_weights_) return;
        Signs image;
        image.add(&gemm_.pad, 1, 1);
        for (const Signs& channel : signs_in_channels(source_.images(n, 1))) image.add(channel);
        if (image.differ()) return;
        const int64_t height = gemm_.h->positions, width = gemm_.w->positions, rows = gemm_.groups * gemm_.rows;
        const Strides& to = gemm_.dest_stride;
        parallel_for(rows, parallel_width(4 * rows * height * width), [&](int64_t row, int) {
            const int sign = image.sign() * signs_[static_cast<size_t>(row)];
            if (sign == 0) return;
            const T bias = gemm_.bias ? gemm_.bias[row * gemm_.bias_stride] : T(0);
            const T bound = gemm_.relu ? std::max(T(0), bias) : bias;
            for (int64_t h = 0; h < height; ++h)
                bound_values(gemm_.dest + n * to.n + row * to.c + h * to.h, to.w, width, bound, sign);
        });
    }

private:
    const ImplicitGemm<T>& gemm_;
    TensorView<const T> source_;
    bool masked_ = false, whole_weights_ = false, signed_weights_ = false;
    std::vector<int8_t> signs_;  // of the filters of an output channel: 1, -1, or 0 where they differ
};

// The same for a weight gradient.
template <class T>
void restore_signs(const PixelSum<T>& sum) {
    const TensorView<T>& grad_weight = sum.grad_weight;
    const auto [rows, columns, height, width] = grad_weight.shape;
    const std::vector<Signs> row_signs = signs_in_channels(sum.grad_output);
    if (std::all_of(row_signs.begin(), row_signs.end(), [](Signs signs) { return signs.differ(); })) return;
    std::vector<Signs> input_signs = signs_in_channels(sum.input);
    const T border = sum.pad();
    for (Signs& signs : input_signs) signs.add(&border, 1, 1);
    for (int64_t row = 0; row < rows; ++row)
        for (int64_t column = 0; column < columns; ++column) {
            const int64_t channel = row / sum.problem->group_out() * columns + column;
            const int sign =
                row_signs[static_cast<size_t>(row)].sign() * input_signs[static_cast<size_t>(channel)].sign();
            if (sign != 0) bound_values(grad_weight.at(row, column, 0, 0), 1, height * width, T(0), sign);
        }
}

}  // namespace

template <class T>
void run_but_for_exceptions(const WindowSum<T>& sum, const ImplicitGemm<T>& gemm,
                            const std::function<void(Faults)>& run) {
    const ExactValues<T> exact(gemm);
    if (exact.is_masked()) return compute_directly(sum, 0, sum.batch);
    std::vector<bool> whole;
    for (int64_t n = 0; n < sum.batch; ++n) whole.push_back(exact.is_whole(n));
    if (std::find(whole.begin(), whole.end(), false) == whole.end()) return compute_directly(sum, 0, sum.batch);
    std::vector<std::atomic<bool>> faulty(static_cast<size_t>(sum.batch));
    run(faulty.data());
    for (int64_t n = 0; n < sum.batch; ++n)
        if (faulty[static_cast<size_t>(n)] || whole[static_cast<size_t>(n)])
            compute_directly(sum, n, 1);
        else
            exact.restore_signs(n);
}

template <class T>
void run_but_for_exceptions(const PixelSum<T>& sum, const std::function<bool()>& run) {
    if (is_whole_array(sum.grad_output) && is_whole_value(sum.border.value) && is_whole_array(sum.input))
        return compute_directly(sum);
    if (!run()) return compute_directly(sum);
    restore_signs(sum);
}

template void run_but_for_exceptions(const WindowSum<float>&, const ImplicitGemm<float>&,
                                     const std::function<void(Faults)>&);
template void run_but_for_exceptions(const WindowSum<double>&, const ImplicitGemm<double>&,
                                     const std::function<void(Faults)>&);
template void run_but_for_exceptions(const PixelSum<float>&, const std::function<bool()>&);
template void run_but_for_exceptions(const PixelSum<double>&, const std::function<bool()>&);

}  // namespace convx
