// The loop nests behind max_pool2d.h: each gives the same bits, max_pool2d.cpp and backward.cpp choose.
#pragma once

#include "cpu/max_pool2d/max_pool2d.h"

namespace convx {

// Where results go: indices and codes only where their data is not null.
template <class T>
struct PoolOutputs {
    TensorView<T> values;
    TensorView<int64_t> indices;
    TensorView<uint8_t> codes;
};

// Channels are adjacent (NHWC), and at least a vector of them.
template <class T>
void max_pool2d_channels(const PoolProblem& problem, const TensorView<const T>& input, const PoolOutputs<T>& outputs);

// Any planes; `group` adjacent channels are the elements of one column.
template <class T>
void max_pool2d_planes(const PoolProblem& problem, const TensorView<const T>& input, const PoolOutputs<T>& outputs,
                       int64_t group);

// True if rows follow one another without gaps; views without data have none.
template <class U>
bool plane_is_dense(const TensorView<U>& view) {
    return !view.data || (view.stride[3] == 1 && view.stride[2] == view.shape[3]);
}

// Dense planes of a few thousand elements, a vector of planes at a time.
template <class T>
bool max_pool2d_is_narrow(const PoolProblem& problem, const TensorView<const T>& input, const PoolOutputs<T>& outputs);
template <class T>
void max_pool2d_narrow(const PoolProblem& problem, const TensorView<const T>& input, const PoolOutputs<T>& outputs);

// The gradient. Codes are legal; indices lie in the plane, and with `local` in rows that their windows cover.
template <class T>
bool scatter_cuts_planes(const TensorView<T>& grad_input);  // whether `local` matters
template <class T, class Chosen>
void max_pool2d_scatter(const PoolProblem& problem, const TensorView<const T>& grad_output,
                        const TensorView<const Chosen>& chosen, const TensorView<T>& grad_input, bool local);

// The same, a few dense planes side by side, with a look at what was chosen: false if an index lies outside its plane
// or a code is that of no tap inside the image, and grad_input is unspecified then.
template <class T, class Chosen>
bool max_pool2d_scatters_planes(const PoolProblem& problem, const TensorView<const T>& grad_output,
                                const TensorView<const Chosen>& chosen, const TensorView<T>& grad_input);
template <class T, class Chosen>
bool max_pool2d_scatter_planes(const PoolProblem& problem, const TensorView<const T>& grad_output,
                               const TensorView<const Chosen>& chosen, const TensorView<T>& grad_input);

// By indices, as long as all of them name taps of their windows inside the image; false if one does not or this is not
// for the problem: then nothing is known of them, and grad_input is unspecified.
template <class T>
bool max_pool2d_gather_by_indices(const PoolProblem& problem, const TensorView<const T>& grad_output,
                                  const TensorView<const int64_t>& indices, const TensorView<T>& grad_input);
template <class T>
void max_pool2d_gather(const PoolProblem& problem, const TensorView<const T>& grad_output,
                       const TensorView<const uint8_t>& codes, const TensorView<T>& grad_input);
template <class T>
bool max_pool2d_gather_is_narrow(const PoolProblem& problem, const TensorView<const T>& grad_output,
                                 const TensorView<const uint8_t>& codes, const TensorView<T>& grad_input);
template <class T>  // looks at the codes by itself: false where one is illegal
bool max_pool2d_gather_narrow(const PoolProblem& problem, const TensorView<const T>& grad_output,
                              const TensorView<const uint8_t>& codes, const TensorView<T>& grad_input);

}  // namespace convx
