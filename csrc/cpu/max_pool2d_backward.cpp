// Max-pooling, backward.
//
// By codes: a gather over one kernel (kernels/max_pool2d_backward.inl.h), in the two loop nests of max_pool2d.cpp. Input
// columns of one residue modulo the stride have the same taps, and one tap of neighbours of a residue has neighbouring
// windows: the residues are summed one by one, or for stride 2 both at once. Rows alike. In planes, gradients and codes
// are staged, padded with what no tap matches, unless every window that the taps name exists.
//
// By indices, which may point anywhere in the plane: a scatter in row-major order of the windows. A task owns some rows
// of a plane (or of an image, where channels are adjacent) and adds what falls into them.
#include <atomic>
#include <cstdlib>
#include <cstring>

#include "cpu/max_pool2d.h"
#include "cpu/memory_bound.h"
#include "cpu/pool_axis.h"
#include "cpu/registry.h"
#include "cpu/scratch_parts.h"
#include "cpu/thread_pool.h"
#include "cpu/workspace.h"

namespace convx {

namespace {

constexpr int64_t task_elements = int64_t{1} << 15;  // grad_input elements of one task
constexpr int64_t block_bytes = 24 << 10;            // staged gradients and codes of one block: L1
constexpr int64_t block_columns_limit = 512;
constexpr int64_t widest_vector = 16;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t round_up(int64_t n) { return ceil_div(n, widest_vector) * widest_vector; }

int width_for(const PoolProblem& problem, int64_t item_bytes) {
    const int64_t inputs = problem.batch * problem.channels * problem.h.input * problem.w.input;
    const int64_t outputs = problem.batch * problem.channels * problem.out_h() * problem.out_w();
    return (inputs + outputs * problem.taps()) * item_bytes < parallel_bytes ? 1 : num_threads();
}

// True if no cell of any row (n, p) of `view` is refused: legal(p, q, cells, count, step) looks at `count` cells, along
// q, or along the channels of pixel q where those are adjacent.
template <class U, class Legal>
bool all_legal(const PoolProblem& problem, const TensorView<const U>& view, int width, const Legal& legal) {
    const auto [batch, channels, rows, columns] = view.shape;
    const bool channels_inside = std::abs(view.stride[1]) < std::abs(view.stride[3]);
    const std::vector<WindowRun> column_runs = window_runs(problem.w);
    std::atomic<bool> all{true};
    parallel_for(batch * rows, width, [&, channels = channels, rows = rows](int64_t task, int) {
        const int64_t n = task / rows, p = task % rows;
        bool fine = true;
        for (const WindowRun& run : column_runs) {
            if (channels_inside)
                for (int64_t q = run.begin; q < run.end; ++q)
                    fine = fine && legal(p, run, view.at(n, 0, p, q), channels, view.stride[1]);
            else
                for (int64_t c = 0; c < channels; ++c)
                    fine = fine && legal(p, run, view.at(n, c, p, run.begin), run.end - run.begin, view.stride[3]);
        }
        if (!fine) all.store(false, std::memory_order_relaxed);
    });
    return all.load();
}

bool codes_are_legal(const PoolProblem& problem, const TensorView<const uint8_t>& codes, int width) {
    const std::vector<WindowRun> row_runs = window_runs(problem.h);
    const int64_t columns = problem.w.kernel, taps = problem.taps();
    return all_legal(problem, codes, width,
                     [&](int64_t p, const WindowRun& taps_w, const uint8_t* cells, int64_t count, int64_t step) {
                         const WindowRun& taps_h = run_of(row_runs, p);
                         uint8_t most = 0;  // 255 counts as 0, code c as c + 1
                         for (int64_t i = 0; i < count; ++i) most = std::max(most, static_cast<uint8_t>(cells[i * step] + 1));
                         if (most > taps) return false;
                         if (taps_h.count() * taps_w.count() == taps) return true;
                         for (int64_t i = 0; i < count; ++i) {
                             const int64_t code = cells[i * step];
                             if (code == no_gradient_code) continue;
                             if (!taps_h.has_tap(code / columns) || !taps_w.has_tap(code % columns)) return false;
                         }
                         return true;
                     });
}

// One residue of an input axis modulo the stride, and the windows over its cells first + j * stride.
struct Residue {
    struct Tap {
        int64_t tap;
        int64_t offset;  // window of cell j under this tap, less j
    };
    int64_t first, count;
    std::vector<Tap> taps;         // in ascending order of the windows
    std::vector<WindowRun> runs;   // cells j whose windows all exist for taps[tap_begin], ...
};

std::vector<Residue> residues_of(const Axis& axis) {
    std::vector<Residue> residues;
    const int64_t windows = axis.output();
    for (int64_t first = 0; first < std::min(axis.stride, axis.input); ++first) {
        Residue residue{first, ceil_div(axis.input - first, axis.stride), {}, {}};
        for (int64_t tap = axis.kernel - 1; tap >= 0; --tap) {
            const int64_t distance = first + axis.pad_before - tap * axis.dilation;
            if (distance % axis.stride == 0) residue.taps.push_back({tap, distance / axis.stride});
        }
        for (int64_t j = 0; j < residue.count; ++j) {
            int64_t begin = 0, end = static_cast<int64_t>(residue.taps.size());
            while (begin < end && j + residue.taps[static_cast<size_t>(begin)].offset < 0) ++begin;
            while (begin < end && j + residue.taps[static_cast<size_t>(end - 1)].offset >= windows) --end;
            append_to(residue.runs, j, begin, end);
        }
        residues.push_back(residue);
    }
    return residues;
}

template <class T>
class Gather {
public:
    Gather(const PoolProblem& problem, const TensorView<const T>& grad_output, const TensorView<const uint8_t>& codes,
           const TensorView<T>& grad_input, int width)
        : problem_(problem), grad_output_(grad_output), codes_(codes), grad_input_(grad_input), width_(width) {}

