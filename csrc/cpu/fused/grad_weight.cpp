// A strip is some rows of windows, a block as many of their columns that the inputs they see fit L1. For a strip the
// selected pixels are listed channel by channel, block by block; then the inputs of a block are staged with channels
// adjacent and borders written out, and each output channel sums gradient times window over its list, in registers. A
// task owns strips in order and some output channels; the tasks' sums are added in order. All cuts follow from the
// problem alone.
#include "cpu/fused/grad_weight.h"

#include <atomic>

#include "cpu/conv2d/methods.h"
#include "cpu/conv2d/reference.h"
#include "cpu/fused/row_blocks.h"
#include "cpu/runtime/registry.h"
#include "cpu/runtime/run_tasks.h"

namespace convx {

namespace {

constexpr int64_t l1_bytes = 24 << 10;                 // staged inputs of a block
constexpr int64_t chunk_channels = 32;                 // input channels staged together: 12 vectors under 3 taps,
constexpr int64_t chunk_row = 96;                      // or as many in a row of fewer
constexpr int64_t block_rows = 64;                     // output channels of one task
constexpr int64_t most_sum_bytes = int64_t{32} << 20;  // of all tasks
constexpr int64_t bias_lanes = 8;
constexpr int64_t largest_window = int64_t{1} << 20;  // elements that one window sees

// Rows or columns of the padded input that `windows` adjacent windows of the pooling see through the convolution.
int64_t seen(const Axis& conv, const Axis& pool, int64_t windows) {
    const int64_t pixels = std::min((windows - 1) * pool.stride + pool.extent(), conv.output());
    return (pixels - 1) * conv.stride + conv.extent();
}

// Windows in a row.
template <class T>
struct WindowRow {
    int64_t count;
    const uint8_t* codes;
    int64_t code_step;
    const T* grads;
    int64_t grad_step;
    int32_t place, place_step;  // of the windows' first taps
};

// Appends the windows that have a gradient, without branches: 2 to 3 cycles a window as long as the loop has all
// registers for itself, 8 where it was inlined.
template <class T>
__attribute__((noinline)) int64_t list_row(const WindowRow<T>& row, const int32_t* places_of_codes, int32_t* places,
                                           T* grads, int64_t listed) {
    const uint8_t* code = row.codes;
    const T* grad = row.grads;
    const int64_t code_step = row.code_step, grad_step = row.grad_step;
    const int32_t place_step = row.place_step;
    int32_t place = row.place;
    for (int64_t rest = row.count; rest > 0; --rest) {
        places[listed] = place + places_of_codes[*code];
        grads[listed] = *grad;
        listed += *code != no_gradient_code;
        place += place_step;
        code += code_step;
        grad += grad_step;
    }
    return listed;
}

// What a pixel of the convolution's output has seen, as lines of vectors.
struct Window {
    int64_t chunk, chunks;   // input channels that are staged together
    bool taps_adjacent;      // those of a row of the kernel are one line
    int64_t lines, vectors;  // of a chunk

    Window(const ConvProblem& conv, int64_t lanes) {
        const int64_t taps = conv.w.kernel, channels = std::max<int64_t>(conv.in_channels, 1);
        chunks = ceil_div(channels, std::max(chunk_channels, chunk_row / taps));
        chunk = chunks == 1 ? channels : round_up(ceil_div(channels, chunks), 8);
        chunks = ceil_div(channels, chunk);
        taps_adjacent = conv.w.dilation == 1;
        lines = conv.h.kernel * (taps_adjacent ? 1 : taps);
        vectors = ceil_div(chunk * (taps_adjacent ? taps : 1), lanes);
    }
};

template <class T>
class SelectedPixels {
public:
    SelectedPixels(const FusedProblem& problem, const TensorView<const T>& grad_output,
                   const TensorView<const T>& input, const TensorView<const uint8_t>& codes,
                   const TensorView<T>& grad_weight, T* grad_bias)
        : conv_(problem.conv), pool_(problem.pool), grad_output_(grad_output), input_(input), codes_(codes),
          grad_weight_(grad_weight), grad_bias_(grad_bias) {
        const int64_t taps_w = conv_.w.kernel;
        sums_row_ = window_.vectors * kernels_.lanes;
        plan_blocks();
        for (int64_t r = 0; r < conv_.h.kernel; ++r)
            for (int64_t s = 0; s < (window_.taps_adjacent ? 1 : taps_w); ++s)
                offsets_.push_back((r * conv_.h.dilation * staged_columns_ + s * conv_.w.dilation) * chunk_);
        for (int64_t code = 0; code < pool_.taps(); ++code)
            places_of_codes_[static_cast<size_t>(code)] =
                static_cast<int32_t>((code / pool_.w.kernel * pool_.h.dilation * conv_.h.stride * staged_columns_ +
                                      code % pool_.w.kernel * pool_.w.dilation * conv_.w.stride) *
                                     chunk_);
        row_blocks_ = ceil_div(conv_.out_channels, block_rows);
        strips_ = ceil_div(pool_.out_h(), windows_h_);
        units_ = conv_.batch * strips_;
        block_sums_ = window_.chunks * window_.lines * sums_row_;
        const int64_t all_sums = conv_.out_channels * block_sums_ * int64_t{sizeof(T)};
        parts_ =
            std::clamp<int64_t>(most_sum_bytes / all_sums, 1, std::min(units_, ceil_div(fused_tasks, row_blocks_)));
        if (!grad_weight.data) block_sums_ = 0;
    }

