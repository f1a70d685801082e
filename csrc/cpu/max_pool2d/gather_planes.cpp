// The gradient of max-pooling by codes in planes. Phases (phases.h) are summed one by one, or for stride 2 both at
// once. Codes are staged, padded with one that no tap has, unless every window that the taps name exists; gradients are
// read as they lie, with whatever stands beside a row, because the codes decide. A column may be a group of adjacent
// channels.
#include <cstdlib>
#include <cstring>

#include "cpu/max_pool2d/argmax_codes.h"
#include "cpu/max_pool2d/gather.h"

namespace convx {

namespace {

constexpr int64_t l1_bytes = 24 << 10;   // gradients, codes and sums of one block
constexpr int64_t block_elements = 512;  // of one row of a block

}  // namespace

template <class T>
class PoolGatherPlanes : Gather<T> {
    using Base = Gather<T>;
    using Base::codes_, Base::grad_input_, Base::grad_output_, Base::h_, Base::kernels_, Base::problem_, Base::w_;
    using typename Base::Block;

public:
    static constexpr const char* name = "gather-planes";
    using Base::supports;
    static bool suits(const PoolBackward<T>& pass, const KernelSet<T>& kernels) {
        return !prefers_scatter(pass, kernels);
    }

    PoolGatherPlanes(const PoolBackward<T>& pass, const KernelSet<T>& kernels)
        : Base(stacked(pass), kernels), pass_(pass),
          group_(channels_are_adjacent(pass.grad_output, pass.codes, pass.grad_input) ? problem_.channels : 1) {
        plan();
    }

    TaskPlan tasks() const { return pool_tasks<Scratch>(problem_, units_, *this); }
    void describe(PassPlan& plan) const {
        plan.tile = std::to_string(kernels_.lanes) + (group_ == 1 ? " columns" : " columns x channels");
        plan.block = std::to_string(block_rows_ * problem_.h.stride) + " x " +
                     std::to_string(block_columns_ * problem_.w.stride) + " cells";
        plan.reason = spreads_ ? "every window, of two columns, writes its cells"
                               : "every cell sums the windows that selected it, in row-major order";
    }
    Outcome run() const {
        if (!codes_are_legal(pass_.problem, pass_.codes)) return Outcome::illegal;
        run_units<Scratch>(*this, units_, [&](int64_t begin, int64_t end, const Scratch& scratch) {
            RowBlockCounter at(blocks_, begin);
            for (int64_t unit = begin; unit < end; ++unit, at.next())
                for (int64_t j = 0; j < w_.list[0].count; j += block_columns_)
                    run_block(at.n, at.group * group_, at.block * block_rows_, j, scratch);
            return true;
        });
        return Outcome::done;
    }

private:
    // What one worker works with; a part that the problem does not need is empty.
    struct Scratch {
        Scratch(ScratchParts& parts, const PoolGatherPlanes& driver)
            : tap_rows(parts, driver),
              grads(parts.take<T>(driver.staged_rows_ * driver.staged_row_ + 2 * widest_vector)),
              codes(parts.take<uint8_t>(driver.staged_rows_ * driver.staged_row_)), sums(parts.take<T>(driver.sums_)),
              slab(parts.take<T>(driver.slab_)) {}
        typename Base::TapRows tap_rows;
        T* grads;
        uint8_t* codes;
        T* sums;
        T* slab;
    };

    static PoolBackward<T> stacked(const PoolBackward<T>& pass) {
        const bool planes =
            pass.problem.channels == 1 || !channels_are_adjacent(pass.grad_output, pass.codes, pass.grad_input);
        if (!planes || !rows_are_tiled(pass.problem.h) ||
            !planes_are_stacked(pass.grad_output, pass.codes, pass.grad_input))
            return pass;
        return {stack_planes(pass.problem),
                stack_planes(pass.grad_output),
                {},
                stack_planes(pass.codes),
                stack_planes(pass.grad_input)};
    }
    int64_t staged_columns() const { return w_.most - w_.least + block_columns_; }

