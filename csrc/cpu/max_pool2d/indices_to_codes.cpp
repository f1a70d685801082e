// The gradient of max-pooling by indices that name taps of their windows, as those of max_pool2d do: they become codes,
// a few images at a time, and a method by codes sums. Where channels are adjacent that is 2 to 3 times as fast as a
// scatter.
#include <limits>
#include <vector>

#include "cpu/max_pool2d/driver.h"
#include "cpu/max_pool2d/windows.h"

namespace convx {

// Windows whose indices are adjacent, and what the kernel needs to know of each.
template <class T>
struct WindowRow {
    void append(const PoolProblem& problem, int64_t p, int64_t q, const WindowRun& rows, const WindowRun& columns) {
        const int64_t origin = problem.h.position(p, 0) * problem.w.input + problem.w.position(q, 0);
        if (ramp.empty()) first_origin = origin;
        ramp.push_back(static_cast<int32_t>(origin - first_origin));
        const int64_t limits[4] = {rows.tap_begin - 1, rows.tap_end, columns.tap_begin - 1, columns.tap_end};
        for (int k = 0; k < 4; ++k) limit[k].push_back(static_cast<T>(limits[k]));
    }
    // Lanes behind the last window accept everything.
    void finish() {
        count = static_cast<int64_t>(ramp.size());
        ramp.resize(ramp.size() + widest_vector);
        for (int k = 0; k < 4; ++k) limit[k].resize(ramp.size(), (k % 2 ? 1 : -1) * std::numeric_limits<T>::infinity());
    }

    int64_t first_origin = 0, count = 0;
    std::vector<int32_t> ramp;
    std::vector<T> limit[4];
};

template <class T>
class PoolIndicesToCodes {
    static constexpr int64_t block_codes = int64_t{4} << 20;  // of the images that go through together
    static constexpr int64_t most_codes = int64_t{64} << 20;  // of one image
    static constexpr int64_t table_windows = 1024;            // of a plane that goes through as one row

public:
    static constexpr const char* name = "indices-to-codes";

    static Verdict supports(const PoolBackward<T>& pass, const KernelSet<T>&) {
        const PoolProblem& problem = pass.problem;
        if (!pass.indices.data) return {"needs indices"};
        if (pass.indices.stride[channels_inside(problem) ? 1 : 3] != 1) return {"needs adjacent indices"};
        if (problem.w.dilation != 1) return {"needs windows of adjacent columns"};
        if (problem.taps() > max_code_taps) return {"needs windows of at most 255 taps"};
        if (problem.h.extent() * problem.w.input + problem.out_w() * problem.w.stride >= int64_t{1} << 23)
            return {"needs distances in a window that are exact in float32"};
        return {};
    }
    // In planes a scatter is faster (832 of 14x14 at stride 2: 130 us on four threads against 410), but for large ones
    // whose windows do not overlap: those are bound by the memory that it goes through twice.
    static bool suits(const PoolBackward<T>& pass, const KernelSet<T>&) {
        const PoolProblem& problem = pass.problem;
        return (channels_inside(problem) || (!windows_overlap(problem) && problem.w.input > 32)) &&
               problem.taps() <= 25 && image_codes(problem) <= most_codes;
    }

    PoolIndicesToCodes(const PoolBackward<T>& pass, const KernelSet<T>& kernels) : pass_(pass), kernels_(kernels) {
        const auto append = [&](int64_t p, int64_t q, const WindowRun& rows, const WindowRun& columns) {
            rows_.back().append(problem_, p, q, rows, columns);
        };
        const auto begin_row = [&] { rows_.emplace_back(); };
        if (inside_) {
            for (const WindowRun& rows : row_runs_)
                for (const WindowRun& columns : column_runs_) {
                    begin_row();
                    for (int64_t c = 0; c < problem_.channels; ++c) append(rows.begin, columns.begin, rows, columns);
                }
        } else {
            if (whole_planes_) begin_row();
            for (const WindowRun& rows : row_runs_) {
                if (!whole_planes_) begin_row();
                for (int64_t p = rows.begin; p < (whole_planes_ ? rows.end : rows.begin + 1); ++p)
                    for (int64_t q = 0; q < problem_.out_w(); ++q) append(p, q, rows, run_of(column_runs_, q));
            }
        }
        for (WindowRow<T>& row : rows_) row.finish();
    }

    TaskPlan tasks() const {
        TaskPlan plan = pool_tasks(problem_, units_of(images_));
        plan.shared_bytes = images_ * image_codes(problem_);
        return plan;
    }
    void describe(PassPlan& plan) const {
        plan.tile = std::to_string(kernels_.lanes) + (inside_ ? " channels" : " windows");
        plan.block = std::to_string(images_) + " images";
        plan.reason = "indices become codes, which another method reads";
    }