    TaskPlan tasks() const {
        ScratchParts parts;
        Scratch(parts, *this);
        return {parts_ * row_blocks_, fused_flops({conv_, pool_}), sum_bytes() + bias_bytes(), parts.bytes()};
    }

    void describe(PassPlan& plan) const {
        const TaskPlan tasks = this->tasks();
        plan.algorithm = "selected-pixels";
        plan.tile = std::to_string(std::min(window_.vectors, int64_t{12})) + " vectors of a row of taps";
        plan.block = std::to_string(windows_h_) + " x " + std::to_string(windows_w_) + " windows, " +
                     std::to_string(std::min(block_rows, conv_.out_channels)) + " output channels x " +
                     std::to_string(chunk_) + " input channels";
        plan.tasks = tasks.tasks;
        plan.threads = tasks.threads(static_cast<int>(plan.threads));
        plan.scratch_bytes = tasks.scratch_bytes(plan.threads);
        plan.reason = "sums over the pixels that the pooling selected; over all of them where an array has inf or NaN";
    }

    bool run() {
        const TaskPlan plan = tasks();
        const TaskRunner runner(plan);
        sums_ = static_cast<T*>(runner.shared());
        bias_sums_ = reinterpret_cast<double*>(static_cast<char*>(runner.shared()) + sum_bytes());
        runner.run(plan.tasks, [&](int64_t task, ScratchParts parts) {
            run_task(task / row_blocks_, task % row_blocks_, Scratch(parts, *this));
        });
        runner.run(conv_.out_channels, [&](int64_t k, ScratchParts) { add_parts(k); });
        return finite_.load();
    }

private:
    struct Scratch {
        Scratch(ScratchParts& parts, const SelectedPixels& p)
            : staged(parts.take<T>(p.staged_rows_ * p.staged_columns_ * p.chunk_ + p.sums_row_)),
              channels(parts.take<const T*>(p.chunk_)), counts(parts.take<int32_t>(p.blocks_ * block_rows)),
              places(parts.take<int32_t>(p.blocks_ * block_rows * p.block_windows())),
              grads(parts.take<T>(p.blocks_ * block_rows * p.block_windows())) {}
        T* staged;  // [row][column][channel] of a block
        const T** channels;
        int32_t* counts;  // [block][output channel]
        int32_t* places;  // [block][output channel][window]
        T* grads;
    };

    int64_t block_windows() const { return windows_h_ * windows_w_; }
    int64_t sum_bytes() const { return cache_lines(parts_ * conv_.out_channels * block_sums_ * int64_t{sizeof(T)}); }
    int64_t bias_bytes() const {
        return cache_lines(parts_ * conv_.out_channels * bias_lanes * int64_t{sizeof(double)});
    }

    // Windows of a block: as many as fit L1, in the shape that shares most of what they see.
    void plan_blocks() {
        const int64_t most = l1_bytes / (chunk_ * int64_t{sizeof(T)});
        double best = 0;
        for (int64_t height = 1; height <= pool_.out_h(); height *= 2) {
            const int64_t rows = seen(conv_.h, pool_.h, height);
            int64_t width = pool_.out_w();
            while (width > 1 && rows * seen(conv_.w, pool_.w, width) > most) --width;
            width = ceil_div(pool_.out_w(), ceil_div(pool_.out_w(), width));
            const int64_t pixels = rows * seen(conv_.w, pool_.w, width);
            const double shared = static_cast<double>(height * width) / static_cast<double>(pixels);
            if (best > 0 && (pixels > most || shared <= best)) continue;
            best = shared;
            windows_h_ = height;
            windows_w_ = width;
        }
        blocks_ = ceil_div(pool_.out_w(), windows_w_);
        staged_rows_ = seen(conv_.h, pool_.h, windows_h_);
        staged_columns_ = seen(conv_.w, pool_.w, windows_w_);
    }