    void plan();
    void run_block(int64_t n, int64_t c, int64_t i_begin, int64_t j_begin, const Scratch& scratch) const;
    void spread(int64_t n, int64_t c, int64_t i_begin, int64_t j_begin, T* output) const;
    void sum_block(int64_t n, int64_t c, int64_t i_begin, int64_t j_begin, T* output, const Scratch& scratch) const;
    void sum_and_scatter(PoolSumArgs<T>& args, T* sums) const;
    void find_grads(int64_t n, int64_t c, int64_t i_begin, int64_t j_begin, T* staged, Block& block) const;
    void find_codes(int64_t n, int64_t c, int64_t i_begin, int64_t j_begin, uint8_t* staged, Block& block) const;

    const PoolBackward<T> pass_;  // as given, for the check of its codes
    const int64_t group_;         // adjacent channels that are the elements of one column
    // A block is block_rows_ x block_columns_ cells of each phase; staged, their windows are staged_rows_ x
    // staged_row_.
    int64_t block_rows_ = 1, block_columns_ = 1;
    int64_t staged_rows_ = 0, staged_row_ = 0;
    int64_t sums_ = 0;  // sums of a block that are copied to where they belong
    int64_t slab_ = 0;  // elements of a block that goes around the caches, 0 if none does
    RowBlocks blocks_{};
    PoolUnits units_{0, 1};
    bool grads_adjacent_ = false, codes_adjacent_ = false;
    bool inside_ = false;
    bool spreads_ = false;  // windows of two columns tile the planes
    const T *grads_begin_ = nullptr, *grads_end_ = nullptr;
    const uint8_t *codes_begin_ = nullptr, *codes_end_ = nullptr;
    std::vector<uint8_t> outside_;  // from lane w_.least on: 255 beside the row, 0 in it
};

template <class T>
void PoolGatherPlanes<T>::plan() {
    this->set_offsets(group_);
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
    if (this->streams() && rows_adjacent) slab_ = block_rows_ * stride_h * problem_.w.input * group_;
    spreads_ = inside_ && adjacent && stride_w == 2 && problem_.w.kernel == 2 && problem_.h.kernel == stride_h &&
               problem_.w.dilation == 1 && problem_.h.dilation == 1 && problem_.w.input == 2 * problem_.out_w() &&
               problem_.h.input == stride_h * problem_.out_h() && grads_adjacent_ && codes_adjacent_;
    const int64_t groups = problem_.channels / group_;
    blocks_ = {groups, ceil_div(rows, block_rows_), std::abs(grad_input_.stride[1]) < std::abs(grad_input_.stride[3])};
    units_ = {problem_.batch * groups * blocks_.blocks, problem_.w.input * group_ * block_rows_ * stride_h};
    staged_rows_ = block_rows_ + h_.most - h_.least;
    outside_.assign(static_cast<size_t>(round_up(columns, block_columns_) * group_ + staged_row_), no_gradient_code);
    for (int64_t l = 0; l < problem_.out_w() * group_; ++l) {
        const int64_t lane = l - w_.least * group_;
        if (lane >= 0 && lane < static_cast<int64_t>(outside_.size())) outside_[static_cast<size_t>(lane)] = 0;
    }
}

// Gradients are read as they lie if that stays within their memory; what lies around a plane or a row, no code asks
// for.
template <class T>
void PoolGatherPlanes<T>::find_grads(int64_t n, int64_t c, int64_t i_begin, int64_t j_begin, T* staged,
                                     Block& block) const {
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
    PoolStageArgs<T> args{};
    args.staged = staged + (p_begin - p_first) * staged_row_;
    args.staged_step = staged_row_;
    args.source = view.at(n, c, p_begin, q_begin);
    args.source_step = view.stride[2];
    args.rows = std::max<int64_t>(0, std::min(view.shape[2] - p_begin, staged_rows_ - (p_begin - p_first)));
    args.before = before * group_;
    args.pixels = std::clamp<int64_t>(view.shape[3] - q_begin, 0, width - before);
    args.after = (width - before - args.pixels) * group_;
    args.group = group_;
    args.pixel_step = view.stride[3];
    kernels_.pool_stage(args);
    block.grads = staged - h_.least * staged_row_ - w_.least * group_;
    block.grad_row = staged_row_;
}

template <class T>
void PoolGatherPlanes<T>::find_codes(int64_t n, int64_t c, int64_t i_begin, int64_t j_begin, uint8_t* staged,
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
void PoolGatherPlanes<T>::run_block(int64_t n, int64_t c, int64_t i_begin, int64_t j_begin,
                                    const Scratch& scratch) const {
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
void PoolGatherPlanes<T>::spread(int64_t n, int64_t c, int64_t i_begin, int64_t j_begin, T* output) const {
    PoolSpreadArgs<T> args{};
    args.grads = grad_output_.at(n, c, i_begin, j_begin);
    args.codes = codes_.at(n, c, i_begin, j_begin);
    args.grad_step = grad_output_.stride[2];
    args.code_step = codes_.stride[2];
    args.rows = std::min(problem_.out_h() - i_begin, block_rows_);
    args.columns = std::min(problem_.out_w() - j_begin, block_columns_);
    args.tap_rows = static_cast<int>(problem_.h.kernel);
    args.output = output;
    args.output_row = grad_input_.stride[2];
    kernels_.pool_spread(args);
}

// Staged or not, every window that a tap names can be read, and so all cells of a phase have the same taps.
template <class T>
void PoolGatherPlanes<T>::sum_block(int64_t n, int64_t c, int64_t i_begin, int64_t j_begin, T* output,
                                    const Scratch& scratch) const {
    const int64_t stride_h = problem_.h.stride, stride_w = problem_.w.stride, output_row = grad_input_.stride[2];
    Block block;
    find_grads(n, c, i_begin, j_begin, scratch.grads, block);
    find_codes(n, c, i_begin, j_begin, scratch.codes, block);
    this->set_rows(block, 0, static_cast<int64_t>(h_.taps.size()), scratch.tap_rows);
    PoolSumArgs<T> pair[2];
    for (const Phase& h : h_.list)
        for (size_t k = 0; k < w_.list.size(); ++k) {
            const Phase& w = w_.list[k];
            PoolSumArgs<T>& args = pair[k % 2];
            this->set_taps(args, h.tap_begin, h.tap_end, w.tap_begin, w.tap_end, scratch.tap_rows);
            args.grad_step = block.grad_row;
            args.code_step = block.code_row;
            args.rows = std::clamp<int64_t>(h.count - i_begin, 0, block_rows_);
            args.columns = std::clamp<int64_t>(w.count - j_begin, 0, block_columns_) * group_;
            args.output = output + h.first * output_row + w.first * grad_input_.stride[3];
            args.output_step = stride_h * output_row;
            if (sums_)
                sum_and_scatter(args, scratch.sums);
            else if (stride_w == 1)
                kernels_.pool_sum(args);
            else if (k == 1)
                kernels_.pool_sum_pairs(pair[0], pair[1]);
        }
}

// For outputs that are not adjacent.
template <class T>
void PoolGatherPlanes<T>::sum_and_scatter(PoolSumArgs<T>& args, T* sums) const {
    if (args.columns == 0) return;
    T* to = args.output;
    const int64_t row_step = args.output_step, step = problem_.w.stride * grad_input_.stride[3];
    args.output = sums;
    args.output_step = args.columns;
    kernels_.pool_sum(args);
    for (int64_t row = 0; row < args.rows; ++row)
        for (int64_t j = 0; j < args.columns / group_; ++j)
            for (int64_t k = 0; k < group_; ++k) to[row * row_step + j * step + k * grad_input_.stride[1]] = *sums++;
}

template const PoolMethod<PoolBackward<float>>& pool_method<PoolGatherPlanes, PoolBackward<float>>();
template const PoolMethod<PoolBackward<double>>& pool_method<PoolGatherPlanes, PoolBackward<double>>();

}  // namespace convx
