// The fused training block, backward. The gradient of the convolution's output is expanded from the codes for some
// images, or a block of rows of one, into a buffer of the task's own, and grad_input, grad_weight and grad_bias take
// from it what they need. A task owns blocks in order and sums its weight gradients; the tasks' sums are added in order
// at the end. The cuts follow from the problem alone.
#include <atomic>
#include <cstring>

#include "cpu/conv2d/conv2d.h"
#include "cpu/fused/grad_weight.h"
#include "cpu/fused/row_blocks.h"
#include "cpu/max_pool2d/argmax_codes.h"
#include "cpu/max_pool2d/max_pool2d.h"
#include "cpu/runtime/split_sum.h"

namespace convx {

namespace {

// With more weights than this the sums of several tasks would cost more than they save: one task, whose passes share
// themselves out, with as many images at a time as this.
constexpr int64_t most_weights = int64_t{128} << 10;

template <class T>
class Backward {
public:
    Backward(const FusedProblem& problem, TensorView<const T> grad_output, TensorView<const T> input,
             TensorView<const T> weight, TensorView<const uint8_t> codes, TensorView<T> grad_input,
             TensorView<T> grad_weight, T* grad_bias)
        : problem_(problem), grad_output_(grad_output), input_(input), weight_(weight), codes_(codes),
          grad_input_(grad_input), grad_weight_(grad_weight), grad_bias_(grad_bias),
          weights_(grad_weight.data ? grad_weight.size() : 0), biases_(grad_bias ? problem.conv.out_channels : 0) {
        const int64_t weights = weight.size(), batch = problem.conv.batch;
        const bool one_task = weights > most_weights;
        if (one_task) {
            images_ = std::clamp<int64_t>(most_group_bytes / std::max<int64_t>(conv_image_bytes(problem), 1), 1, batch);
            blocks_ = {whole_image(problem)};
        } else {
            blocks_ = backward_blocks(problem);
            images_ = blocks_.size() > 1 ? 1 : images_of_task(problem);
        }
        units_ = ceil_div(batch, images_) * static_cast<int64_t>(blocks_.size());
        tasks_ = one_task ? 1 : std::min(units_, fused_tasks);
        int64_t rows = 0;
        for (const BackwardBlock& block : blocks_) rows = std::max(rows, last_row(block) - first_row(block));
        buffer_.shape = {images_, problem.conv.out_channels, rows, problem.conv.out_w()};
    }

    bool run() {
        using Parts = SplitSum<T>;
        const int64_t weight_bytes = Parts::bytes(tasks_, weights_);
        const int64_t worker_bytes =
            cache_lines(buffer_.size() * int64_t{sizeof(T)}) + cache_lines((weights_ + biases_) * int64_t{sizeof(T)});
        const TaskRunner runner(
            {tasks_, fused_flops(problem_), weight_bytes + Parts::bytes(tasks_, biases_), worker_bytes});
        const Parts weight_parts(grad_weight_.data, runner.shared(), tasks_, weights_);
        const Parts bias_parts(grad_bias_, static_cast<char*>(runner.shared()) + weight_bytes, tasks_, biases_);
        std::atomic<bool> legal{true};
        runner.run(tasks_, [&](int64_t task, ScratchParts parts) {
            T* const gradient = parts.take<T>(buffer_.size());
            const Sums own{weight_parts.part(task), bias_parts.part(task)};
            T* const scratch = parts.take<T>(weights_ + biases_);
            const int64_t begin = task * units_ / tasks_, end = (task + 1) * units_ / tasks_;
            for (int64_t unit = begin; unit < end; ++unit)
                if (!run_unit(unit, unit == begin, own, scratch, gradient))
                    legal.store(false, std::memory_order_relaxed);
        });
        if (!legal.load()) return false;
        if (weights_) weight_parts.add();
        if (biases_) bias_parts.add();
        return true;
    }

private:
    struct Sums {
        T *weights, *biases;
    };

    static BackwardBlock whole_image(const FusedProblem& problem) {
        return {0, problem.conv.out_h(), 0, problem.conv.h.input, 0, 0, problem.pool.out_h()};
    }

    // The convolution rows of the buffer: those that are asked for, and the others that the windows of these cover,
    // whose sums lack other windows.
    AxisPart windows_of(const BackwardBlock& block) const {
        return AxisPart(problem_.pool.h, block.pool_begin, block.pool_end);
    }
    int64_t first_row(const BackwardBlock& block) const {
        const int64_t first = std::min(block.begin, block.halo_begin);
        return block.pool_begin < block.pool_end ? std::min(first, windows_of(block).input_begin) : first;
    }
    int64_t last_row(const BackwardBlock& block) const {
        return block.pool_begin < block.pool_end ? std::max(block.end, windows_of(block).input_end()) : block.end;
    }

