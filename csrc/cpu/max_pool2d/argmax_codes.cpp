#include "cpu/max_pool2d/argmax_codes.h"

#include <cstdlib>

#include "cpu/max_pool2d/driver.h"
#include "cpu/max_pool2d/windows.h"

namespace convx {

namespace {

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

    // True if legal(row, rows) is for all rows, which are read in parallel.
    template <class Legal>
    bool all(const PoolProblem& problem, const Legal& legal) const {
        const PoolUnits units(count(), cells());
        return run_units(pool_tasks(problem, units), units,
                         [&](int64_t begin, int64_t end, ScratchParts) { return legal(begin, end - begin); });
    }

    const TensorView<const U> view;
    int64_t channels = 1;
    bool adjacent, stacked;
};

}  // namespace

// A code is legal if its tap lies inside the image. That of a whole window is below the number of taps; rows of windows
// that lack taps have theirs in an interval, because those that they have are neighbours; columns go by a table.
bool codes_are_legal(const PoolProblem& problem, const TensorView<const uint8_t>& codes) {
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
    return view.all(problem, [&](int64_t first_row, int64_t rows) {
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

Indices inspect_indices(const PoolProblem& problem, const TensorView<const int64_t>& indices, bool cut) {
    const Axis& h = problem.h;
    const int64_t columns = problem.w.input, rows_per_plane = problem.out_h(), windows = problem.out_w();
    const int64_t last_cell = h.input * columns - 1;
    const bool empties = has_empty_window(h) || has_empty_window(problem.w);
    const std::vector<WindowRun> row_runs = window_runs(h), column_runs = window_runs(problem.w);
    const Rows<int64_t> view(indices);
    std::atomic<bool> local{true};
    const bool legal = view.all(problem, [&](int64_t first_row, int64_t rows) {
        // The sign bit of index - least or most - index tells, without a comparison, which 64-bit SSE2 lacks.
        const auto are_between = [&](int64_t row, int64_t count, int64_t pixel, int64_t pixels, int64_t least,
                                     int64_t most) {
            uint64_t signs = 0;
            view.for_each(row, count, pixel, pixels, [&](const int64_t* cells, int64_t n) {
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
            if (!are_between(row, 1, 0, windows, std::max<int64_t>(0, h.position(p, 0)) * columns, most))
                local.store(false, std::memory_order_relaxed);
        }
        if (!empties) return are_between(first_row, rows, 0, windows, 0, last_cell);
        for (int64_t row = first_row; row < end; ++row)
            for (const WindowRun& run : column_runs) {
                const bool empty = run.is_empty() || run_of(row_runs, row % rows_per_plane).is_empty();
                const int64_t least = empty ? no_gradient_index : 0;
                if (!are_between(row, 1, run.begin, run.end - run.begin, least, last_cell)) return false;
            }
        return true;
    });
    return !legal ? Indices::illegal : local.load() ? Indices::local : Indices::anywhere;
}

}  // namespace convx
