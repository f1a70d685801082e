// Weights in the form in which the plan's method reads them, made once for many forward passes.
//
// Every other call packs its weights anew: nothing beside the arithmetic where a batch is large, but as much as the
// rest of the call where one small image meets many channels. The packed form is used by the calls that would make the
// very same one, and by no others, so results have the same bits with and without it.
#pragma once

#include "cpu/conv2d/plan.h"
#include "cpu/workspace.h"

namespace convx {

// All that decides the packed form of given weights.
struct PackedForm {
    ConvMethod method;
    const Kernels* kernels;  // the tile is the width of panels
    int64_t groups;
    bool channels_last;  // which operand has the rows of the tile
    bool few_tiles;      // which nest of Winograd's method reads them

    bool operator==(const PackedForm& other) const {
        return method == other.method && kernels == other.kernels && groups == other.groups &&
               channels_last == other.channels_last && few_tiles == other.few_tiles;
    }
};

template <class T>
struct PackedWeight {
    PackedForm form;
    Workspace data;       // empty where the method has nothing to make ahead
    bool finite = false;  // no weight is infinite or NaN

    const T* weights() const { return static_cast<const T*>(data.data()); }
};

// For the forward pass of the problem, by the method that choose_method says.
template <class T>
PackedWeight<T> pack_weight(const ConvProblem& problem, TensorView<const T> weight);

// conv2d_forward, with the weights it was given once more in packed form.
template <class T>
void conv2d_forward_packed(const ConvProblem& problem, TensorView<const T> input, TensorView<const T> weight,
                           TensorView<const T> bias, TensorView<T> output, const PackedWeight<T>& packed);

}  // namespace convx
