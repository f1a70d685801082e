// Weights in the form in which the plan's method reads them, made once for many forward passes.
//
// Every other call packs its weights anew: nothing beside the arithmetic where a batch is large, but as much as the
// rest of the call where one small image meets many channels. The packed form is used by the calls that would make the
// very same one, and by no others, so results have the same bits with and without it.
#pragma once

#include "common/problem.h"
#include "cpu/kernels/kernel_set.h"
#include "cpu/runtime/workspace.h"

namespace convx {

struct MethodInfo;

template <class T>
struct PackedWeight {
    const MethodInfo* method;
    const Kernels* kernels;  // the tile is the width of panels
    int64_t groups;
    bool channels_last;   // which operand has the rows of the tile
    Workspace data;       // empty where the method has nothing to make ahead
    bool finite = false;  // no weight is infinite or NaN

    const T* weights() const { return static_cast<const T*>(data.data()); }
    bool fits(const MethodInfo& by, const Kernels& with, const ConvProblem& problem) const {
        return weights() && method == &by && kernels == &with && groups == problem.groups &&
               channels_last == problem.channels_last;
    }
};

// For the forward pass of the problem, by the method that is chosen for it.
template <class T>
PackedWeight<T> pack_weight(const ConvProblem& problem, TensorView<const T> weight);

}  // namespace convx
