// The gradient of max-pooling as a scatter in row-major order of the windows. A task owns some dense planes and goes
// through four of them side by side; or some rows of a plane (or of an image, where channels are adjacent), and adds
// what falls into them.
#include <atomic>
#include <cstdlib>
#include <limits>
#include <type_traits>

#include "cpu/max_pool2d/nest.h"

namespace convx {

namespace {

// Adds grad_output where the chosen cells are: indices (int64) or codes (uint8).
template <class T, class Chosen>
class Scatter {
public:
    // `local`: every index lies in a row that its window covers.
    Scatter(const PoolProblem& problem, const TensorView<const T>& grad_output, const TensorView<const Chosen>& chosen,
            const TensorView<T>& grad_input, bool local)
        : problem_(problem), grad_output_(grad_output), chosen_(chosen), grad_input_(grad_input), local_(local) {
        if constexpr (std::is_same_v<Chosen, uint8_t>) {
            const int64_t columns = problem.w.kernel;
            for (int64_t code = 0; code < problem.taps(); ++code)
                offsets_[static_cast<size_t>(code)] =
                    code / columns * problem.h.dilation * problem.w.input + code % columns * problem.w.dilation;
            offsets_[no_gradient_code] = std::numeric_limits<int64_t>::min() / 2;
        }
    }

    // Channels that a task takes together: all of them, where they lie closer than pixels.
    static int64_t channels_of(const TensorView<T>& grad_input) {
        return std::abs(grad_input.stride[1]) < std::abs(grad_input.stride[3]) ? grad_input.shape[1] : 1;
    }
    // True if the rows of a plane (or image) are more than one task.
    static bool cuts(const TensorView<T>& grad_input) {
        return channels_of(grad_input) * grad_input.shape[2] * grad_input.shape[3] > pool_task_elements;
    }

    void run(int width) const {
        const int64_t rows = problem_.h.input, channels = channels_of(grad_input_);
        const int64_t groups = problem_.batch * problem_.channels / channels;
        // Rows of one unit: all of them where an index may point far from its window.
        const int64_t row_elements = problem_.w.input * channels;
        const int64_t block = local_ ? std::clamp<int64_t>(pool_task_elements / row_elements, 1, rows) : rows;
        const int64_t blocks = ceil_div(rows, block), units = groups * blocks;
        const int64_t task_units = std::max<int64_t>(1, pool_task_elements / (row_elements * block));
        parallel_for(ceil_div(units, task_units), width, [&](int64_t task, int) {
            for (int64_t unit = task * task_units; unit < std::min(units, (task + 1) * task_units); ++unit) {
                const int64_t first = unit / blocks * channels, row = unit % blocks * block;
                const int64_t n = first / problem_.channels, c = first % problem_.channels;
                add_rows(n, c, channels, row, std::min(rows, row + block));
            }
        });
    }

private:
    void add_rows(int64_t n, int64_t c_begin, int64_t channels, int64_t row_begin, int64_t row_end) const;