    void run() {
        const bool adjacent_channels = grad_output_.stride[1] == 1 && codes_.stride[1] == 1 && grad_input_.stride[1] == 1;
        if (adjacent_channels && problem_.channels >= kernels_.lanes)
            run_channels();
        else
            run_planes();
    }

private:
    // What one worker works with; a part that the problem does not need is empty.
    struct Scratch {
        Scratch(ScratchParts parts, const Gather& g)
            : staged(parts.take<T>(g.staged_rows_ * g.staged_row_)),
              staged_codes(parts.take<uint8_t>(g.staged_rows_ * g.staged_row_)),
              sums(parts.take<T>(g.sums_)) {
            for (Streams* list : {&even, &odd}) {
                list->grads = parts.take<const T*>(g.problem_.taps());
                list->codes = parts.take<const uint8_t*>(g.problem_.taps());
                list->wanted = parts.take<uint8_t>(g.problem_.taps());
            }
            bytes = parts.bytes();
        }
        struct Streams {
            const T** grads;
            const uint8_t** codes;
            uint8_t* wanted;
        };
        T* staged;
        uint8_t* staged_codes;
        T* sums;
        Streams even, odd;
        int64_t bytes;
    };
    using Streams = typename Scratch::Streams;

    template <class Body>
    void run_tasks(int64_t tasks, const Body& body) {
        const int64_t worker_bytes = Scratch(ScratchParts(), *this).bytes;
        const Workspace workspace(static_cast<size_t>(worker_bytes * width_));
        parallel_for(tasks, width_, [&](int64_t task, int worker) {
            body(task, Scratch(ScratchParts(static_cast<char*>(workspace.data()) + worker * worker_bytes), *this));
        });
    }

    // Window rows and columns that hold the cells of one run each, as the streams of a job. `grads` and `codes` are
    // those of the window that cell (0, 0) would have under offset 0.
    struct Source {
        const T* grads;
        const uint8_t* codes;
        std::array<int64_t, 2> grad_stride, code_stride;  // per window row and column
    };
    PoolSum<T> job_for(const Streams& streams, const Source& from, const Residue& h, const WindowRun& rows,
                       const Residue& w, const WindowRun& columns) const {
        PoolSum<T> job{};
        job.grads = streams.grads;
        job.codes = streams.codes;
        job.wanted = streams.wanted;
        for (int64_t i = rows.tap_begin; i < rows.tap_end; ++i)
            for (int64_t k = columns.tap_begin; k < columns.tap_end; ++k, ++job.taps) {
                const Residue::Tap& r = h.taps[static_cast<size_t>(i)];
                const Residue::Tap& s = w.taps[static_cast<size_t>(k)];
                streams.grads[job.taps] = from.grads + r.offset * from.grad_stride[0] + s.offset * from.grad_stride[1];
                streams.codes[job.taps] = from.codes + r.offset * from.code_stride[0] + s.offset * from.code_stride[1];
                streams.wanted[job.taps] = static_cast<uint8_t>(r.tap * problem_.w.kernel + s.tap);
            }
        return job;
    }

