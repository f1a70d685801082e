// The direct convolution with vectors of pixels (direct.h). A task owns a band of lines of one image. It stages the
// lines some channels at a time and runs the weights of a few rows over them.
#include "cpu/conv2d/direct.h"

#include "common/rounding.h"
#include "cpu/conv2d/reference.h"
#include "cpu/runtime/run_tasks.h"

namespace convx {

namespace {

// What all workers share.
template <class T>
struct Shared {
    Shared(ScratchParts parts, const PlaneLayout& layout, int64_t rows, int64_t channels)
        : weights(parts.take<T>(rows * channels * layout.all_taps())), bias(parts.take<T>(rows)), bytes(parts.bytes()) {
    }
    T* weights;  // [class][panel][channel, tap][row]
    T* bias;
    int64_t bytes;
};

// What one worker works with.
template <class T>
struct Scratch {
    Scratch(ScratchParts parts, const PlaneLayout& layout, const DirectBlocks& blocks, int64_t rows, int64_t channels,
            int lanes)
        : plane(layout.plane_size(blocks.band_lines, lanes)), line_sums(blocks.band_lines * layout.pitch),
          planes(parts.take<T>(std::min(blocks.chunk_channels, channels) * layout.planes() * plane)) {
        // Sums that wait for another chunk wait for all classes and rows.
        const bool one_chunk = blocks.chunk_channels >= channels;
        const auto classes = static_cast<int64_t>(layout.h.classes.size() * layout.w.classes.size());
        sums = parts.take<T>((one_chunk ? blocks.tile_rows : classes * rows) * line_sums);
        bytes = parts.bytes();
    }
    int64_t plane;      // elements of a plane
    int64_t line_sums;  // sums of one row of a band
    T* planes;
    T* sums;
    int64_t bytes;
};

template <class T>
class Driver {
public:
    Driver(const WindowSum<T>& sum, const PlaneLayout& layout, const DirectBlocks& blocks, const KernelSet<T>& kernels)
        : sum_(sum), layout_(layout), blocks_(blocks), kernels_(kernels),
          stager_(layout, strides_of(sum.source.stride), sum.pad(), kernels),
          plane_(layout.plane_size(blocks.band_lines, kernels.lanes)),
          bands_(ceil_div(layout.h.positions(), blocks.band_lines)) {}

    // False, and nothing done, if a weight is infinite or NaN.
    TaskPlan tasks() const {
        return {sum_.batch * bands_, sum_.flops(), Shared<T>(ScratchParts(), layout_, sum_.rows, sum_.channels).bytes,
                Scratch<T>(ScratchParts(), layout_, blocks_, sum_.rows, sum_.channels, kernels_.lanes).bytes};
    }

    bool run(const TaskPlan& plan) {
        const TaskRunner runner(plan);
        const Shared<T> shared(ScratchParts(runner.shared()), layout_, sum_.rows, sum_.channels);
        if (!pack(shared)) return false;
        runner.run(plan.tasks, [&](int64_t task, ScratchParts parts) {
            run_band(task / bands_, task % bands_ * blocks_.band_lines,
                     Scratch<T>(parts, layout_, blocks_, sum_.rows, sum_.channels, kernels_.lanes));
        });
        return true;
    }

private:
    // One destination class: the taps that hit it.
    struct Class {
        const PhasedAxis::Class *h, *w;
        int64_t taps;
        std::vector<int32_t> offsets;  // of the taps of a chunk
        const T* weights;
    };

    bool pack(const Shared<T>& shared) {
        T* to = shared.weights;
        for (size_t h = 0; h < layout_.h.classes.size(); ++h)
            for (size_t w = 0; w < layout_.w.classes.size(); ++w) {
                Class one{&layout_.h.classes[h], &layout_.w.classes[w], 0, {}, to};
                one.taps = static_cast<int64_t>(one.h->taps.size() * one.w->taps.size());
                one.offsets = layout_.offsets(h, w, std::min(blocks_.chunk_channels, sum_.channels), plane_);
                for (int64_t row = 0; row < sum_.rows; row += blocks_.tile_rows)
                    to = pack_panel(to, one, row, std::min(blocks_.tile_rows, sum_.rows - row));
                classes_.push_back(std::move(one));
            }
        for (int64_t row = 0; sum_.bias && row < sum_.rows; ++row) shared.bias[row] = sum_.bias[row * sum_.bias_stride];
        bias_ = sum_.bias ? shared.bias : nullptr;
        return all_finite(shared.weights, to - shared.weights);
    }