    const PoolProblem& problem_;
    const TensorView<const T> grad_output_;
    const TensorView<const Chosen> chosen_;
    const TensorView<T> grad_input_;
    const bool local_;
    std::array<int64_t, 256> offsets_{};  // index under a code, less that of the window's origin
};

// The cells of rows [row_begin, row_end) of `channels` channels: zeros, then what falls into them.
template <class T, class Chosen>
void Scatter<T, Chosen>::add_rows(int64_t n, int64_t c_begin, int64_t channels, int64_t row_begin,
                                  int64_t row_end) const {
    const Axis &h = problem_.h, &w = problem_.w;
    const auto [image_stride, channel_stride, row_stride, stride] = grad_input_.stride;
    (void)image_stride;
    for (int64_t row = row_begin; row < row_end; ++row) {
        T* cells = grad_input_.at(n, c_begin, row, 0);
        if (channels == 1 ? stride == 1 : channel_stride == 1 && stride == channels)
            std::fill_n(cells, w.input * channels, T(0));
        else
            for (int64_t column = 0; column < w.input; ++column)
                for (int64_t c = 0; c < channels; ++c) cells[column * stride + c * channel_stride] = T(0);
    }

    const int64_t p_begin =
        local_ ? ceil_div(std::max<int64_t>(0, row_begin + h.pad_before - h.extent() + 1), h.stride) : 0;
    const int64_t p_end =
        local_ ? std::min(problem_.out_h(), (row_end - 1 + h.pad_before) / h.stride + 1) : problem_.out_h();
    const int64_t first = row_begin * w.input, columns = problem_.out_w();
    const uint64_t cells = static_cast<uint64_t>((row_end - row_begin) * w.input);
    T* const block = grad_input_.at(n, c_begin, row_begin, 0);
    const bool dense = row_stride == w.input * stride;
    const auto add_rows = [&](const auto& place_of) {
        for (int64_t p = p_begin; p < p_end; ++p) {
            int64_t origin = h.position(p, 0) * w.input + w.position(0, 0) - first;
            const auto add = [&](Chosen chosen, T grad, int64_t c) {
                int64_t index;
                if constexpr (std::is_same_v<Chosen, uint8_t>)
                    index = origin + offsets_[chosen];
                else
                    index = chosen - first;
                if (static_cast<uint64_t>(index) < cells) block[place_of(index) + c * channel_stride] += grad;
            };
            const Chosen* chosen = chosen_.at(n, c_begin, p, 0);
            const T* grad = grad_output_.at(n, c_begin, p, 0);
            const int64_t chosen_step = chosen_.stride[3], grad_step = grad_output_.stride[3];
            if (channels == 1)
                for (int64_t q = 0; q < columns; ++q, origin += w.stride)
                    add(chosen[q * chosen_step], grad[q * grad_step], 0);
            else
                for (int64_t q = 0; q < columns; ++q, origin += w.stride, chosen += chosen_step, grad += grad_step)
                    for (int64_t c = 0; c < channels; ++c)
                        add(chosen[c * chosen_.stride[1]], grad[c * grad_output_.stride[1]], c);
        }
    };
    if (dense && stride == 1)
        add_rows([](int64_t index) { return index; });
    else if (dense)
        add_rows([stride = stride](int64_t index) { return index * stride; });
    else
        add_rows([&, row_stride = row_stride, stride = stride](int64_t index) {
            return index / w.input * row_stride + index % w.input * stride;
        });
}

// The indices behind the codes of dense planes. Window i under code c points to origin[i] + offsets[kind[i]][c]; a kind
// are the windows with the same taps inside the image. One loop over all windows: loops over the kinds of a row of 7
// are so short that their ends cost 2 ns a window.
class CodeIndices {
public:
    static constexpr int32_t most_cells = 1 << 28;  // of a padded plane that this is for
    static constexpr int32_t nowhere = -2 * most_cells, illegal = -6 * most_cells;  // less than this far from an origin

    explicit CodeIndices(const PoolProblem& problem) {
        const std::vector<WindowRun> rows = window_runs(problem.h), columns = window_runs(problem.w);
        const int64_t taps_w = problem.w.kernel, input_w = problem.w.input;
        windows_.resize(static_cast<size_t>(problem.out_h() * problem.out_w()));
        for (const WindowRun& row : rows)
            for (const WindowRun& column : columns) {
                const int32_t kind = static_cast<int32_t>(offsets_.size());
                offsets_.resize(offsets_.size() + 256, illegal);
                int32_t* const to = offsets_.data() + kind;
                to[no_gradient_code] = nowhere;
                for (int64_t r = row.tap_begin; r < row.tap_end; ++r)
                    for (int64_t s = column.tap_begin; s < column.tap_end; ++s)
                        to[r * taps_w + s] =
                            static_cast<int32_t>(r * problem.h.dilation * input_w + s * problem.w.dilation);
                for (int64_t p = row.begin; p < row.end; ++p)
                    for (int64_t q = column.begin; q < column.end; ++q)
                        windows_[static_cast<size_t>(p * problem.out_w() + q)] = {
                            static_cast<int32_t>(problem.h.position(p, 0) * input_w + problem.w.position(q, 0)), kind};
            }
    }

