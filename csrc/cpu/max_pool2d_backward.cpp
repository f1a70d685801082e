// Max-pooling, backward.
//
// By codes: a gather over one kernel (kernels/max_pool2d_backward.inl.h), in the two loop nests of max_pool2d.cpp.
// Input columns of one residue modulo the stride have the same taps, and a tap's windows over neighbours of a residue
// are neighbours: residues are summed one by one, or for stride 2 both at once. Rows alike. In planes the codes are
// staged, padded with one that no tap has, unless every window that the taps name exists; gradients are read as they
// lie, with whatever stands beside a row, because the codes decide.
//
// By indices, which may point anywhere in the plane, and by codes where windows overlap so much that looking at all of
// them costs more: a scatter in row-major order of the windows. A task owns some rows of a plane (or of an image, where
// channels are adjacent) and adds what falls into them. Both ways give the same bits.
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <type_traits>

#include "common/rounding.h"
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
constexpr int64_t l1_bytes = 24 << 10;               // gradients, codes and sums of one block
constexpr int64_t block_elements = 512;              // of one row of a block
constexpr int64_t block_cells = int64_t{1} << 14;
constexpr int64_t widest_vector = 16;

int width_for(const PoolProblem& problem, int64_t item_bytes) {
    const auto elements = [](const std::array<int64_t, 4>& s) { return s[0] * s[1] * s[2] * s[3]; };
    const int64_t compared = elements(problem.input_shape()) + elements(problem.output_shape()) * problem.taps();
    return compared * item_bytes < parallel_bytes ? 1 : num_threads();
}

// Behind the last element of a view in memory.
template <class U>
const U* end_of(const TensorView<const U>& view) {
    const U* end = view.data + 1;
    for (size_t axis = 0; axis < 4; ++axis) end += std::max<int64_t>(0, view.stride[axis]) * (view.shape[axis] - 1);
    return end;
}
template <class U>
const U* begin_of(const TensorView<const U>& view) {
    const U* begin = view.data;
    for (size_t axis = 0; axis < 4; ++axis) begin += std::min<int64_t>(0, view.stride[axis]) * (view.shape[axis] - 1);
    return begin;
}

// The cells of a view row by row: rows (n, c, p) of Q cells, or, where channels lie closer than pixels, rows (n, p) of
// Q x C cells.
template <class U>
struct Rows {
    explicit Rows(const TensorView<const U>& given) : view(given) {
        if (std::abs(view.stride[1]) < std::abs(view.stride[3])) channels = view.shape[1];
        const int64_t plane_stride = channels == 1 && view.shape[1] > 1 ? view.stride[1] : view.stride[0];
        adjacent = (channels == 1 || view.stride[1] == 1) && view.stride[3] == channels;
        stacked = view.stride[2] == cells() && plane_stride == view.shape[2] * view.stride[2] &&
                  (view.shape[0] == 1 || view.stride[0] == view.shape[1] / channels * plane_stride);
    }
    int64_t count() const { return view.shape[0] * view.shape[1] / channels * view.shape[2]; }
    int64_t cells() const { return view.shape[3] * channels; }
    const U* at(int64_t row) const {
        if (stacked) return view.data + row * cells();
        const int64_t plane = row / view.shape[2] * channels;
        return view.at(plane / view.shape[1], plane % view.shape[1], row % view.shape[2], 0);
    }

    // Calls visit(cells, count) for pixels [pixel, pixel + pixels) of these rows: for all at once where rows are
    // stacked one upon the other and whole, by adjacent cells of a row, or cell by cell.
    template <class Visit>
    void for_each(int64_t row, int64_t rows, int64_t pixel, int64_t pixels, const Visit& visit) const {
        if (stacked && adjacent && pixels == view.shape[3]) return visit(at(row), rows * cells());
        const U* first = at(row);
        for (int64_t i = 0; i < rows; ++i, first = at(row + i)) {
            const U* piece = first + pixel * view.stride[3];
            if (adjacent) {
                visit(piece, pixels * channels);
                continue;
            }
            for (int64_t k = 0; k < pixels; ++k)
                for (int64_t c = 0; c < channels; ++c)
                    visit(piece + k * view.stride[3] + c * view.stride[1], int64_t{1});
        }
    }