    // The first unit of a task writes its sums, the others add to them.
    bool run_unit(int64_t unit, bool first, const Sums& own, T* scratch, T* buffer) const {
        const int64_t blocks = static_cast<int64_t>(blocks_.size()), n = unit / blocks * images_;
        const BackwardBlock& block = blocks_[static_cast<size_t>(unit % blocks)];
        const int64_t images = std::min(images_, problem_.conv.batch - n), base = first_row(block);
        TensorView<T> gradient = buffer_;
        gradient.data = buffer;
        gradient.shape[0] = images;
        gradient.shape[2] = last_row(block) - base;
        gradient.stride = dense_strides(gradient.shape, problem_.conv.channels_last);
        if (!expand(n, images, block, base, gradient)) return false;

        ConvProblem conv = problem_.conv;
        conv.batch = images;
        if (grad_input_.data) {
            conv.h = blocks == 1 ? problem_.conv.h : block.adjoint_axis(problem_.conv.h);
            conv2d_grad_input<T>(conv, rows_of(gradient, block.halo_begin - base, block.end - base), weight_,
                                 rows_of(grad_input_.images(n, images), block.input_begin, block.input_end));
        }
        if (!weights_ && !biases_) return true;
        const TensorView<const T> rows = rows_of(gradient, block.begin - base, block.end - base);
        const AxisPart window(problem_.conv.h, block.begin, block.end);
        const Sums sums = first ? own : Sums{scratch, scratch + weights_};
        TensorView<const T> input = input_.images(n, images);
        conv.h = problem_.conv.h;
        if (blocks > 1) {
            conv.h = window.axis;
            input = rows_of(input, window.input_begin, window.input_end());
        }
        if (weights_) {
            TensorView<T> sum = grad_weight_;
            sum.data = sums.weights;
            conv2d_grad_weight<T>(conv, rows, input, sum);
        }
        if (biases_) conv2d_grad_bias<T>(rows, sums.biases);
        if (first) return true;
        for (int64_t i = 0; i < weights_; ++i) own.weights[i] += sums.weights[i];
        for (int64_t i = 0; i < biases_; ++i) own.biases[i] += sums.biases[i];
        return true;
    }

    // The gradient of the convolution's rows from `base` on. False where a code lies outside its window.
    bool expand(int64_t n, int64_t images, const BackwardBlock& block, int64_t base,
                const TensorView<T>& gradient) const {
        int64_t begin = block.begin, end = block.begin;
        if (block.pool_begin < block.pool_end) {
            const AxisPart windows = windows_of(block);
            PoolProblem pool = problem_.pool;
            pool.batch = images;
            pool.h = windows.axis;
            begin = windows.input_begin;
            end = windows.input_end();
            if (!max_pool2d_backward<T>(pool, rows_of(grad_output_.images(n, images), block.pool_begin, block.pool_end),
                                        rows_of(codes_.images(n, images), block.pool_begin, block.pool_end),
                                        rows_of(gradient, begin - base, end - base)))
                return false;
        }
        // Rows without a window.
        fill_zero(rows_of(gradient, 0, begin - base));
        fill_zero(rows_of(gradient, end - base, gradient.shape[2]));
        return true;
    }

    static void fill_zero(const TensorView<T>& rows) {
        for_each_plane(rows, [&](int64_t n, int64_t c, int64_t row_elements) {
            std::fill_n(rows.at(n, c, 0, 0), rows.shape[2] * row_elements, T(0));
        });
    }

    const FusedProblem& problem_;
    const TensorView<const T> grad_output_, input_, weight_;
    const TensorView<const uint8_t> codes_;
    const TensorView<T> grad_input_, grad_weight_;
    T* const grad_bias_;
    const int64_t weights_, biases_;
    std::vector<BackwardBlock> blocks_;
    int64_t images_, units_, tasks_;
    TensorView<T> buffer_;
};

}  // namespace

template <class T>
bool conv2d_relu_max_pool2d_backward(const FusedProblem& problem, TensorView<const T> grad_output,
                                     TensorView<const T> input, TensorView<const T> weight,
                                     TensorView<const uint8_t> codes, TensorView<T> grad_input,
                                     TensorView<T> grad_weight, T* grad_bias) {
    if (problem.conv.batch == 0) {
        if (grad_weight.data) std::fill_n(grad_weight.data, grad_weight.size(), T(0));
        if (grad_bias) std::fill_n(grad_bias, problem.conv.out_channels, T(0));
        return true;
    }
    if ((grad_weight.data || grad_bias) && sums_selected_pixels(problem)) {
        if (!codes_are_legal(problem.pool, codes)) return false;
        if (selected_pixels_grad_weight(problem, grad_output, input, codes, grad_weight, grad_bias)) grad_weight = {};
        grad_bias = nullptr;
        if (!grad_input.data && !grad_weight.data) return true;
    }
    return Backward<T>(problem, grad_output, input, weight, codes, grad_input, grad_weight, grad_bias).run();
}

template bool conv2d_relu_max_pool2d_backward(const FusedProblem&, TensorView<const float>, TensorView<const float>,
                                              TensorView<const float>, TensorView<const uint8_t>, TensorView<float>,
                                              TensorView<float>, float*);
template bool conv2d_relu_max_pool2d_backward(const FusedProblem&, TensorView<const double>, TensorView<const double>,
                                              TensorView<const double>, TensorView<const uint8_t>, TensorView<double>,
                                              TensorView<double>, double*);

}  // namespace convx
