// Rows of a plane as the taps of a depthwise window see them: vectors of columns straight out of the source.
//
// Nothing is staged: a tap is an unaligned load, whose lanes beyond the image are masked where the vector touches its
// first or last column, and rows outside the image are read from a row of zeros. With stride 2 two loads are taken
// apart into even and odd columns, in whatever order of lanes is quick; in_order() puts a sum right in the end.
#pragma once

namespace {

// Which loads of a vector of columns may look beyond the image (RowTaps::is_masked).
enum class Edge { none, left, right, both, any };

template <Edge value>
struct EdgeOf {
    static constexpr Edge edge = value;
};

// What the taps of one row see.
template <class T, int kernel, int stride>
struct RowLoads {
    static constexpr int lanes = VecOf<T>::lanes;
    // A load is a tap for stride 1; two loads hold two taps for stride 2.
    static constexpr int count = stride == 1 ? kernel : (kernel + 1) / 2 * 2;
    static constexpr int distance(int i) { return stride == 1 ? i : i / 2 * 2 + i % 2 * lanes; }

    static constexpr bool is_masked(Edge edge, int i) {
        if (edge == Edge::none || edge == Edge::any) return edge == Edge::any;
        const bool left = stride == 1 ? i < kernel / 2 : i == 0;
        const bool right = stride == 1 ? i > kernel / 2 : i % 2 == 1;
        return (left && edge != Edge::right) || (right && edge != Edge::left);
    }
};

// Of a vector whose first tap begins at the source column `first`.
template <class T, int kernel, int stride>
Edge find_edge(int64_t first, int64_t width) {
    using Loads = RowLoads<T, kernel, stride>;
    constexpr Edge edges[] = {Edge::none, Edge::left, Edge::right, Edge::both};
    for (const Edge edge : edges) {
        bool fits = true;
        for (int i = 0; i < Loads::count; ++i) {
            const int64_t at = first + Loads::distance(i);
            fits &= Loads::is_masked(edge, i) || (at >= 0 && at + Loads::lanes <= width);
        }
        if (fits) return edge;
    }
    return Edge::any;
}

template <class T, int kernel, int stride, Edge edge>
struct RowTaps {
    using Loads = RowLoads<T, kernel, stride>;
    int64_t first;  // source column of the first lane of the first tap
    Mask<T> inside[Loads::count];

    // Only `used` lanes of a tap, the others being zero.
    RowTaps(int64_t first_, int64_t width, int64_t used = VecOf<T>::lanes) : first(first_) {
        constexpr int lanes = VecOf<T>::lanes;
        const auto lane = [](int64_t at) { return static_cast<int>(at < 0 ? 0 : at < lanes ? at : lanes); };
#pragma GCC unroll 6
        for (int i = 0; i < Loads::count; ++i) {
            const int64_t at = first + Loads::distance(i);
            const int64_t tap_end = first + i / stride * stride + stride * used,
                          end = width < tap_end ? width : tap_end;
            if (Loads::is_masked(edge, i)) inside[i] = lanes_between<T>(lane(-at), lane(end - at));
        }
    }

    // x[s] and, with stride 2, x[s + 1], of the row that begins `first` before p.
    void read(const T* p, int s, Vec<T>* x) const {
        const auto get = [&](int i) {
            const T* from = p + Loads::distance(i);
            return Loads::is_masked(edge, i) ? load(from, inside[i]) : load(from);
        };
        if (stride == 1) {
            x[s] = get(s);
            return;
        }
        const Vec<T> low = get(s), high = get(s + 1);
        x[s] = even_lanes_anyhow(low, high);
        if (s + 1 < kernel) x[s + 1] = odd_lanes_anyhow(low, high);
    }
};

// The rows of a plane one after the other, as they are seen from its column `first`.
template <class T>
struct RowWalk {
    const T *at, *zeros;
    int64_t step, row;
    uint64_t height;

    template <class Job>
    RowWalk(const Job& args, const T* plane, int64_t first, int64_t row_)
        : at(plane + first + row_ * args.source_row), zeros(args.zeros + first), step(args.source_row), row(row_),
          height(static_cast<uint64_t>(args.height)) {}
    const T* next() {
        const T* p = static_cast<uint64_t>(row++) < height ? at : zeros;
        at += step;
        return p;
    }
    void back(int64_t rows) {
        row -= rows;
        at -= rows * step;
    }
};

}  // namespace