    T* pack_panel(T* to, const Class& one, int64_t first_row, int64_t rows) const {
        for (int64_t c = 0; c < sum_.channels; ++c)
            for (const PhasedAxis::Tap& r : one.h->taps)
                for (const PhasedAxis::Tap& s : one.w->taps) {
                    const T* from = sum_.weight + first_row * sum_.weight_row + c * sum_.weight_channel +
                                    r.kernel_index * sum_.weight_h + s.kernel_index * sum_.weight_w;
                    for (int64_t row = 0; row < rows; ++row) *to++ = from[row * sum_.weight_row];
                }
        return to;
    }

    void run_band(int64_t n, int64_t first_line, const Scratch<T>& scratch) const {
        const int64_t lines = std::min(blocks_.band_lines, layout_.h.positions() - first_line);
        for (int64_t c = 0; c < sum_.channels; c += blocks_.chunk_channels) {
            const int64_t channels = std::min(blocks_.chunk_channels, sum_.channels - c);
            stager_.stage(scratch.planes, plane_, sum_.source.at(n, c, 0, 0), channels, first_line, lines);
            ReadAhead<T> ahead = ahead_of(n, first_line, c + blocks_.chunk_channels, channels);
            T* sums = scratch.sums;
            for (const Class& one : classes_) {
                const int64_t class_lines = std::min(lines, one.h->positions - first_line);
                for (int64_t row = 0; row < sum_.rows && class_lines > 0; row += blocks_.tile_rows)
                    run_panel(one, n, first_line, class_lines, row, c, channels, scratch.planes,
                              sums + (one_chunk() ? 0 : row * scratch.line_sums), ahead);
                if (!one_chunk()) sums += sum_.rows * scratch.line_sums;
            }
        }
    }

    bool one_chunk() const { return blocks_.chunk_channels >= sum_.channels; }

    // Positions that are computed between two shares of what is read ahead: whole tiles, about 500 cycles, if reading
    // weighs as much as writing rows; else a run.
    int64_t piece(int64_t depth) const {
        if (sum_.rows > sum_.channels) return blocks_.band_lines * layout_.pitch;
        const int64_t vecs = std::min<int64_t>(kernels_.few_channels_limit / blocks_.tile_rows, 8);
        return vecs * kernels_.lanes * std::max<int64_t>(1, 80 / std::max<int64_t>(depth, 1));
    }

    // The channels from c on, or the first ones of the next band.
    ReadAhead<T> ahead_of(int64_t n, int64_t first_line, int64_t c, int64_t channels) const {
        if (c >= sum_.channels) {
            c = 0;
            first_line += blocks_.band_lines;
            if (first_line >= layout_.h.positions()) {
                first_line = 0;
                if (++n == sum_.batch) return {};
            }
        }
        const int64_t lines = std::min(blocks_.band_lines, layout_.h.positions() - first_line);
        int64_t shares = 0;
        for (const Class& one : classes_)
            shares += ceil_div(sum_.rows, blocks_.tile_rows) * (blocks_.whole_band ? 1 : lines) *
                      ceil_div(one.w->positions, piece(channels * one.taps));
        return stager_.read_ahead(sum_.source.at(n, c, 0, 0), std::min(blocks_.chunk_channels, sum_.channels - c),
                                  first_line, lines, shares);
    }

    void run(FewChannelsRun<T> job, ReadAhead<T>& ahead) const {
        if (!ahead) return kernels_.few_channels_run(job);
        const int64_t width = piece(job.depth);
        for (int64_t left = job.count; left > 0; left -= width) {
            job.count = std::min(width, left);
            ahead.next();
            kernels_.few_channels_run(job);
            job.source += width;
            job.dest += width;
        }
    }