    void run_task(int64_t part, int64_t row_block, const Scratch& scratch) {
        const int64_t first = row_block * block_rows, rows = std::min(block_rows, conv_.out_channels - first);
        T* const sums = sums_ + (part * conv_.out_channels + first) * block_sums_;
        double* const bias = bias_sums_ + (part * conv_.out_channels + first) * bias_lanes;
        std::fill_n(sums, rows * block_sums_, T(0));
        std::fill_n(bias, rows * bias_lanes, 0.0);
        for (int64_t unit = part * units_ / parts_; unit < (part + 1) * units_ / parts_; ++unit) {
            const int64_t n = unit / strips_, strip = unit % strips_;
            list_strip(n, strip, first, rows, scratch);
            add_bias(rows, scratch, bias);
            if (!block_sums_) continue;
            if (row_block == 0 && !all_finite(rows_of(input_.images(n, 1), strip * conv_.h.input / strips_,
                                                      (strip + 1) * conv_.h.input / strips_)))
                finite_.store(false, std::memory_order_relaxed);
            for (int64_t chunk = 0; chunk < window_.chunks; ++chunk)
                for (int64_t block = 0; block < blocks_; ++block) {
                    stage(n, chunk, strip, block, scratch);
                    multiply(rows, chunk, block, scratch, sums);
                }
        }
    }

    // First row or column of the padded input in a block, and of the convolution's pixels.
    static int64_t first_pixel(const Axis& pool, int64_t window) {
        return std::max<int64_t>(0, pool.position(window, 0));
    }

    void list_strip(int64_t n, int64_t strip, int64_t first, int64_t rows, const Scratch& scratch) const {
        const int64_t p_begin = strip * windows_h_, p_end = std::min(pool_.out_h(), p_begin + windows_h_);
        const int64_t row_pitch = conv_.h.stride * staged_columns_ * chunk_, column_pitch = conv_.w.stride * chunk_;
        for (int64_t k = 0; k < rows; ++k)
            for (int64_t block = 0; block < blocks_; ++block) {
                const int64_t q_begin = block * windows_w_, q_end = std::min(pool_.out_w(), q_begin + windows_w_);
                const int64_t list = block * block_rows + k;
                int64_t listed = 0;
                for (int64_t p = p_begin; p < p_end; ++p) {
                    WindowRow<T> row;
                    row.count = q_end - q_begin;
                    row.codes = codes_.at(n, first + k, p, q_begin);
                    row.code_step = codes_.stride[3];
                    row.grads = grad_output_.at(n, first + k, p, q_begin);
                    row.grad_step = grad_output_.stride[3];
                    row.place = static_cast<int32_t>(
                        (pool_.h.position(p, 0) - first_pixel(pool_.h, p_begin)) * row_pitch +
                        (pool_.w.position(q_begin, 0) - first_pixel(pool_.w, q_begin)) * column_pitch);
                    row.place_step = static_cast<int32_t>(pool_.w.stride * column_pitch);
                    listed = list_row(row, places_of_codes_.data(), scratch.places + list * block_windows(),
                                      scratch.grads + list * block_windows(), listed);
                }
                scratch.counts[list] = static_cast<int32_t>(listed);
            }
    }

    void add_bias(int64_t rows, const Scratch& scratch, double* bias) {
        bool finite = true;
        for (int64_t block = 0; block < blocks_; ++block)
            for (int64_t k = 0; k < rows; ++k) {
                const T* grads = scratch.grads + (block * block_rows + k) * block_windows();
                const int64_t count = scratch.counts[block * block_rows + k];
                finite = finite && all_finite(grads, count);
                double* const sums = bias + k * bias_lanes;
                int64_t j = 0;
                for (; j + bias_lanes <= count; j += bias_lanes)
                    for (int64_t lane = 0; lane < bias_lanes; ++lane)
                        sums[lane] += static_cast<double>(grads[j + lane]);
                for (; j < count; ++j) sums[j % bias_lanes] += static_cast<double>(grads[j]);
            }
        if (!finite) finite_.store(false, std::memory_order_relaxed);
    }

