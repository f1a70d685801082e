// The fused training block, forward. A task owns some images, or a stretch of pooled rows of one image: it computes the
// convolution a block of rows at a time into a buffer of its own, pools the windows that are complete, and keeps the
// rows that later windows still need. The convolution's output never exists beyond that buffer.
#include "cpu/fused/conv2d_relu_max_pool2d.h"

#include "cpu/conv2d/conv2d.h"
#include "cpu/conv2d/methods.h"
#include "cpu/conv2d/reference.h"
#include "cpu/fused/row_blocks.h"
#include "cpu/max_pool2d/max_pool2d.h"
#include "cpu/memory_bound.h"
#include "cpu/runtime/run_tasks.h"

namespace convx {

namespace {

// No gradient flows back where the ReLU has cut the selected value to zero.
template <class T>
void mark_dead(const TensorView<T>& output, const TensorView<uint8_t>& codes) {
    const auto [images, channels, rows, columns] = output.shape;
    const bool inside = output.stride[1] == 1;  // channels are adjacent: a row is one run of elements, else a plane
    const int64_t runs = inside ? rows : channels, length = columns * (inside ? channels : rows);
    const TaskPlan plan{images * runs, memory_flops(output.size() * int64_t{sizeof(T)})};
    TaskRunner(plan).run(plan.tasks, [&](int64_t task, ScratchParts) {
        const int64_t n = task / runs, c = inside ? 0 : task % runs, p = inside ? task % runs : 0;
        const T* values = output.at(n, c, p, 0);
        uint8_t* to = codes.at(n, c, p, 0);
        const int64_t count = length;  // a captured variable might alias the bytes, and the loop stay scalar
        for (int64_t i = 0; i < count; ++i) to[i] = values[i] <= T(0) ? no_gradient_code : to[i];
    });
}

template <class T>
class Forward {
public:
    Forward(const FusedProblem& problem, TensorView<const T> input, TensorView<const T> weight,
            TensorView<const T> bias, TensorView<T> output, TensorView<uint8_t> codes)
        : problem_(problem), input_(input), weight_(weight), bias_(bias), output_(output), codes_(codes),
          packed_(pack_weight(problem.conv, weight)) {
        const Axis& pool = problem.pool.h;
        // An infinite or NaN weight over the border makes the whole convolution run in another order of sums, so that
        // blocks inside the image would not have its bits.
        if (block_.rows < conv_rows_ && problem.conv.is_padded() && !all_finite(weight))
            block_ = {images_of_task(problem), conv_rows_};
        // Rows kept for later windows are fewer than a window and its stride.
        buffer_.shape = {
            block_.images, problem.conv.out_channels,
            block_.rows < conv_rows_ ? block_.rows + pool.extent() + pool.stride + row_alignment : conv_rows_,
            problem.conv.out_w()};
        buffer_.stride = dense_strides(buffer_.shape, problem.conv.channels_last);
    }