    // True if legal(row, rows) is for all rows, which are looked at in parallel.
    template <class Legal>
    bool all(int width, const Legal& legal) const {
        const int64_t task_rows = std::max<int64_t>(1, task_elements / cells());
        std::atomic<bool> result{true};
        parallel_for(ceil_div(count(), task_rows), width, [&](int64_t task, int) {
            const int64_t row = task * task_rows;
            if (!legal(row, std::min(task_rows, count() - row))) result.store(false, std::memory_order_relaxed);
        });
        return result.load();
    }

    const TensorView<const U> view;
    int64_t channels = 1;
    bool adjacent, stacked;
};

// A code is legal if its tap lies inside the image. That of a whole window is below the number of taps; rows of windows
// that lack taps have theirs in an interval, because those that they have are neighbours; columns go by a table.
bool codes_are_legal(const PoolProblem& problem, const TensorView<const uint8_t>& codes, int width) {
    const std::vector<WindowRun> row_runs = window_runs(problem.h), column_runs = window_runs(problem.w);
    const int64_t columns = problem.w.kernel, rows_per_plane = problem.out_h();
    struct Border {
        int64_t begin, count;
        std::array<uint8_t, 256> illegal;
    };
    std::vector<Border> borders;
    for (const WindowRun& run : column_runs) {
        if (run.count() == columns) continue;
        Border border{run.begin, run.end - run.begin, {}};
        for (int64_t code = 0; code < problem.taps(); ++code)
            border.illegal[static_cast<size_t>(code)] = !run.has_tap(code % columns);
        borders.push_back(border);
    }
    const Rows<uint8_t> view(codes);
    return view.all(width, [&](int64_t first_row, int64_t rows) {
        uint8_t illegal = 0;
        const auto expect_between = [&](int64_t row, int64_t count, int64_t begin, int64_t taps) {
            const uint8_t least = static_cast<uint8_t>(begin), below = static_cast<uint8_t>(taps);
            view.for_each(row, count, 0, problem.out_w(), [&](const uint8_t* cells, int64_t n) {
                uint8_t any = 0;
                for (int64_t i = 0; i < n; ++i)
                    any |= static_cast<uint8_t>(static_cast<uint8_t>(cells[i] - least) >= below &&
                                                cells[i] != no_gradient_code);
                illegal |= any;
            });
        };
        expect_between(first_row, rows, 0, problem.taps());
        const int64_t end = first_row + rows;
        for (const WindowRun& run : row_runs) {
            if (run.count() == problem.h.kernel) continue;
            for (int64_t plane = first_row / rows_per_plane * rows_per_plane; plane < end; plane += rows_per_plane) {
                const int64_t begin = std::max(first_row, plane + run.begin), stop = std::min(end, plane + run.end);
                if (begin < stop) expect_between(begin, stop - begin, run.tap_begin * columns, run.count() * columns);
            }
        }
        for (const Border& border : borders) {
            if (view.stacked && view.channels == 1 && border.count == 1) {
                const uint8_t* cell = view.at(first_row) + border.begin * codes.stride[3];
                for (int64_t i = 0; i < rows; ++i, cell += codes.stride[2]) illegal |= border.illegal[*cell];
                continue;
            }
            view.for_each(first_row, rows, border.begin, border.count, [&](const uint8_t* cells, int64_t n) {
                for (int64_t i = 0; i < n; ++i) illegal |= border.illegal[cells[i]];
            });
        }
        return illegal == 0;
    });
}

// Local indices lie in rows that their window covers; others have to lie in the plane. Whether all are local matters
// where planes are cut.
enum class Indices { illegal, anywhere, local };

