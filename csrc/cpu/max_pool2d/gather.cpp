// The gradient of max-pooling by codes, as a gather over one kernel (kernels/max_pool2d_backward.inl.h), in the nests
// of channels.cpp and planes.cpp. Residues (residues.h) are summed one by one, or for
// stride 2 both at once. In planes the codes are staged, padded with one that no tap has, unless every window that the
// taps name exists; gradients are read as they lie, with whatever stands beside a row, because the codes decide.
#include <cstdlib>
#include <cstring>

#include "cpu/max_pool2d/nest.h"
#include "cpu/max_pool2d/residues.h"

namespace convx {

namespace {

constexpr int64_t l1_bytes = 24 << 10;   // gradients, codes and sums of one block
constexpr int64_t block_elements = 512;  // of one row of a block

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
        return (grad_output_.size() + grad_input_.size()) * int64_t{sizeof(T)} + codes_.size() >= streaming_bytes;
    }

    void run_channels();
    void channels_row(int64_t n, int64_t row, const Scratch& scratch) const;

    void plan_planes();
    void run_planes();
    void plane_block(int64_t n, int64_t c, int64_t i_begin, int64_t j_begin, const Scratch& scratch) const;
    void spread(int64_t n, int64_t c, int64_t i_begin, int64_t j_begin, T* output) const;
    void sum_block(int64_t n, int64_t c, int64_t i_begin, int64_t j_begin, T* output, const Scratch& scratch) const;
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
    bool spreads_ = false;  // windows of two columns tile the planes
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
    const int64_t task_rows = std::max<int64_t>(1, pool_task_elements / row_elements);
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
    spreads_ = inside_ && adjacent && stride_w == 2 && problem_.w.kernel == 2 && problem_.h.kernel == stride_h &&
               problem_.w.dilation == 1 && problem_.h.dilation == 1 && problem_.w.input == 2 * problem_.out_w() &&
               problem_.h.input == stride_h * problem_.out_h() && grads_adjacent_ && codes_adjacent_;
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
        std::max<int64_t>(1, pool_task_elements / (problem_.w.input * group_ * block_rows_ * problem_.h.stride));
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
    job.rows = std::max<int64_t>(0, std::min(view.shape[2] - p_begin, staged_rows_ - (p_begin - p_first)));
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

template <class T>
void Gather<T>::plane_block(int64_t n, int64_t c, int64_t i_begin, int64_t j_begin, const Scratch& scratch) const {
    const int64_t stride_h = problem_.h.stride, stride_w = problem_.w.stride;
    T* const output = slab_ ? scratch.slab : grad_input_.at(n, c, i_begin * stride_h, j_begin * stride_w);
    const int64_t output_row = grad_input_.stride[2];
    if (spreads_)
        spread(n, c, i_begin, j_begin, output);
    else
        sum_block(n, c, i_begin, j_begin, output, scratch);
    if (slab_) {
        const int64_t rows = std::min(problem_.h.input - i_begin * stride_h, block_rows_ * stride_h);
        copy_around_caches(kernels_, grad_input_.at(n, c, i_begin * stride_h, 0), scratch.slab, rows * output_row);
    }
}

template <class T>
void Gather<T>::spread(int64_t n, int64_t c, int64_t i_begin, int64_t j_begin, T* output) const {
    PoolSpread<T> job{};
    job.grads = grad_output_.at(n, c, i_begin, j_begin);
    job.codes = codes_.at(n, c, i_begin, j_begin);
    job.grad_step = grad_output_.stride[2];
    job.code_step = codes_.stride[2];
    job.rows = std::min(problem_.out_h() - i_begin, block_rows_);
    job.columns = std::min(problem_.out_w() - j_begin, block_columns_);
    job.tap_rows = static_cast<int>(problem_.h.kernel);
    job.output = output;
    job.output_row = grad_input_.stride[2];
    kernels_.pool_spread(job);
}

// Staged or not, every window that a tap names can be read, and so all cells of a residue have the same taps.
template <class T>
void Gather<T>::sum_block(int64_t n, int64_t c, int64_t i_begin, int64_t j_begin, T* output,
                          const Scratch& scratch) const {
    const int64_t stride_h = problem_.h.stride, stride_w = problem_.w.stride, output_row = grad_input_.stride[2];
    Block block;
    find_grads(n, c, i_begin, j_begin, scratch.grads, block);
    find_codes(n, c, i_begin, j_begin, scratch.codes, block);
    set_rows(block, 0, static_cast<int64_t>(h_.taps.size()), scratch);
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

}  // namespace

template <class T>
void max_pool2d_gather(const PoolProblem& problem, const TensorView<const T>& grad_output,
                       const TensorView<const uint8_t>& codes, const TensorView<T>& grad_input) {
    Gather<T>(problem, grad_output, codes, grad_input, pool_width(problem, sizeof(T))).run();
}

template void max_pool2d_gather(const PoolProblem&, const TensorView<const float>&, const TensorView<const uint8_t>&,
                                const TensorView<float>&);
template void max_pool2d_gather(const PoolProblem&, const TensorView<const double>&, const TensorView<const uint8_t>&,
                                const TensorView<double>&);

}  // namespace convx
