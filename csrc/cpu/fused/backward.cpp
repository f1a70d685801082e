// The fused training block, backward. The gradient of the convolution's output is expanded from the codes for some
// images, or a band of rows of one, into a buffer of the task's own, and grad_input, grad_weight and grad_bias take
// from it what they need. A task owns bands in order and sums its weight gradients; the tasks' sums are added in order
// at the end. The cuts follow from the problem alone.
#include <atomic>
#include <cstring>

#include "cpu/conv2d/conv2d.h"
#include "cpu/fused/bands.h"
#include "cpu/fused/grad_weight.h"
#include "cpu/max_pool2d/chosen.h"
#include "cpu/max_pool2d/max_pool2d.h"
#include "cpu/runtime/scratch_parts.h"
#include "cpu/runtime/thread_pool.h"
#include "cpu/runtime/workspace.h"

namespace convx {

namespace {

// With more weights than this the sums of several tasks would cost more than they save: one task, whose passes share
// themselves out, with as many images at a time as this.
constexpr int64_t most_weights = int64_t{128} << 10;
constexpr int64_t least_flops = 1'000'000;

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
            bands_ = {whole_image(problem)};
        } else {
            bands_ = backward_bands(problem);
            images_ = bands_.size() > 1 ? 1 : images_of_task(problem);
        }
        units_ = ceil_div(batch, images_) * static_cast<int64_t>(bands_.size());
        tasks_ = one_task ? 1 : std::min(units_, wanted_band_tasks);
        int64_t rows = 0;
        for (const BackwardBand& band : bands_) rows = std::max(rows, last_row(band) - first_row(band));
        buffer_.shape = {images_, problem.conv.out_channels, rows, problem.conv.out_w()};
    }

    bool run() {
        const int width = tasks_ == 1 || problem_.conv.flops() < least_flops
                              ? 1
                              : static_cast<int>(std::min<int64_t>(num_threads(), tasks_));
        const int64_t worker_bytes = Scratch(ScratchParts(), *this).bytes;
        const int64_t part_bytes = cache_lines((weights_ + biases_) * int64_t{sizeof(T)});
        const Workspace workspace(static_cast<size_t>(width * worker_bytes + tasks_ * part_bytes));
        char* const workers = static_cast<char*>(workspace.data()) + tasks_ * part_bytes;
        const auto part_of = [&](int64_t task) {
            return reinterpret_cast<T*>(static_cast<char*>(workspace.data()) + task * part_bytes);
        };
        std::atomic<bool> legal{true};
        parallel_for(tasks_, width, [&](int64_t task, int worker) {
            const Scratch scratch(ScratchParts(workers + worker * worker_bytes), *this);
            for (int64_t unit = task * units_ / tasks_; unit < (task + 1) * units_ / tasks_; ++unit)
                if (!run_unit(unit, unit == task * units_ / tasks_, part_of(task), scratch))
                    legal.store(false, std::memory_order_relaxed);
        });
        if (!legal.load()) return false;
        const auto add_parts = [&](T* to, int64_t offset, int64_t count) {
            std::copy_n(part_of(0) + offset, count, to);
            for (int64_t task = 1; task < tasks_; ++task)
                for (int64_t i = 0; i < count; ++i) to[i] += part_of(task)[offset + i];
        };
        if (weights_) add_parts(grad_weight_.data, 0, weights_);
        if (biases_) add_parts(grad_bias_, weights_, biases_);
        return true;
    }