Indices inspect_indices(const PoolProblem& problem, const TensorView<const int64_t>& indices, bool cut, int width) {
    const Axis& h = problem.h;
    const int64_t columns = problem.w.input, rows_per_plane = problem.out_h();
    const Rows<int64_t> view(indices);
    std::atomic<bool> local{true};
    const bool legal = view.all(width, [&](int64_t first_row, int64_t rows) {
        // The sign bit of index - least or most - index tells, without a comparison, which 64-bit SSE2 lacks.
        const auto are_between = [&](int64_t row, int64_t count, int64_t least, int64_t most) {
            uint64_t signs = 0;
            view.for_each(row, count, 0, problem.out_w(), [&](const int64_t* cells, int64_t n) {
                uint64_t any = 0;
                for (int64_t i = 0; i < n; ++i)
                    any |= (static_cast<uint64_t>(cells[i]) - static_cast<uint64_t>(least)) |
                           (static_cast<uint64_t>(most) - static_cast<uint64_t>(cells[i]));
                signs |= any;
            });
            return signs >> 63 == 0;
        };
        const int64_t end = first_row + rows;
        int64_t p = first_row % rows_per_plane;
        for (int64_t row = first_row; cut && row < end; ++row, p = p + 1 == rows_per_plane ? 0 : p + 1) {
            const int64_t most = std::min(h.input - 1, h.position(p, h.kernel - 1)) * columns + columns - 1;
            if (!are_between(row, 1, std::max<int64_t>(0, h.position(p, 0)) * columns, most))
                local.store(false, std::memory_order_relaxed);
        }
        return are_between(first_row, rows, no_gradient_index, h.input * columns - 1);
    });
    return !legal ? Indices::illegal : local.load() ? Indices::local : Indices::anywhere;
}

// One residue of an input axis modulo the stride: cells first + j * stride for j < count. Taps are numbered through all
// residues of an axis, in ascending order of the windows within each.
struct Residue {
    int64_t first, count;
    int64_t tap_begin, tap_end;
    std::vector<WindowRun> runs;  // cells j by the taps whose windows exist
};

struct Residues {
    explicit Residues(const Axis& axis);

    // True if every window that a tap names exists.
    bool are_inside() const {
        return std::all_of(list.begin(), list.end(), [](const Residue& residue) {
            return residue.runs.size() == 1 && residue.runs[0].count() == residue.tap_end - residue.tap_begin;
        });
    }

    std::vector<Residue> list;
    std::vector<int64_t> taps;     // the kernel row or column
    std::vector<int64_t> windows;  // of cell j, less j
    int64_t least = 0, most = 0;   // of the windows
};

Residues::Residues(const Axis& axis) {
    const auto count_of = [](const std::vector<int64_t>& v) { return static_cast<int64_t>(v.size()); };
    const int64_t outputs = axis.output();
    for (int64_t first = 0; first < std::min(axis.stride, axis.input); ++first) {
        Residue residue{first, ceil_div(axis.input - first, axis.stride), count_of(taps), 0, {}};
        for (int64_t tap = axis.kernel - 1; tap >= 0; --tap) {
            const int64_t distance = first + axis.pad_before - tap * axis.dilation;
            if (distance % axis.stride != 0) continue;
            taps.push_back(tap);
            windows.push_back(distance / axis.stride);
        }
        residue.tap_end = count_of(taps);
        for (int64_t j = 0; j < residue.count; ++j) {
            int64_t begin = residue.tap_begin, end = residue.tap_end;
            while (begin < end && j + windows[static_cast<size_t>(begin)] < 0) ++begin;
            while (begin < end && j + windows[static_cast<size_t>(end - 1)] >= outputs) --end;
            append_to(residue.runs, j, begin, end);
        }
        list.push_back(residue);
    }
    if (windows.empty()) return;
    least = *std::min_element(windows.begin(), windows.end());
    most = *std::max_element(windows.begin(), windows.end());
}

template <class T>
class Gather {
public:
    Gather(const PoolProblem& problem, const TensorView<const T>& grad_output, const TensorView<const uint8_t>& codes,
           const TensorView<T>& grad_input, int width)
        : problem_(problem), grad_output_(grad_output), codes_(codes), grad_input_(grad_input), width_(width) {
        for (const int64_t r : h_.taps)
            for (const int64_t s : w_.taps) wanted_.push_back(static_cast<uint8_t>(r * problem.w.kernel + s));
    }