    void run_channels();
    void channels_row(int64_t n, int64_t row, const Scratch& scratch) const;

    void plan_planes();
    void run_planes();
    void plane_block(int64_t n, int64_t c, int64_t i_begin, int64_t j_begin, const Scratch& scratch) const;

    const PoolProblem& problem_;
    const TensorView<const T> grad_output_;
    const TensorView<const uint8_t> codes_;
    const TensorView<T> grad_input_;
    const int width_;
    const KernelSet<T>& kernels_ = kernel_set<T>(active_kernels());
    const std::vector<Residue> row_residues_ = residues_of(problem_.h), column_residues_ = residues_of(problem_.w);

    // Planes only. A block is block_rows_ x block_columns_ cells of each residue.
    int64_t block_rows_ = 1, block_columns_ = 1;
    int64_t staged_rows_ = 0, staged_row_ = 0;  // 0 if nothing is staged
    int64_t sums_ = 0;                          // results on their way
    int64_t least_row_ = 0, most_row_ = 0, least_column_ = 0;  // window offsets
};

template <class T>
void Gather<T>::run_channels() {
    const int64_t rows_per_image = problem_.h.input;
    const int64_t rows = problem_.batch * rows_per_image;
    const int64_t task_rows = std::max<int64_t>(1, task_elements / (problem_.w.input * problem_.channels));
    run_tasks(ceil_div(rows, task_rows), [&](int64_t task, const Scratch& scratch) {
        for (int64_t row = task * task_rows; row < std::min(rows, (task + 1) * task_rows); ++row)
            channels_row(row / rows_per_image, row % rows_per_image, scratch);
    });
}

template <class T>
void Gather<T>::channels_row(int64_t n, int64_t row, const Scratch& scratch) const {
    const int64_t channels = problem_.channels, stride = problem_.w.stride;
    const Residue& h = row_residues_[static_cast<size_t>(row % problem_.h.stride)];
    const int64_t i = row / problem_.h.stride;
    const WindowRun& rows = run_of(h.runs, i);
    const int64_t out_step = stride * grad_input_.stride[3];
    const bool dense = grad_output_.stride[3] == channels && codes_.stride[3] == channels && out_step == channels;
    for (const Residue& w : column_residues_)
        for (const WindowRun& columns : w.runs) {
            const Source from{grad_output_.at(n, 0, i, columns.begin), codes_.at(n, 0, i, columns.begin),
                              {grad_output_.stride[2], grad_output_.stride[3]}, {codes_.stride[2], codes_.stride[3]}};
            PoolSum<T> job = job_for(scratch.even, from, h, rows, w, columns);
            job.grad_step = grad_output_.stride[3];
            job.code_step = codes_.stride[3];
            job.rows = columns.end - columns.begin;
            job.columns = channels;
            job.output = grad_input_.at(n, 0, row, w.first + columns.begin * stride);
            job.output_step = out_step;
            if (dense) {
                job.columns *= job.rows;
                job.rows = 1;
            }
            kernels_.pool_sum(job);
        }
}

template <class T>
void Gather<T>::plan_planes() {
    const int64_t lanes = kernels_.lanes;
    const int64_t columns = column_residues_[0].count;
    bool inside = grad_output_.stride[3] == 1 && codes_.stride[3] == 1;
    int64_t most_column = 0;
    bool first = true;
    for (const Residue& w : column_residues_) {
        inside = inside && w.runs.size() == 1 && w.runs[0].count() == static_cast<int64_t>(w.taps.size());
        inside = inside && w.count == columns && columns >= lanes;
        for (const Residue::Tap& s : w.taps) {
            least_column_ = first ? s.offset : std::min(least_column_, s.offset);
            most_column = first ? s.offset : std::max(most_column, s.offset);
            first = false;
        }
    }
    first = true;
    for (const Residue& h : row_residues_)
        for (const Residue::Tap& r : h.taps) {
            least_row_ = first ? r.offset : std::min(least_row_, r.offset);
            most_row_ = first ? r.offset : std::max(most_row_, r.offset);
            first = false;
        }
    block_columns_ = std::min(columns, round_up(ceil_div(columns, ceil_div(columns, block_columns_limit))));
    const int64_t rows = row_residues_[0].count;
    if (inside) {
        least_column_ = 0;
        block_rows_ = std::max<int64_t>(1, task_elements / (problem_.w.input * problem_.h.stride));
    } else {
        staged_row_ = round_up(most_column - least_column_ + std::max(block_columns_, lanes) + lanes);
        const int64_t row_bytes = staged_row_ * static_cast<int64_t>(sizeof(T) + 1);
        block_rows_ = std::max<int64_t>(1, block_bytes / row_bytes - (most_row_ - least_row_));
    }
    block_rows_ = std::min(block_rows_, rows);
    if (!inside) staged_rows_ = block_rows_ + most_row_ - least_row_;
    if (grad_input_.stride[3] != 1 || problem_.w.stride > 2 || static_cast<int64_t>(column_residues_.size()) < problem_.w.stride) {
        block_rows_ = std::min(block_rows_, std::max<int64_t>(1, (int64_t{1} << 14) / block_columns_));
        sums_ = block_rows_ * block_columns_;
    }
}

template <class T>
void Gather<T>::run_planes() {
    plan_planes();
    const int64_t channels = problem_.channels;
    const int64_t blocks = ceil_div(row_residues_[0].count, block_rows_);
    const int64_t units = problem_.batch * channels * blocks;
    const int64_t task_units = std::max<int64_t>(1, task_elements / (problem_.w.input * block_rows_ * problem_.h.stride));
    // Where channels lie closer than pixels, they take turns within a block of rows: those lines are in cache then.
    const bool channels_inside = std::abs(grad_input_.stride[1]) < std::abs(grad_input_.stride[3]);
    run_tasks(ceil_div(units, task_units), [&](int64_t task, const Scratch& scratch) {
        for (int64_t unit = task * task_units; unit < std::min(units, (task + 1) * task_units); ++unit) {
            const int64_t n = unit / (channels * blocks), rest = unit % (channels * blocks);
            const int64_t c = channels_inside ? rest % channels : rest / blocks;
            const int64_t i = (channels_inside ? rest / channels : rest % blocks) * block_rows_;
            for (int64_t j = 0; j < column_residues_[0].count; j += block_columns_) plane_block(n, c, i, j, scratch);
        }
    });
}

template <class T>
void Gather<T>::plane_block(int64_t n, int64_t c, int64_t i_begin, int64_t j_begin, const Scratch& scratch) const {
    const int64_t windows_h = problem_.out_h(), windows_w = problem_.out_w();
    Source from{grad_output_.at(n, c, i_begin, j_begin), codes_.at(n, c, i_begin, j_begin),
                {grad_output_.stride[2], grad_output_.stride[3]}, {codes_.stride[2], codes_.stride[3]}};
    if (staged_row_) {
        const int64_t p_begin = std::max<int64_t>(0, i_begin + least_row_);
        const int64_t p_end = std::min(windows_h, i_begin + block_rows_ + most_row_);
        const int64_t q_first = j_begin + least_column_;  // of lane 0
        const int64_t q_begin = std::max<int64_t>(0, q_first), q_end = std::min(windows_w, q_first + staged_row_);
        const LaneRun run{static_cast<int32_t>(q_begin - q_first), static_cast<int32_t>(std::max<int64_t>(0, q_end - q_begin)),
                          q_begin * grad_output_.stride[3]};
        const int64_t rows = std::max<int64_t>(0, p_end - p_begin);
        kernels_.pack_lanes(scratch.staged, staged_row_, grad_output_.at(n, c, p_begin, 0), grad_output_.stride[2], rows,
                            &run, run.count > 0, static_cast<int>(staged_row_), grad_output_.stride[3], T(0));
        for (int64_t row = 0; row < rows; ++row) {
            uint8_t* to = scratch.staged_codes + row * staged_row_;
            std::memset(to, no_gradient_code, static_cast<size_t>(staged_row_));
            const uint8_t* codes = codes_.at(n, c, p_begin + row, q_begin);
            if (codes_.stride[3] == 1)
                std::memcpy(to + run.lane, codes, static_cast<size_t>(run.count));
            else
                for (int64_t q = 0; q < run.count; ++q) to[run.lane + q] = codes[q * codes_.stride[3]];
        }
        const int64_t corner = (i_begin - p_begin) * staged_row_ - least_column_;
        from = {scratch.staged + corner, scratch.staged_codes + corner, {staged_row_, 1}, {staged_row_, 1}};
    }

    const int64_t stride_h = problem_.h.stride, stride_w = problem_.w.stride;
    for (const Residue& h : row_residues_)
        for (const WindowRun& run : h.runs) {
            const int64_t i = std::max(i_begin, run.begin), end = std::min(i_begin + block_rows_, run.end);
            if (i >= end) continue;
            Source at = from;
            at.grads += (i - i_begin) * from.grad_stride[0];
            at.codes += (i - i_begin) * from.code_stride[0];
            const auto job_of = [&](const Residue& w, const Streams& streams) {
                // Staged or not, all windows that the taps name can be read.
                const WindowRun all{0, w.count, 0, static_cast<int64_t>(w.taps.size())};
                PoolSum<T> job = job_for(streams, at, h, run, w, all);
                job.grad_step = from.grad_stride[0];
                job.code_step = from.code_stride[0];
                job.rows = end - i;
                job.columns = std::max<int64_t>(0, std::min(block_columns_, w.count - j_begin));
                job.output = grad_input_.at(n, c, h.first + i * stride_h, w.first + j_begin * stride_w);
                job.output_step = stride_h * grad_input_.stride[2];
                return job;
            };
            if (sums_) {
                for (const Residue& w : column_residues_) {
                    PoolSum<T> job = job_of(w, scratch.even);
                    T* to = job.output;
                    const int64_t row_step = job.output_step, step = stride_w * grad_input_.stride[3];
                    job.output = scratch.sums;
                    job.output_step = job.columns;
                    if (job.columns > 0) kernels_.pool_sum(job);
                    for (int64_t row = 0; row < job.rows; ++row)
                        for (int64_t j = 0; j < job.columns; ++j) to[row * row_step + j * step] = scratch.sums[row * job.columns + j];
                }
            } else if (stride_w == 2) {
                kernels_.pool_sum_pairs(job_of(column_residues_[0], scratch.even), job_of(column_residues_[1], scratch.odd));
            } else {
                kernels_.pool_sum(job_of(column_residues_[0], scratch.even));
            }
        }
}

// Adds grad_output where the indices point.
template <class T>
class Scatter {
public:
    Scatter(const PoolProblem& problem, const TensorView<const T>& grad_output, const TensorView<const int64_t>& indices,
            const TensorView<T>& grad_input, bool local)
        : problem_(problem), grad_output_(grad_output), indices_(indices), grad_input_(grad_input), local_(local) {}

