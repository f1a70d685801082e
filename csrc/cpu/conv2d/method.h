// A method of conv2d: what it is called, what it can compute, what it costs, and the functions that plan, run and
// explain it. A method is one file; methods.cpp has the lists in which the passes look for theirs.
#pragma once

#include "cpu/conv2d/conv2d.h"
#include "cpu/conv2d/cost.h"
#include "cpu/conv2d/window_sum.h"
#include "cpu/pass_plan.h"
#include "cpu/runtime/run_tasks.h"

namespace convx {

// What callers may ask about a method instead of its name.
struct Traits {
    Algorithm family = Algorithm::direct;  // direct: sums of products of the values themselves
    bool whole_images = false;             // leaves single images to another method, by what is in them
    bool multiplies_border = true;         // by the zeros outside the image, instead of skipping them
    bool own_parallelism = false;          // one call after the other is faster than calls side by side
    double multiplications = 1;            // of those of the sum itself
};

struct MethodInfo {
    const char* name;
    Traits traits;
    Verdict (*supports)(const ConvProblem&, ConvPass);
    Work (*work)(const WorkSizes&);  // for one image: cost.h
};

// `Sum` is WindowSum<T> or PixelSum<T>.
template <class Sum>
struct Method : MethodInfo {
    using T = typename Sum::Element;

    void (*run)(const Sum&, const KernelSet<T>&);
    void (*describe)(const Sum&, const KernelSet<T>&, int threads, PassPlan&);
    // The weight in the form in which `run` reads it; null where there is none.
    void (*pack)(const Sum&, const KernelSet<T>&, PackedWeight<T>&);
};

// The row of the method M, defined in its file by method_row.h.
template <class M, class Sum>
const Method<Sum>& method_row();

}  // namespace convx