    void run() {
        const bool adjacent = grad_output_.stride[1] == 1 && codes_.stride[1] == 1 && grad_input_.stride[1] == 1;
        if (adjacent && problem_.channels >= kernels_.lanes && grad_output_.stride[3] == codes_.stride[3])
            return run_channels();
        if (adjacent) group_ = problem_.channels;
        run_planes();
    }

private:
    // What one worker works with; a part that the problem does not need is empty.
    struct Scratch {
        Scratch(ScratchParts parts, const Gather& g)
            : grad_rows(parts.take<const T*>(g.problem_.h.kernel)),
              code_rows(parts.take<const uint8_t*>(g.problem_.h.kernel)),
              grads(parts.take<T>(g.staged_rows_ * g.staged_row_ + 2 * widest_vector)),
              codes(parts.take<uint8_t>(g.staged_rows_ * g.staged_row_)), sums(parts.take<T>(g.sums_)),
              slab(parts.take<T>(g.slab_)), bytes(parts.bytes()) {}
        const T** grad_rows;
        const uint8_t** code_rows;
        T* grads;
        uint8_t* codes;
        T* sums;
        T* slab;
        int64_t bytes;
    };

    template <class Body>
    void run_tasks(int64_t tasks, const Body& body) {
        const int64_t worker_bytes = Scratch(ScratchParts(), *this).bytes;
        const Workspace workspace(static_cast<size_t>(worker_bytes * width_));
        parallel_for(tasks, width_, [&](int64_t task, int worker) {
            body(task, Scratch(ScratchParts(static_cast<char*>(workspace.data()) + worker * worker_bytes), *this));
        });
    }

    void set_offsets(int64_t column) {
        for (const int64_t window : w_.windows) offsets_.push_back(window * column);
    }

    // Where the windows of a block lie: those that its first cell would have under offset 0, and the next row of them.
    struct Block {
        const T* grads;
        const uint8_t* codes;
        int64_t grad_row, code_row;
    };

    void set_rows(const Block& block, int64_t tap_begin, int64_t tap_end, const Scratch& scratch) const {
        for (int64_t r = tap_begin; r < tap_end; ++r) {
            const int64_t window = h_.windows[static_cast<size_t>(r)];
            scratch.grad_rows[r] = block.grads + window * block.grad_row;
            scratch.code_rows[r] = block.codes + window * block.code_row;
        }
    }
    void set_taps(PoolSum<T>& job, int64_t r_begin, int64_t r_end, int64_t s_begin, int64_t s_end,
                  const Scratch& scratch) const {
        job.tap_rows = static_cast<int>(r_end - r_begin);
        job.tap_columns = static_cast<int>(s_end - s_begin);
        job.grad_rows = scratch.grad_rows + r_begin;
        job.code_rows = scratch.code_rows + r_begin;
        job.offsets = offsets_.data() + s_begin;
        job.wanted_row = static_cast<int64_t>(w_.taps.size());
        job.wanted = wanted_.data() + r_begin * job.wanted_row + s_begin;
    }
    int64_t staged_columns() const { return w_.most - w_.least + block_columns_; }

    bool streams() const {
        if (const char* e = getenv("NT")) return atoi(e);
        return (grad_output_.size() + grad_input_.size()) * int64_t{sizeof(T)} + codes_.size() >= streaming_bytes;
    }

    void run_channels();
    void channels_row(int64_t n, int64_t row, const Scratch& scratch) const;

    void plan_planes();
    void run_planes();
    void plane_block(int64_t n, int64_t c, int64_t i_begin, int64_t j_begin, const Scratch& scratch) const;
    void sum_and_scatter(PoolSum<T>& job, T* sums) const;
    void find_grads(int64_t n, int64_t c, int64_t i_begin, int64_t j_begin, T* staged, Block& block) const;
    void find_codes(int64_t n, int64_t c, int64_t i_begin, int64_t j_begin, uint8_t* staged, Block& block) const;

    const PoolProblem& problem_;
    const TensorView<const T> grad_output_;
    const TensorView<const uint8_t> codes_;
    const TensorView<T> grad_input_;
    const int width_;
    const KernelSet<T>& kernels_ = kernel_set<T>(active_kernels());
    const Residues h_{problem_.h}, w_{problem_.w};
    std::vector<uint8_t> wanted_;   // codes of all pairs of taps in h_ and w_
    std::vector<int64_t> offsets_;  // per tap in w_: elements to its windows