    void run(int width) {
        const int64_t rows = problem_.h.input;
        const bool channels_inside = std::abs(grad_input_.stride[1]) < std::abs(grad_input_.stride[3]);
        const int64_t channels = channels_inside ? problem_.channels : 1;
        const int64_t groups = problem_.batch * problem_.channels / channels;
        // Rows of one task: all of them where an index may point far from its window.
        const int64_t block = local_ ? std::clamp<int64_t>(task_elements / (problem_.w.input * channels), 1, rows) : rows;
        const int64_t blocks = ceil_div(rows, block);
        parallel_for(groups * blocks, width, [&](int64_t task, int) {
            const int64_t first = task / blocks * channels, row = task % blocks * block;
            add_rows(first / problem_.channels, first % problem_.channels, channels, row, std::min(rows, row + block));
        });
    }

private:
    void add_rows(int64_t n, int64_t c_begin, int64_t channels, int64_t row_begin, int64_t row_end) const;

    const PoolProblem& problem_;
    const TensorView<const T> grad_output_;
    const TensorView<const int64_t> indices_;
    const TensorView<T> grad_input_;
    const bool local_;
};

template <class T>
void Scatter<T>::add_rows(int64_t n, int64_t c_begin, int64_t channels, int64_t row_begin, int64_t row_end) const {
    const Axis& h = problem_.h;
    const int64_t columns = problem_.w.input;
    const int64_t row_stride = grad_input_.stride[2], stride = grad_input_.stride[3];
    for (int64_t row = row_begin; row < row_end; ++row)
        for (int64_t w = 0; w < columns; ++w)
            for (int64_t c = 0; c < channels; ++c) *grad_input_.at(n, c_begin + c, row, w) = T(0);

    T* plane = grad_input_.at(n, c_begin, 0, 0);
    const bool dense = row_stride == columns * stride;
    const uint64_t first = static_cast<uint64_t>(row_begin * columns), cells = static_cast<uint64_t>((row_end - row_begin) * columns);
    const auto add = [&](int64_t index, int64_t channel, T grad) {
        if (static_cast<uint64_t>(index) - first >= cells) return;
        const int64_t at = dense ? index * stride : index / columns * row_stride + index % columns * stride;
        plane[at + channel * grad_input_.stride[1]] += grad;
    };
    const int64_t p_begin = local_ ? std::max<int64_t>(0, ceil_div(std::max<int64_t>(0, row_begin + h.pad_before - h.extent() + 1), h.stride)) : 0;
    const int64_t p_end = local_ ? std::min(problem_.out_h(), (row_end - 1 + h.pad_before) / h.stride + 1) : problem_.out_h();
    for (int64_t p = p_begin; p < p_end; ++p)
        for (int64_t q = 0; q < problem_.out_w(); ++q) {
            const int64_t* index = indices_.at(n, c_begin, p, q);
            const T* grad = grad_output_.at(n, c_begin, p, q);
            for (int64_t c = 0; c < channels; ++c) add(index[c * indices_.stride[1]], c, grad[c * grad_output_.stride[1]]);
        }
}

}  // namespace

template <class T>
bool max_pool2d_backward(const PoolProblem& problem, TensorView<const T> grad_output, TensorView<const int64_t> indices,
                         TensorView<T> grad_input) {
    if (grad_input.size() == 0) return true;
    const int width = width_for(problem, sizeof(T));
    const Axis& h = problem.h;
    const int64_t columns = problem.w.input;
    std::atomic<bool> local{true};
    const auto count_outside = [&](const int64_t* cells, int64_t count, int64_t step, int64_t begin, int64_t end) {
        int64_t outside = 0;
        for (int64_t i = 0; i < count; ++i) {
            const int64_t index = cells[i * step];
            outside += index != no_gradient_index && static_cast<uint64_t>(index) - static_cast<uint64_t>(begin) >= static_cast<uint64_t>(end - begin);
        }
        return outside;
    };
    const bool legal = all_legal(problem, indices, width, [&](int64_t p, const WindowRun&, const int64_t* cells, int64_t count, int64_t step) {
        const int64_t begin = std::max<int64_t>(0, h.position(p, 0)) * columns;
        const int64_t end = (std::min(h.input - 1, h.position(p, h.kernel - 1)) + 1) * columns;
        if (count_outside(cells, count, step, begin, end) == 0) return true;
        local.store(false, std::memory_order_relaxed);
        return count_outside(cells, count, step, 0, h.input * columns) == 0;
    });
    if (legal) Scatter<T>(problem, grad_output, indices, grad_input, local.load()).run(width);
    return legal;
}

template <class T>
bool max_pool2d_backward(const PoolProblem& problem, TensorView<const T> grad_output, TensorView<const uint8_t> codes,
                         TensorView<T> grad_input) {
    if (grad_input.size() == 0) return true;
    const int width = width_for(problem, sizeof(T));
    if (!codes_are_legal(problem, codes, width)) return false;
    Gather<T>(problem, grad_output, codes, grad_input, width).run();
    return true;
}

template bool max_pool2d_backward(const PoolProblem&, TensorView<const float>, TensorView<const int64_t>, TensorView<float>);
template bool max_pool2d_backward(const PoolProblem&, TensorView<const double>, TensorView<const int64_t>, TensorView<double>);
template bool max_pool2d_backward(const PoolProblem&, TensorView<const float>, TensorView<const uint8_t>, TensorView<float>);
template bool max_pool2d_backward(const PoolProblem&, TensorView<const double>, TensorView<const uint8_t>, TensorView<double>);

}  // namespace convx