    void find(const uint8_t* codes, int64_t first, int64_t count, int32_t* to) const {
        const Window* const windows = windows_.data() + first;
        const int32_t* const offsets = offsets_.data();
        for (int64_t i = 0; i < count; ++i) to[i] = windows[i].origin + offsets[windows[i].kind + codes[i]];
    }

private:
    struct Window {
        int32_t origin, kind;  // kind: the first of its offsets
    };
    std::vector<Window> windows_;
    std::vector<int32_t> offsets_;
};

// Neighbouring windows often chose the same cell, and then one sum waits 10 cycles for the other: so four planes take
// turns.
constexpr int64_t planes_at_once = 4;

template <class T, class Chosen>
class PlaneScatter {
public:
    PlaneScatter(const PoolProblem& problem, const TensorView<const T>& grad_output,
                 const TensorView<const Chosen>& chosen, const TensorView<T>& grad_input)
        : problem_(problem), grad_output_(grad_output), chosen_(chosen), grad_input_(grad_input),
          code_indices_(problem), windows_(problem.out_h() * problem.out_w()),
          cells_(problem.h.input * problem.w.input) {}

    // False where an index lies outside its plane, or a code is that of no tap inside the image.
    bool run(int width) const {
        const int64_t planes = problem_.batch * problem_.channels;
        const int64_t step = round_up(std::max<int64_t>(1, pool_task_elements / cells_), planes_at_once);
        std::atomic<bool> legal{true};
        const int64_t found = std::is_same_v<Chosen, uint8_t> ? planes_at_once * block_windows : 0;
        const Workspace workspace(static_cast<size_t>(found * width * int64_t{sizeof(int32_t)}));
        parallel_for(ceil_div(planes, step), width, [&](int64_t task, int worker) {
            int32_t* const own = static_cast<int32_t*>(workspace.data()) + worker * found;
            const int64_t end = std::min(planes, (task + 1) * step);
            int64_t plane = task * step;
            bool all = true;
            for (; plane + planes_at_once <= end; plane += planes_at_once) all = add<planes_at_once>(plane, own) && all;
            for (; plane < end; ++plane) all = add<1>(plane, own) && all;
            if (!all) legal.store(false, std::memory_order_relaxed);
        });
        return legal.load();
    }

private:
    // Windows that are looked up at once: a quarter of L1 for four planes.
    static constexpr int64_t block_windows = 512;

    template <int count>
    bool add(int64_t first, int32_t* found) const {
        const T* grads[count];
        const Chosen* chosen[count];
        T* cells[count];
        for (int k = 0; k < count; ++k) {
            const int64_t n = (first + k) / problem_.channels, c = (first + k) % problem_.channels;
            grads[k] = grad_output_.at(n, c, 0, 0);
            chosen[k] = chosen_.at(n, c, 0, 0);
            cells[k] = grad_input_.at(n, c, 0, 0);
            std::fill_n(cells[k], cells_, T(0));
        }
        if constexpr (std::is_same_v<Chosen, int64_t>) return add_windows<count>(0, windows_, grads, chosen, cells);
        // Looked up ahead: an addition whose cell is known late holds up all that follow (2.9 ns a window, now 2.3).
        const int32_t* indices[count];
        bool legal = true;
        for (int64_t i = 0; i < windows_; i += block_windows) {
            const int64_t windows = std::min(block_windows, windows_ - i);
            for (int k = 0; k < count; ++k) {
                int32_t* const to = found + k * block_windows;
                if constexpr (std::is_same_v<Chosen, uint8_t>) code_indices_.find(chosen[k] + i, i, windows, to);
                indices[k] = to;
            }
            legal = add_windows<count>(i, windows, grads, indices, cells) && legal;
        }
        return legal;
    }

    template <int count, class Index>
    bool add_windows(int64_t first, int64_t windows, const T* const (&all_grads)[count],
                     const Index* const (&all_indices)[count], T* const (&all_cells)[count]) const {
        const T* grads[count];
        const Index* indices[count];
        T* cells[count];
        for (int k = 0; k < count; ++k) {
            grads[k] = all_grads[k] + first;
            indices[k] = all_indices[k];
            cells[k] = all_cells[k];
        }
        const uint64_t size = static_cast<uint64_t>(cells_);
        bool legal = true;
        for (int64_t i = 0; i < windows; ++i)
#pragma GCC unroll 4
            for (int k = 0; k < count; ++k) {
                const int64_t index = indices[k][i];
                if (static_cast<uint64_t>(index) < size)
                    cells[k][index] += grads[k][i];
                else if constexpr (std::is_same_v<Index, int64_t>)
                    legal = false;
                else
                    legal &= index > 2 * CodeIndices::nowhere;
            }
        return legal;
    }