    // Planes only. A block is block_rows_ x block_columns_ cells of each residue; staged, their windows are
    // staged_rows_ x staged_row_.
    int64_t group_ = 1;  // adjacent channels that are the elements of one column
    int64_t block_rows_ = 1, block_columns_ = 1;
    int64_t staged_rows_ = 0, staged_row_ = 0;
    int64_t sums_ = 0;  // results on their way
    int64_t slab_ = 0;  // elements of a block or row that goes around the caches, 0 if none does
    bool grads_adjacent_ = false, codes_adjacent_ = false;
    bool inside_ = false;
    const T *grads_begin_ = nullptr, *grads_end_ = nullptr;
    const uint8_t *codes_begin_ = nullptr, *codes_end_ = nullptr;
    std::vector<uint8_t> outside_;  // from lane w_.least on: 255 beside the row, 0 in it
};

template <class T>
void Gather<T>::run_channels() {
    set_offsets(grad_output_.stride[3]);
    const int64_t rows_per_image = problem_.h.input;
    const int64_t rows = problem_.batch * rows_per_image;
    const int64_t row_elements = problem_.w.input * problem_.channels;
    const int64_t task_rows = std::max<int64_t>(1, task_elements / row_elements);
    if (streams() && grad_input_.stride[3] == problem_.channels) slab_ = row_elements;
    run_tasks(ceil_div(rows, task_rows), [&](int64_t task, const Scratch& scratch) {
        for (int64_t row = task * task_rows; row < std::min(rows, (task + 1) * task_rows); ++row)
            channels_row(row / rows_per_image, row % rows_per_image, scratch);
    });
}

template <class T>
void Gather<T>::channels_row(int64_t n, int64_t row, const Scratch& scratch) const {
    const int64_t channels = problem_.channels, stride = problem_.w.stride;
    const int64_t i = row / problem_.h.stride;
    const WindowRun& rows = run_of(h_.list[static_cast<size_t>(row % problem_.h.stride)].runs, i);
    PoolSum<T> job;
    job.grad_step = grad_output_.stride[3];
    job.code_step = codes_.stride[3];
    job.output_step = stride * grad_input_.stride[3];
    const bool dense = job.grad_step == channels && job.code_step == channels && job.output_step == channels;
    for (const Residue& w : w_.list)
        for (const WindowRun& columns : w.runs) {
            const Block block{grad_output_.at(n, 0, i, columns.begin), codes_.at(n, 0, i, columns.begin),
                              grad_output_.stride[2], codes_.stride[2]};
            set_rows(block, rows.tap_begin, rows.tap_end, scratch);
            set_taps(job, rows.tap_begin, rows.tap_end, columns.tap_begin, columns.tap_end, scratch);
            const int64_t pixels = columns.end - columns.begin;
            job.rows = dense ? 1 : pixels;
            job.columns = dense ? pixels * channels : channels;
            const int64_t column = w.first + columns.begin * stride;
            job.output = slab_ ? scratch.slab + column * channels : grad_input_.at(n, 0, row, column);
            kernels_.pool_sum(job);
        }
    if (slab_) copy_around_caches(kernels_, grad_input_.at(n, 0, row, 0), scratch.slab, slab_);
}