    void stage(int64_t n, int64_t chunk, int64_t strip, int64_t block, const Scratch& scratch) const {
        const int64_t c = chunk * chunk_, channels = std::min(chunk_, conv_.in_channels - c);
        const int64_t h_first = first_pixel(pool_.h, strip * windows_h_) * conv_.h.stride - conv_.h.pad_before;
        const int64_t w_first = first_pixel(pool_.w, block * windows_w_) * conv_.w.stride - conv_.w.pad_before;
        const int64_t begin = std::clamp<int64_t>(w_first, 0, conv_.w.input);
        const int64_t end = std::clamp<int64_t>(w_first + staged_columns_, begin, conv_.w.input);
        const int64_t row_elements = staged_columns_ * chunk_;
        T* to = scratch.staged;
        std::fill_n(to + staged_rows_ * row_elements, sums_row_, T(0));  // read by the last vector, summed by nobody
        for (int64_t row = h_first; row < h_first + staged_rows_; ++row, to += row_elements) {
            if (row < 0 || row >= conv_.h.input || begin == end) {
                std::fill_n(to, row_elements, T(0));
                continue;
            }
            std::fill_n(to, (begin - w_first) * chunk_, T(0));
            copy_pixels(n, c, channels, row, begin, end - begin, to + (begin - w_first) * chunk_, scratch);
            std::fill_n(to + (end - w_first) * chunk_, (w_first + staged_columns_ - end) * chunk_, T(0));
        }
    }

    void copy_pixels(int64_t n, int64_t c, int64_t channels, int64_t row, int64_t begin, int64_t count, T* to,
                     const Scratch& scratch) const {
        const T* from = input_.at(n, c, row, begin);
        const auto [image, channel, line, step] = input_.stride;
        (void)image;
        (void)line;
        if (channels < chunk_) std::fill_n(to, count * chunk_, T(0));
        if (channel == 1 && step == channels && channels == chunk_) {
            std::copy_n(from, count * channels, to);
        } else if (channel == 1) {
            for (int64_t i = 0; i < count; ++i) std::copy_n(from + i * step, channels, to + i * chunk_);
        } else if (step == 1 && channels >= kernels_.lanes / 2) {
            for (int64_t i = 0; i < channels; ++i) scratch.channels[i] = from + i * channel;
            kernels_.pack_transposed(to, chunk_, scratch.channels, static_cast<int>(channels), count);
        } else {
            for (int64_t k = 0; k < channels; ++k)
                for (int64_t i = 0; i < count; ++i) to[i * chunk_ + k] = from[k * channel + i * step];
        }
    }

    void multiply(int64_t rows, int64_t chunk, int64_t block, const Scratch& scratch, T* sums) const {
        SelectedProductsArgs<T> args{};
        args.source = scratch.staged;
        args.offsets = offsets_.data();
        args.rows = static_cast<int>(window_.lines);
        args.vectors = static_cast<int>(window_.vectors);
        args.sums_row = sums_row_;
        for (int64_t k = 0; k < rows; ++k) {
            const int64_t list = block * block_rows + k;
            args.places = scratch.places + list * block_windows();
            args.grads = scratch.grads + list * block_windows();
            args.count = scratch.counts[list];
            args.sums = sums + k * block_sums_ + chunk * window_.lines * sums_row_;
            kernels_.selected_products(args);
        }
    }

    // The sums of output channel k over all parts, into the order of the weights.
    void add_parts(int64_t k) const {
        const int64_t rows = conv_.out_channels, taps_w = conv_.w.kernel;
        if (grad_bias_) {
            double sum = 0;
            for (int64_t part = 0; part < parts_; ++part)
                for (int64_t lane = 0; lane < bias_lanes; ++lane)
                    sum += bias_sums_[(part * rows + k) * bias_lanes + lane];
            grad_bias_[k] = static_cast<T>(sum);
        }
        if (!block_sums_) return;
        T* const total = sums_ + k * block_sums_;
        for (int64_t part = 1; part < parts_; ++part) {
            const T* const sums = sums_ + (part * rows + k) * block_sums_;
            for (int64_t i = 0; i < block_sums_; ++i) total[i] += sums[i];
        }
        for (int64_t c = 0; c < conv_.in_channels; ++c) {
            const T* const sums = total + c / chunk_ * window_.lines * sums_row_ + c % chunk_;
            for (int64_t r = 0; r < conv_.h.kernel; ++r)
                for (int64_t s = 0; s < taps_w; ++s)
                    *grad_weight_.at(k, c, r, s) =
                        window_.taps_adjacent ? sums[r * sums_row_ + s * chunk_] : sums[(r * taps_w + s) * sums_row_];
        }
    }