    struct NoCodes {
        explicit NoCodes(const PoolProblem&) {}
    };

    const PoolProblem& problem_;
    const TensorView<const T> grad_output_;
    const TensorView<const Chosen> chosen_;
    const TensorView<T> grad_input_;
    const std::conditional_t<std::is_same_v<Chosen, uint8_t>, CodeIndices, NoCodes> code_indices_;
    const int64_t windows_, cells_;
};

}  // namespace

template <class T, class Chosen>
bool max_pool2d_scatters_planes(const PoolProblem& problem, const TensorView<const T>& grad_output,
                                const TensorView<const Chosen>& chosen, const TensorView<T>& grad_input) {
    const int64_t planes = problem.batch * problem.channels, cells = problem.h.input * problem.w.input;
    // Here no index may be that of a window without a tap.
    const bool empties =
        std::is_same_v<Chosen, int64_t> && (has_empty_window(problem.h) || has_empty_window(problem.w));
    return planes >= planes_at_once && !empties && problem.covered_cells() < CodeIndices::most_cells &&
           plane_is_dense(grad_output) && plane_is_dense(chosen) && plane_is_dense(grad_input) &&
           (planes >= planes_at_once * num_threads() || cells <= pool_task_elements);
}

template <class T, class Chosen>
bool max_pool2d_scatter_planes(const PoolProblem& problem, const TensorView<const T>& grad_output,
                               const TensorView<const Chosen>& chosen, const TensorView<T>& grad_input) {
    return PlaneScatter<T, Chosen>(problem, grad_output, chosen, grad_input).run(pool_width(problem, sizeof(T)));
}

template <class T>
bool scatter_cuts_planes(const TensorView<T>& grad_input) {
    return Scatter<T, int64_t>::cuts(grad_input);
}

template <class T, class Chosen>
void max_pool2d_scatter(const PoolProblem& problem, const TensorView<const T>& grad_output,
                        const TensorView<const Chosen>& chosen, const TensorView<T>& grad_input, bool local) {
    Scatter<T, Chosen>(problem, grad_output, chosen, grad_input, local).run(pool_width(problem, sizeof(T)));
}

template bool max_pool2d_scatters_planes(const PoolProblem&, const TensorView<const float>&,
                                         const TensorView<const uint8_t>&, const TensorView<float>&);
template bool max_pool2d_scatter_planes(const PoolProblem&, const TensorView<const float>&,
                                        const TensorView<const uint8_t>&, const TensorView<float>&);
template bool max_pool2d_scatters_planes(const PoolProblem&, const TensorView<const float>&,
                                         const TensorView<const int64_t>&, const TensorView<float>&);
template bool max_pool2d_scatter_planes(const PoolProblem&, const TensorView<const float>&,
                                        const TensorView<const int64_t>&, const TensorView<float>&);
template bool max_pool2d_scatters_planes(const PoolProblem&, const TensorView<const double>&,
                                         const TensorView<const uint8_t>&, const TensorView<double>&);
template bool max_pool2d_scatter_planes(const PoolProblem&, const TensorView<const double>&,
                                        const TensorView<const uint8_t>&, const TensorView<double>&);
template bool max_pool2d_scatters_planes(const PoolProblem&, const TensorView<const double>&,
                                         const TensorView<const int64_t>&, const TensorView<double>&);
template bool max_pool2d_scatter_planes(const PoolProblem&, const TensorView<const double>&,
                                        const TensorView<const int64_t>&, const TensorView<double>&);
template bool scatter_cuts_planes(const TensorView<float>&);
template bool scatter_cuts_planes(const TensorView<double>&);
template void max_pool2d_scatter(const PoolProblem&, const TensorView<const float>&, const TensorView<const uint8_t>&,
                                 const TensorView<float>&, bool);
template void max_pool2d_scatter(const PoolProblem&, const TensorView<const double>&, const TensorView<const uint8_t>&,
                                 const TensorView<double>&, bool);
template void max_pool2d_scatter(const PoolProblem&, const TensorView<const float>&, const TensorView<const int64_t>&,
                                 const TensorView<float>&, bool);
template void max_pool2d_scatter(const PoolProblem&, const TensorView<const double>&, const TensorView<const int64_t>&,
                                 const TensorView<double>&, bool);

}  // namespace convx