template <class T>
void Gather<T>::plan_planes() {
    set_offsets(group_);
    grads_adjacent_ = grad_output_.stride[3] == group_ && grad_output_.stride[2] >= 0;
    codes_adjacent_ = codes_.stride[3] == group_;
    inside_ = h_.are_inside() && w_.are_inside();
    grads_begin_ = begin_of(grad_output_);
    grads_end_ = end_of(grad_output_);
    codes_begin_ = begin_of(codes_);
    codes_end_ = end_of(codes_);
    const int64_t rows = h_.list[0].count, columns = w_.list[0].count;
    const int64_t stride_h = problem_.h.stride, stride_w = problem_.w.stride;
    block_columns_ = ceil_div(columns, ceil_div(columns, std::max<int64_t>(16, block_elements / group_)));
    staged_row_ = round_up(staged_columns() * group_ + kernels_.lanes, widest_vector);
    const int64_t row_elements = staged_row_ + block_columns_ * stride_w * group_ * stride_h;
    block_rows_ = std::clamp<int64_t>(l1_bytes / (row_elements * int64_t{sizeof(T)}), std::min<int64_t>(rows, 4), rows);
    const bool adjacent =
        grad_input_.stride[3] == group_ && (stride_w == 1 || (stride_w == 2 && group_ == 1 && w_.list.size() == 2));
    if (!adjacent) sums_ = block_rows_ * block_columns_ * group_;
    const bool rows_adjacent =
        adjacent && block_columns_ == columns && grad_input_.stride[2] == problem_.w.input * group_;
    if (streams() && rows_adjacent) slab_ = block_rows_ * stride_h * problem_.w.input * group_;
    staged_rows_ = block_rows_ + h_.most - h_.least;
    outside_.assign(static_cast<size_t>(round_up(columns, block_columns_) * group_ + staged_row_), no_gradient_code);
    for (int64_t l = 0; l < problem_.out_w() * group_; ++l) {
        const int64_t lane = l - w_.least * group_;
        if (lane >= 0 && lane < static_cast<int64_t>(outside_.size())) outside_[static_cast<size_t>(lane)] = 0;
    }
}

template <class T>
void Gather<T>::run_planes() {
    plan_planes();
    const int64_t groups = problem_.channels / group_;
    const int64_t blocks = ceil_div(h_.list[0].count, block_rows_);
    const int64_t units = problem_.batch * groups * blocks;
    const int64_t task_units =
        std::max<int64_t>(1, task_elements / (problem_.w.input * group_ * block_rows_ * problem_.h.stride));
    // Where channels lie closer than pixels, they take turns within a block of rows: its lines are in cache then.
    const bool channels_inside = std::abs(grad_input_.stride[1]) < std::abs(grad_input_.stride[3]);
    run_tasks(ceil_div(units, task_units), [&](int64_t task, const Scratch& scratch) {
        const int64_t end = std::min(units, (task + 1) * task_units);
        BlockCounter at(task * task_units, groups, blocks, channels_inside);
        for (int64_t unit = task * task_units; unit < end; ++unit, at.next())
            for (int64_t j = 0; j < w_.list[0].count; j += block_columns_)
                plane_block(at.n, at.group * group_, at.block * block_rows_, j, scratch);
    });
}

// Gradients are read as they lie if that stays within their memory; what lies around a plane or a row, no code asks
// for.
template <class T>
void Gather<T>::find_grads(int64_t n, int64_t c, int64_t i_begin, int64_t j_begin, T* staged, Block& block) const {
    const auto& view = grad_output_;
    const int64_t p_first = i_begin + h_.least, q_first = j_begin + w_.least, width = staged_columns();
    if (grads_adjacent_) {
        const T* first = view.at(n, c, p_first, q_first);
        const T* last = first + (staged_rows_ - 1) * view.stride[2] + width * group_ + 2 * kernels_.lanes;
        if (grads_begin_ <= first && last <= grads_end_) {
            block.grads = first - h_.least * view.stride[2] - w_.least * group_;
            block.grad_row = view.stride[2];
            return;
        }
    }
    const int64_t p_begin = std::clamp<int64_t>(p_first, 0, view.shape[2]);
    const int64_t q_begin = std::clamp<int64_t>(q_first, 0, view.shape[3]);
    const int64_t before = std::min(q_begin - q_first, width);
    PoolStage<T> job{};
    job.staged = staged + (p_begin - p_first) * staged_row_;
    job.staged_step = staged_row_;
    job.source = view.at(n, c, p_begin, q_begin);
    job.source_step = view.stride[2];
    job.rows = std::clamp<int64_t>(view.shape[2] - p_begin, 0, staged_rows_ - (p_begin - p_first));
    job.before = before * group_;
    job.pixels = std::clamp<int64_t>(view.shape[3] - q_begin, 0, width - before);
    job.after = (width - before - job.pixels) * group_;
    job.group = group_;
    job.pixel_step = view.stride[3];
    kernels_.pool_stage(job);
    block.grads = staged - h_.least * staged_row_ - w_.least * group_;
    block.grad_row = staged_row_;
}

