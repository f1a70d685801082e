// The methods of each pass of conv2d, and the choice between them.
#pragma once

#include "cpu/conv2d/method.h"

namespace convx {

// The method that computes a pass of a problem: the one that the problem names, else the supported one of least
// predicted time (cost.h). Depends on nothing but the problem of one image and the instruction set: never on the batch,
// the threads or the strides of arrays.
const MethodInfo& choose_method(const ConvProblem& problem, ConvPass pass, const Kernels& kernels);

// The names of all methods, each once.
std::vector<const char*> method_names();

// Raises ShapeError where algorithm= names a method of this pass that does not take the problem. (A method of other
// passes stands for its family.)
void expect_method(const std::string& op, const ConvProblem& problem, ConvPass pass);

// Its traits, with the active instruction set.
const Traits& traits_of(const ConvProblem& problem, ConvPass pass);

template <class T>
const Method<WindowSum<T>>& choose_method(const WindowSum<T>& sum, const Kernels& kernels);
template <class T>
const Method<PixelSum<T>>& choose_method(const PixelSum<T>& sum, const Kernels& kernels);

// By the chosen method, or by the reference where that would multiply zeros by inf or NaN (conv2d.cpp).
template <class T>
void compute(const WindowSum<T>& sum);
template <class T>
void compute(const PixelSum<T>& sum);

// The same for images [first, first + count) or the weight gradient, by a direct method: what transforms spoil.
template <class T>
void compute_directly(const WindowSum<T>& sum, int64_t first, int64_t count);
template <class T>
void compute_directly(const PixelSum<T>& sum);

// The plan of what compute() would run.
PassPlan plan_conv(const ConvProblem& problem, ConvPass pass, const Kernels& kernels, int threads);

}  // namespace convx
