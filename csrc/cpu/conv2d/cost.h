// What a method does for one image, and what that is predicted to take: the measure by which methods are chosen.
//
// A method counts its `Work` from the problem of one image and the tiles of the kernels. Neither the batch nor the
// threads have a part in it, so that an image has the same bits whatever it is computed with. prices.cpp turns work
// into time: measured for each method on each width of vectors, and of use for a method that nobody has measured yet.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>

#include "common/problem.h"
#include "cpu/conv2d/window_sum.h"

namespace convx {

enum class WorkKind {
    calls,       // of a driver: what it costs to begin
    cycles,      // of the micro-kernel: FMA, or the loads that they wait for, idle lanes included
    tiles,       // begun: sums set to zero, added up, written
    copies,      // vectors moved as they lie
    transposes,  // elements that change places on the way
    runs,        // copies between two jumps
    lines,       // cache lines of the arrays, each once
    weights,     // elements packed
    transforms,  // vectors of Winograd's tiles
    spills,      // cache lines read again from behind L2
};
constexpr size_t work_kinds = 10;
constexpr const char* work_names[work_kinds] = {"calls", "cycles", "tiles",   "copies",     "transposes",
                                                "runs",  "lines",  "weights", "transforms", "spills"};

struct Work {
    std::array<double, work_kinds> count{};

    double& operator[](WorkKind kind) { return count[static_cast<size_t>(kind)]; }
    double operator[](WorkKind kind) const { return count[static_cast<size_t>(kind)]; }
};

// Nanoseconds on one thread for a method's work, by the prices of these kernels.
double predicted_time(const char* method, ConvPass pass, const Work& work, const Kernels& kernels);

// The tiles of the kernels.
struct TileSizes {
    TileSizes(const Kernels& kernels, DType dtype);

    double lanes;
    double mr, nr_vectors;         // the GEMM's tile
    double dot_rows, dot_columns;  // tiles of dot products
    double sums;                   // accumulators of a direct tile
};

// Cycles of one step of a tile of rows x vectors sums at two FMA and two loads a cycle; a sum waits four cycles for
// the one before.
double step_cycles(double rows, double vectors);

// A matrix of sums cut into tiles: how many there are, and the cycles of one step of all of them.
struct TileGrid {
    TileGrid(double rows, double most_rows, double vectors, double most_vectors);
    double tiles, cycles;
};

// An axis as a sum over windows sees it: the phases of equal numbers of taps together, two at most.
struct PhaseSizes {
    struct Of {
        double count, positions, taps;
    };
    PhaseSizes(const Axis& axis, ConvPass pass);

    Of of[2];
    int size;
    double source;  // pixels that the windows reach, border included
    double dest;
};

// The sizes of forward, the input gradient or the weight gradient for one image.
struct WorkSizes {
    WorkSizes(const ConvProblem& of, ConvPass by, const Kernels& kernels);

    const ConvProblem& problem;
    ConvPass pass;
    TileSizes tile;
    PhaseSizes h, w;
    double groups, channels, rows;  // of a group: summed over, and written (grad_weight: C/G and K/G)
    double taps;
    bool strided;
    // Channels adjacent in memory; a single channel is a plane in any layout.
    bool channels_last, source_last, dest_last;

    double vectors(double elements) const;  // whole ones
    double taps_w() const { return std::max(w.of[0].taps, 1.0); }
    double source() const { return groups * channels * h.source * w.source; }
    double dest() const { return groups * rows * h.dest * w.dest; }
    // What every method has: the call, the arrays and the weights.
    Work common() const;
    // Adds the copy of the source into a padded tile, its channels apart.
    void add_padded_tile(Work& work) const;
    // Adds the way of the result out of sums in vectors of pixels, or of channels.
    void add_result(Work& work, bool vectors_of_channels) const;
    // Calls f(count, pixel rows, pixel columns, taps) for all phases.
    template <class F>
    void for_phases(F f) const {
        for (int i = 0; i < h.size; ++i)
            for (int j = 0; j < w.size; ++j)
                f(h.of[i].count * w.of[j].count, h.of[i].positions, w.of[j].positions, h.of[i].taps * w.of[j].taps);
    }
};

}  // namespace convx