template <class T>
void Gather<T>::find_codes(int64_t n, int64_t c, int64_t i_begin, int64_t j_begin, uint8_t* staged,
                           Block& block) const {
    const auto& view = codes_;
    const int64_t p_first = i_begin + h_.least;
    const int64_t first_lane = (j_begin + w_.least) * group_;  // of a row without its border
    const auto can_read = [&](const uint8_t* row) {
        return codes_adjacent_ && codes_begin_ <= row + first_lane && row + first_lane + staged_row_ <= codes_end_;
    };
    if (inside_ && view.stride[2] >= 0 && can_read(view.at(n, c, p_first + staged_rows_ - 1, 0))) {
        block.codes = view.at(n, c, i_begin, j_begin);
        block.code_row = view.stride[2];
        return;
    }
    block.codes = staged - h_.least * staged_row_ - w_.least * group_;
    block.code_row = staged_row_;

    // In words of 8 bytes, two at a time: most rows are too short for a call of memset or memcpy.
    const uint8_t* const outside = outside_.data() + j_begin * group_;
    const int64_t lanes = staged_row_;
    for (int64_t row = 0; row < staged_rows_; ++row, staged += lanes) {
        const int64_t p = p_first + row;
        if (p < 0 || p >= view.shape[2]) {
            const uint64_t words[2] = {~uint64_t{0}, ~uint64_t{0}};
            for (int64_t l = 0; l < lanes; l += 16) std::memcpy(staged + l, words, 16);
            continue;
        }
        const uint8_t* const source = view.at(n, c, p, 0);
        if (can_read(source)) {
            for (int64_t l = 0; l < lanes; l += 16) {
                uint64_t words[2], ones[2];
                std::memcpy(words, source + first_lane + l, 16);
                std::memcpy(ones, outside + l, 16);
                words[0] |= ones[0];
                words[1] |= ones[1];
                std::memcpy(staged + l, words, 16);
            }
            continue;
        }
        for (int64_t l = 0; l < lanes; ++l) {
            const int64_t q = (first_lane + l) / group_, k = (first_lane + l) % group_;
            staged[l] = outside[l] ? no_gradient_code : source[q * view.stride[3] + k * view.stride[1]];
        }
    }
}

// Staged or not, every window that a tap names can be read, and so all cells of a residue have the same taps.
template <class T>
void Gather<T>::plane_block(int64_t n, int64_t c, int64_t i_begin, int64_t j_begin, const Scratch& scratch) const {
    const int64_t stride_h = problem_.h.stride, stride_w = problem_.w.stride;
    Block block;
    find_grads(n, c, i_begin, j_begin, scratch.grads, block);
    find_codes(n, c, i_begin, j_begin, scratch.codes, block);
    set_rows(block, 0, static_cast<int64_t>(h_.taps.size()), scratch);
    T* const output = slab_ ? scratch.slab : grad_input_.at(n, c, i_begin * stride_h, j_begin * stride_w);
    const int64_t output_row = grad_input_.stride[2];
    PoolSum<T> jobs[2];
    for (const Residue& h : h_.list)
        for (size_t k = 0; k < w_.list.size(); ++k) {
            const Residue& w = w_.list[k];
            PoolSum<T>& job = jobs[k % 2];
            set_taps(job, h.tap_begin, h.tap_end, w.tap_begin, w.tap_end, scratch);
            job.grad_step = block.grad_row;
            job.code_step = block.code_row;
            job.rows = std::clamp<int64_t>(h.count - i_begin, 0, block_rows_);
            job.columns = std::clamp<int64_t>(w.count - j_begin, 0, block_columns_) * group_;
            job.output = output + h.first * output_row + w.first * grad_input_.stride[3];
            job.output_step = stride_h * output_row;
            if (sums_)
                sum_and_scatter(job, scratch.sums);
            else if (stride_w == 1)
                kernels_.pool_sum(job);
            else if (k == 1)
                kernels_.pool_sum_pairs(jobs[0], jobs[1]);
        }
    if (slab_) {
        const int64_t rows = std::min(problem_.h.input - i_begin * stride_h, block_rows_ * stride_h);
        copy_around_caches(kernels_, grad_input_.at(n, c, i_begin * stride_h, 0), scratch.slab, rows * output_row);
    }
}