    void run_panel(const Class& one, int64_t n, int64_t first_line, int64_t lines, int64_t row, int64_t c,
                   int64_t channels, const T* planes, T* sums, ReadAhead<T>& ahead) const {
        const bool last = c + channels == sum_.channels;
        const int64_t rows = std::min(blocks_.tile_rows, sum_.rows - row);
        FewChannelsRun<T> job{};
        job.source = planes;
        job.offsets = one.offsets.data();
        job.weights = one.weights + (row * sum_.channels + c * rows) * one.taps;
        job.depth = channels * one.taps;
        job.rows = static_cast<int>(rows);
        job.accumulate = c > 0;
        job.bias = last && bias_ ? bias_ + row : nullptr;
        job.relu = last && sum_.relu;
        const Strides to = strides_of(sum_.dest.stride);
        T* dest = sum_.dest.data + n * to.n + row * to.c + (one.h->first + first_line * one.h->step) * to.h +
                  one.w->first * to.w;
        const int64_t line_step = one.h->step * to.h, step = one.w->step * to.w;
        if (!blocks_.whole_band && step == 1) {
            job.count = one.w->positions;
            job.dest_stride = to.c;
            for (int64_t line = 0; line < lines; ++line, job.source += layout_.pitch) {
                job.dest = dest + line * line_step;
                run(job, ahead);
            }
            return;
        }
        const int64_t row_sums = blocks_.band_lines * layout_.pitch;
        job.dest_stride = row_sums;
        job.dest = sums;
        job.count = blocks_.whole_band ? (lines - 1) * layout_.pitch + one.w->positions : one.w->positions;
        for (int64_t line = 0; line < (blocks_.whole_band ? 1 : lines); ++line) {
            run(job, ahead);
            job.source += layout_.pitch;
            job.dest += layout_.pitch;
        }
        if (!last) return;
        for (int64_t line = 0; line < lines; ++line)
            write_line(dest + line * line_step, step, sums + line * layout_.pitch, row_sums, rows, one.w->positions);
    }

    void write_line(T* dest, int64_t step, const T* sums, int64_t row_sums, int64_t rows, int64_t count) const {
        const int64_t to_row = sum_.dest.stride[1];
        if (step != 1 && to_row == 1) {
            const T* row[64];
            for (int64_t i = 0; i < rows; ++i) row[i] = sums + i * row_sums;
            return kernels_.pack_transposed(dest, step, row, static_cast<int>(rows), count);
        }
        for (int64_t i = 0; i < rows; ++i, dest += to_row, sums += row_sums) {
            if (step == 1)
                std::copy_n(sums, count, dest);
            else
                for (int64_t j = 0; j < count; ++j) dest[j * step] = sums[j];
        }
    }

    const WindowSum<T>& sum_;
    const PlaneLayout& layout_;
    const DirectBlocks& blocks_;
    const KernelSet<T>& kernels_;
    const Stager<T> stager_;
    const int64_t plane_, bands_;
    std::vector<Class> classes_;
    const T* bias_ = nullptr;
};

}  // namespace

template <class T>
TaskPlan direct_spatial_tasks(const WindowSum<T>& sum, const PlaneLayout& layout, const DirectBlocks& blocks,
                              const KernelSet<T>& kernels) {
    return Driver<T>(sum, layout, blocks, kernels).tasks();
}

template <class T>
bool run_direct_spatial(const WindowSum<T>& sum, const PlaneLayout& layout, const DirectBlocks& blocks,
                        const TaskPlan& tasks, const KernelSet<T>& kernels) {
    return Driver<T>(sum, layout, blocks, kernels).run(tasks);
}

template TaskPlan direct_spatial_tasks(const WindowSum<float>&, const PlaneLayout&, const DirectBlocks&,
                                       const KernelSet<float>&);
template TaskPlan direct_spatial_tasks(const WindowSum<double>&, const PlaneLayout&, const DirectBlocks&,
                                       const KernelSet<double>&);
template bool run_direct_spatial(const WindowSum<float>&, const PlaneLayout&, const DirectBlocks&, const TaskPlan&,
                                 const KernelSet<float>&);
template bool run_direct_spatial(const WindowSum<double>&, const PlaneLayout&, const DirectBlocks&, const TaskPlan&,
                                 const KernelSet<double>&);

}  // namespace convx
