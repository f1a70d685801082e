// The gradient of max-pooling as a scatter in row-major order of the windows. A task owns some rows of a plane (or of
// an image, where channels are adjacent) and adds what falls into them.
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

}  // namespace

template <class T>
bool scatter_cuts_planes(const TensorView<T>& grad_input) {
    return Scatter<T, int64_t>::cuts(grad_input);
}

template <class T, class Chosen>
void max_pool2d_scatter(const PoolProblem& problem, const TensorView<const T>& grad_output,
                        const TensorView<const Chosen>& chosen, const TensorView<T>& grad_input, bool local) {
    Scatter<T, Chosen>(problem, grad_output, chosen, grad_input, local).run(pool_width(problem, sizeof(T)));
}

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