// For outputs that are not adjacent.
template <class T>
void Gather<T>::sum_and_scatter(PoolSum<T>& job, T* sums) const {
    if (job.columns == 0) return;
    T* to = job.output;
    const int64_t row_step = job.output_step, step = problem_.w.stride * grad_input_.stride[3];
    job.output = sums;
    job.output_step = job.columns;
    kernels_.pool_sum(job);
    for (int64_t row = 0; row < job.rows; ++row)
        for (int64_t j = 0; j < job.columns / group_; ++j)
            for (int64_t k = 0; k < group_; ++k) to[row * row_step + j * step + k * grad_input_.stride[1]] = *sums++;
}

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
        return channels_of(grad_input) * grad_input.shape[2] * grad_input.shape[3] > task_elements;
    }

    void run(int width) const {
        const int64_t rows = problem_.h.input, channels = channels_of(grad_input_);
        const int64_t groups = problem_.batch * problem_.channels / channels;
        // Rows of one unit: all of them where an index may point far from its window.
        const int64_t row_elements = problem_.w.input * channels;
        const int64_t block = local_ ? std::clamp<int64_t>(task_elements / row_elements, 1, rows) : rows;
        const int64_t blocks = ceil_div(rows, block), units = groups * blocks;
        const int64_t task_units = std::max<int64_t>(1, task_elements / (row_elements * block));
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
bool max_pool2d_backward(const PoolProblem& problem, TensorView<const T> grad_output, TensorView<const int64_t> indices,
                         TensorView<T> grad_input) {
    if (grad_input.size() == 0) return true;
    const int width = width_for(problem, sizeof(T));
    const Indices found = inspect_indices(problem, indices, Scatter<T, int64_t>::cuts(grad_input), width);
    if (found == Indices::illegal) return false;
    Scatter<T, int64_t>(problem, grad_output, indices, grad_input, found == Indices::local).run(width);
    return true;
}

template <class T>
bool max_pool2d_backward(const PoolProblem& problem, TensorView<const T> grad_output, TensorView<const uint8_t> codes,
                         TensorView<T> grad_input) {
    if (grad_input.size() == 0) return true;
    const int width = width_for(problem, sizeof(T));
    if (!codes_are_legal(problem, codes, width)) return false;
    const bool channels = grad_output.stride[1] == 1 && codes.stride[1] == 1 && grad_input.stride[1] == 1 &&
                          problem.channels >= kernel_set<T>(active_kernels()).lanes;
    const int64_t windows = problem.taps() / (problem.h.stride * problem.w.stride);
    if (getenv("SCAT") ? atoi(getenv("SCAT")) : channels ? windows >= 36 : windows >= 16 || problem.w.stride > 2) {
        Scatter<T, uint8_t>(problem, grad_output, codes, grad_input, true).run(width);
    } else if (!channels && rows_are_tiled(problem.h) && planes_are_stacked(grad_output) && planes_are_stacked(codes) &&
               planes_are_stacked(grad_input)) {
        const PoolProblem tall = stack_planes(problem);
        Gather<T>(tall, stack_planes(grad_output), stack_planes(codes), stack_planes(grad_input), width).run();
    } else {
        Gather<T>(problem, grad_output, codes, grad_input, width).run();
    }
    return true;
}

template bool max_pool2d_backward(const PoolProblem&, TensorView<const float>, TensorView<const int64_t>,
                                  TensorView<float>);
template bool max_pool2d_backward(const PoolProblem&, TensorView<const double>, TensorView<const int64_t>,
                                  TensorView<double>);
template bool max_pool2d_backward(const PoolProblem&, TensorView<const float>, TensorView<const uint8_t>,
                                  TensorView<float>);
template bool max_pool2d_backward(const PoolProblem&, TensorView<const double>, TensorView<const uint8_t>,
                                  TensorView<double>);

}  // namespace convx