    // Groups of images side by side, or, where one call of the convolution shares itself out, in turn.
    void run() {
        const int64_t batch = problem_.conv.batch, pooled_rows = problem_.pool.out_h();
        const int64_t groups = ceil_div(batch, block_.images);
        // Stretches compute the rows around their cuts twice, so that there are no more than tasks need.
        const int64_t blocks = ceil_div(conv_rows_, block_.rows);
        const int64_t stretches = std::min(blocks, ceil_div(fused_tasks / 2, std::min(groups, fused_tasks / 2)));
        const int64_t tasks = groups * stretches;
        const bool in_turn = traits_of(problem_.conv, ConvPass::forward).own_parallelism;
        const TaskRunner runner(
            {tasks, in_turn ? 0 : fused_flops(problem_), 0, cache_lines(buffer_.size() * int64_t{sizeof(T)})});
        runner.run(tasks, [&](int64_t task, ScratchParts parts) {
            TensorView<T> buffer = buffer_;
            buffer.data = parts.take<T>(buffer.size());
            const int64_t n = task / stretches * block_.images, stretch = task % stretches;
            run_stretch(n, std::min(block_.images, batch - n), stretch * pooled_rows / stretches,
                        (stretch + 1) * pooled_rows / stretches, buffer);
        });
    }

private:
    void run_stretch(int64_t n, int64_t images, int64_t p, int64_t p_end, TensorView<T> buffer) const {
        if (p >= p_end) return;
        const Axis& pool = problem_.pool.h;
        buffer.shape[0] = images;
        int64_t kept = std::max<int64_t>(0, pool.position(p, 0)) / row_alignment * row_alignment;
        for (int64_t done = kept; p < p_end;) {
            const int64_t next = std::min(conv_rows_, done + block_.rows);
            convolve(n, images, done, next, rows_of(buffer, done - kept, next - kept));
            done = next;
            int64_t p_next = p;
            while (p_next < p_end && std::min(conv_rows_, pool.position(p_next, pool.kernel - 1) + 1) <= done) ++p_next;
            if (p_next > p) take_best(n, images, p, p_next, kept, buffer);
            p = p_next;
            const int64_t needed = std::clamp<int64_t>(pool.position(p, 0), kept, done);
            if (p < p_end) move_rows(buffer, needed - kept, done - kept);
            kept = needed;
        }
    }

    void convolve(int64_t n, int64_t images, int64_t begin, int64_t end, TensorView<T> to) const {
        ConvProblem problem = problem_.conv;
        problem.batch = images;
        if (end - begin == conv_rows_)
            return conv2d_forward<T>(problem, input_.images(n, images), weight_, bias_, to, &packed_);
        const AxisPart part(problem.h, begin, end);
        problem.h = part.axis;
        conv2d_forward<T>(problem, rows_of(input_.images(n, images), part.input_begin, part.input_end()), weight_,
                          bias_, to, &packed_);
    }

    // Pooled rows [p, end) from the buffer, whose first row is row `kept` of the convolution.
    void take_best(int64_t n, int64_t images, int64_t p, int64_t end, int64_t kept, const TensorView<T>& buffer) const {
        const AxisPart part(problem_.pool.h, p, end);
        PoolProblem problem = problem_.pool;
        problem.batch = images;
        problem.h = part.axis;
        const TensorView<T> output = rows_of(output_.images(n, images), p, end);
        const TensorView<uint8_t> codes = rows_of(codes_.images(n, images), p, end);
        max_pool2d<T>(problem, rows_of(buffer, part.input_begin - kept, part.input_end() - kept), output, {}, codes);
        mark_dead(output, codes);
    }

    // Rows [begin, end) of the buffer become its first ones.
    static void move_rows(const TensorView<T>& buffer, int64_t begin, int64_t end) {
        if (begin == 0 || begin >= end) return;
        for_each_plane(buffer, [&](int64_t n, int64_t c, int64_t row_elements) {
            std::copy_n(buffer.at(n, c, begin, 0), (end - begin) * row_elements, buffer.at(n, c, 0, 0));
        });
    }

    const FusedProblem& problem_;
    const TensorView<const T> input_, weight_, bias_;
    const TensorView<T> output_;
    const TensorView<uint8_t> codes_;
    const PackedWeight<T> packed_;
    const int64_t conv_rows_ = problem_.conv.out_h();
    RowBlock block_ = fused_row_block(problem_);
    TensorView<T> buffer_;
};

}  // namespace

template <class T>
void conv2d_relu_max_pool2d(const FusedProblem& problem, TensorView<const T> input, TensorView<const T> weight,
                            TensorView<const T> bias, TensorView<T> output, TensorView<uint8_t> codes) {
    if (output.size() == 0) return;
    Forward<T>(problem, input, weight, bias, output, codes).run();
}

template void conv2d_relu_max_pool2d(const FusedProblem&, TensorView<const float>, TensorView<const float>,
                                     TensorView<const float>, TensorView<float>, TensorView<uint8_t>);
template void conv2d_relu_max_pool2d(const FusedProblem&, TensorView<const double>, TensorView<const double>,
                                     TensorView<const double>, TensorView<double>, TensorView<uint8_t>);

}  // namespace convx