    // Not applicable where an index names no tap of its window.
    Outcome run() const {
        const Workspace workspace(static_cast<size_t>(images_ * image_codes(problem_)));
        PoolProblem part = problem_;
        for (int64_t n = 0; n < problem_.batch; n += images_) {
            part.batch = std::min(images_, problem_.batch - n);
            const auto codes =
                dense_view(static_cast<uint8_t*>(workspace.data()), part.output_shape(), problem_.channels_last);
            if (!convert(pass_.indices.images(n, part.batch), codes)) return Outcome::not_applicable;
            max_pool2d_backward<T>(part, pass_.grad_output.images(n, part.batch), codes,
                                   pass_.grad_input.images(n, part.batch));
        }
        return Outcome::done;
    }

private:
    static bool channels_inside(const PoolProblem& problem) { return problem.channels_last && problem.channels > 1; }
    static int64_t image_codes(const PoolProblem& problem) {
        return problem.channels * problem.out_h() * problem.out_w();
    }

    // Planes of all images, or rows of windows of all of them.
    PoolUnits units_of(int64_t images) const {
        const int64_t planes = inside_ ? problem_.out_h() : problem_.channels;
        return {images * planes, image_codes(problem_) / planes};
    }

    bool convert(const TensorView<const int64_t>& indices, const TensorView<uint8_t>& codes) const {
        const int64_t planes = inside_ ? problem_.out_h() : problem_.channels;
        const PoolUnits units = units_of(indices.shape[0]);
        return run_units(pool_tasks(problem_, units), units, [&](int64_t begin, int64_t end, ScratchParts) {
            bool all = true;
            for (int64_t unit = begin; unit < end; ++unit)
                all &= inside_ ? convert_row(indices, codes, unit / planes, unit % planes)
                               : convert_plane(indices, codes, unit / planes, unit % planes);
            return all;
        });
    }

    bool convert_plane(const TensorView<const int64_t>& indices, const TensorView<uint8_t>& codes, int64_t n,
                       int64_t c) const {
        if (whole_planes_) return convert_rows(rows_[0], indices, codes, {n, c, 0, 0}, 1, 2, 0);
        bool all = true;
        for (size_t i = 0; i < row_runs_.size(); ++i)
            all &= convert_rows(rows_[i], indices, codes, {n, c, row_runs_[i].begin, 0},
                                row_runs_[i].end - row_runs_[i].begin, 2, 0);
        return all;
    }

    // The pixels of a row, whose channels are adjacent.
    bool convert_row(const TensorView<const int64_t>& indices, const TensorView<uint8_t>& codes, int64_t n,
                     int64_t p) const {
        const WindowRun& rows = run_of(row_runs_, p);
        const size_t first = static_cast<size_t>(&rows - row_runs_.data()) * column_runs_.size();
        bool all = true;
        for (size_t i = 0; i < column_runs_.size(); ++i)
            all &= convert_rows(rows_[first + i], indices, codes, {n, 0, p, column_runs_[i].begin},
                                column_runs_[i].end - column_runs_[i].begin, 3,
                                (p - rows.begin) * problem_.h.stride * problem_.w.input);
        return all;
    }

    // `count` rows of windows like `row` along an axis, whose first one lies `shift` behind it.
    bool convert_rows(const WindowRow<T>& row, const TensorView<const int64_t>& indices,
                      const TensorView<uint8_t>& codes, const std::array<int64_t, 4>& first, int64_t count, size_t axis,
                      int64_t shift) const {
        const auto [n, c, p, q] = first;
        PoolIndexArgs<T> args{};
        args.indices = indices.at(n, c, p, q);
        args.codes = codes.at(n, c, p, q);
        args.rows = count;
        args.columns = row.count;
        args.index_step = indices.stride[axis];
        args.code_step = codes.stride[axis];
        args.index_origin = row.first_origin + shift;
        args.index_row = axis == 2 ? problem_.h.stride * problem_.w.input : problem_.w.stride;
        args.index_ramp = row.ramp.data();
        args.below_tap_row = row.limit[0].data();
        args.above_tap_row = row.limit[1].data();
        args.below_tap_column = row.limit[2].data();
        args.above_tap_column = row.limit[3].data();
        args.tap_rows = static_cast<int>(problem_.h.kernel);
        args.tap_columns = static_cast<T>(problem_.w.kernel);
        args.tap_row_distance = static_cast<T>(problem_.h.dilation * problem_.w.input);
        return kernels_.pool_indices_to_codes(args);
    }

    const PoolBackward<T> pass_;
    const PoolProblem& problem_ = pass_.problem;
    const KernelSet<T>& kernels_;
    const bool inside_ = channels_inside(problem_);
    const bool whole_planes_ = !inside_ && plane_is_dense(pass_.indices) &&
                               problem_.out_h() * problem_.out_w() <= table_windows;  // a plane is one row
    const int64_t images_ = std::clamp<int64_t>(block_codes / image_codes(problem_), 1, problem_.batch);
    const std::vector<WindowRun> row_runs_ = window_runs(problem_.h), column_runs_ = window_runs(problem_.w);
    std::vector<WindowRow<T>> rows_;  // for all planes; for each run of rows; or for each pair of runs
};

template const PoolMethod<PoolBackward<float>>& pool_method<PoolIndicesToCodes, PoolBackward<float>>();
template const PoolMethod<PoolBackward<double>>& pool_method<PoolIndicesToCodes, PoolBackward<double>>();

}  // namespace convx