    const ConvProblem& conv_;
    const PoolProblem& pool_;
    const TensorView<const T> grad_output_, input_;
    const TensorView<const uint8_t> codes_;
    const TensorView<T> grad_weight_;
    T* const grad_bias_;
    const KernelSet<T>& kernels_ = kernel_set<T>(active_kernels());
    const Window window_{conv_, kernels_.lanes};
    const int64_t chunk_ = window_.chunk;
    int64_t sums_row_ = 1, block_sums_ = 0;  // elements of a line, and of all of an output channel
    int64_t windows_h_ = 1, windows_w_ = 1, blocks_ = 1;
    int64_t staged_rows_ = 1, staged_columns_ = 1;
    int64_t row_blocks_ = 1, strips_ = 1, units_ = 1, parts_ = 1;
    std::vector<int64_t> offsets_;  // of the lines
    std::array<int32_t, 256> places_of_codes_{};
    T* sums_ = nullptr;            // [part][output channel][chunk][line][vector]
    double* bias_sums_ = nullptr;  // [part][output channel][lane]
    std::atomic<bool> finite_{true};
};

}  // namespace

// Cycles per window and output channel, measured on Zen 3 with 16 to 128 channels, windows 1x1 to 7x7: 8 to list a
// window and one for each vector of inputs, against 9 multiplications a cycle over all pixels (Winograd: 8 to 30 as its
// channels grow), and 3 to expand the gradient of a pixel, half of which grad_input needs anyway.
bool sums_selected_pixels(const FusedProblem& problem) {
    const ConvProblem& conv = problem.conv;
    const auto is_zero_padded = [](const Axis& axis) {
        return axis.mode == PaddingMode::zeros || (axis.pad_before == 0 && axis.pad_after == 0);
    };
    if (conv.groups != 1 || conv.in_channels == 0 || !is_zero_padded(conv.h) || !is_zero_padded(conv.w)) return false;
    const Window window(conv, 8);
    if (seen(conv.h, problem.pool.h, 1) * seen(conv.w, problem.pool.w, 1) * window.chunk > largest_window) return false;
    const int64_t products = conv.in_channels * conv.taps();
    const int64_t windows = problem.pool.out_h() * problem.pool.out_w();
    const double vectors = static_cast<double>(window.chunks * window.lines * window.vectors);
    const double pixels = static_cast<double>(conv.out_pixels()) / static_cast<double>(windows);
    double rate = 9;
    if (traits_of(conv, ConvPass::grad_weight).multiplications < 1)
        rate = std::min(30.0, 8 + 0.22 * static_cast<double>(std::min(conv.in_channels, conv.out_channels)));
    return 8 + 1.1 * vectors < pixels * (static_cast<double>(products) / rate + 1.5);
}

template <class T>
bool selected_pixels_grad_weight(const FusedProblem& problem, TensorView<const T> grad_output,
                                 TensorView<const T> input, TensorView<const uint8_t> codes, TensorView<T> grad_weight,
                                 T* grad_bias) {
    return SelectedPixels<T>(problem, grad_output, input, codes, grad_weight, grad_bias).run();
}

void describe_selected_pixels(const FusedProblem& problem, PassPlan& plan) {
    const auto describe = [&](auto number) {
        using T = decltype(number);
        TensorView<T> weight;
        weight.data = &number;  // wanted; nothing is read or written
        SelectedPixels<T>(problem, {}, {}, {}, weight, nullptr).describe(plan);
    };
    problem.conv.dtype == DType::float32 ? describe(0.0f) : describe(0.0);
}

template bool selected_pixels_grad_weight(const FusedProblem&, TensorView<const float>, TensorView<const float>,
                                          TensorView<const uint8_t>, TensorView<float>, float*);
template bool selected_pixels_grad_weight(const FusedProblem&, TensorView<const double>, TensorView<const double>,
                                          TensorView<const uint8_t>, TensorView<double>, double*);

}  // namespace convx