private:
    struct Scratch {
        Scratch(ScratchParts parts, const Backward& b)
            : gradient(parts.take<T>(b.buffer_.size())), sums(parts.take<T>(b.weights_ + b.biases_)),
              bytes(parts.bytes()) {}
        T* gradient;
        T* sums;
        int64_t bytes;
    };

    static BackwardBand whole_image(const FusedProblem& problem) {
        return {0, problem.conv.out_h(), 0, problem.conv.h.input, 0, 0, problem.pool.out_h()};
    }

    // The convolution rows of the buffer: those that are asked for, and the others that the windows of these cover,
    // whose sums lack other windows.
    AxisPart windows_of(const BackwardBand& band) const {
        return AxisPart(problem_.pool.h, band.pool_begin, band.pool_end);
    }
    int64_t first_row(const BackwardBand& band) const {
        const int64_t first = std::min(band.begin, band.halo_begin);
        return band.pool_begin < band.pool_end ? std::min(first, windows_of(band).input_begin) : first;
    }
    int64_t last_row(const BackwardBand& band) const {
        return band.pool_begin < band.pool_end ? std::max(band.end, windows_of(band).input_end()) : band.end;
    }

    bool run_unit(int64_t unit, bool first, T* part, const Scratch& scratch) const {
        const int64_t bands = static_cast<int64_t>(bands_.size()), n = unit / bands * images_;
        const BackwardBand& band = bands_[static_cast<size_t>(unit % bands)];
        const int64_t images = std::min(images_, problem_.conv.batch - n), base = first_row(band);
        TensorView<T> gradient = buffer_;
        gradient.data = scratch.gradient;
        gradient.shape[0] = images;
        gradient.shape[2] = last_row(band) - base;
        gradient.stride = dense_strides(gradient.shape, problem_.conv.channels_last);
        if (!expand(n, images, band, base, gradient)) return false;

        ConvProblem conv = problem_.conv;
        conv.batch = images;
        if (grad_input_.data) {
            conv.h = bands == 1 ? problem_.conv.h : band.adjoint_axis(problem_.conv.h);
            conv2d_grad_input<T>(conv, rows_of(gradient, band.halo_begin - base, band.end - base), weight_,
                                 rows_of(grad_input_.images(n, images), band.input_begin, band.input_end));
        }
        if (!weights_ && !biases_) return true;
        const TensorView<const T> rows = rows_of(gradient, band.begin - base, band.end - base);
        const AxisPart window(problem_.conv.h, band.begin, band.end);
        T* const sums = first ? part : scratch.sums;
        TensorView<const T> input = input_.images(n, images);
        conv.h = problem_.conv.h;
        if (bands > 1) {
            conv.h = window.axis;
            input = rows_of(input, window.input_begin, window.input_end());
        }
        if (weights_) {
            TensorView<T> sum = grad_weight_;
            sum.data = sums;
            conv2d_grad_weight<T>(conv, rows, input, sum);
        }
        if (biases_) conv2d_grad_bias<T>(rows, sums + weights_);
        if (!first)
            for (int64_t i = 0; i < weights_ + biases_; ++i) part[i] += sums[i];
        return true;
    }

    // The gradient of the convolution's rows from `base` on. False where a code lies outside its window.
    bool expand(int64_t n, int64_t images, const BackwardBand& band, int64_t base,
                const TensorView<T>& gradient) const {
        int64_t begin = band.begin, end = band.begin;
        if (band.pool_begin < band.pool_end) {
            const AxisPart windows = windows_of(band);
            PoolProblem pool = problem_.pool;
            pool.batch = images;
            pool.h = windows.axis;
            begin = windows.input_begin;
            end = windows.input_end();
            if (!max_pool2d_backward<T>(pool, rows_of(grad_output_.images(n, images), band.pool_begin, band.pool_end),
                                        rows_of(codes_.images(n, images), band.pool_begin, band.pool_end),
                                        rows_of(gradient, begin - base, end - base)))
                return false;
        }
        // Rows without a window.
        fill_zero(rows_of(gradient, 0, begin - base));
        fill_zero(rows_of(gradient, end - base, gradient.shape[2]));
        return true;
    }

    static void fill_zero(const TensorView<T>& rows) {
        const auto [images, channels, height, width] = rows.shape;
        if (height == 0) return;
        const bool inside = rows.stride[1] == 1 && channels > 1;  // channels: rows are dense as they are
        for (int64_t n = 0; n < images; ++n)
            for (int64_t c = 0; c < (inside ? 1 : channels); ++c)
                std::fill_n(rows.at(n, c, 0, 0), height * width * (inside ? channels : 1), T(0));
    }

    const FusedProblem& problem_;
    const TensorView<const T> grad_output_, input_, weight_;
    const TensorView<const uint8_t> codes_;
    const TensorView<T> grad_input_, grad_weight_;
    T* const grad_bias_;
    const int64_t weights_, biases_;
    std::vector<BackwardBand> bands_;
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
    if ((grad_weight.data || grad_bias) && sums_chosen_pixels(problem)) {
        if (!codes_are_legal(problem.pool, codes, num_threads())) return false;
        if (chosen_pixels_grad_weight(problem, grad_output, input, codes, grad_weight, grad_bias)) grad_weight = {};
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
