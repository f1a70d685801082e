// Gradients of the weight and the bias of each image by itself, and the squares of their norms: the gradients of a
// batch of one, in every bit.
//
// In arrays that are dense in NCHW order, a weight gradient takes images as groups: N images of C channels in G groups
// lie in memory as one image of N * C channels in N * G groups, whose gradient is that of every image. So a launch
// takes many images. Other arrays (NHWC, views) take a launch for each.
#pragma once

#include "cuda/conv2d/conv2d.h"

namespace convx::cuda {

struct PerSamplePlan {
    ConvPlan pass;            // of `images` images as one; parts are those of one image
    int64_t images = 1;       // of one launch
    int64_t sums_bytes = 0;   // unrounded gradients of these, where only their norms are asked for
    int64_t norm_blocks = 0;  // of one gradient's sum of squares
    int64_t norm_bytes = 0;   // their sums

    int64_t workspace_bytes() const { return pass.workspace_bytes() + sums_bytes + norm_bytes; }
};

// Whether the images of a tensor lie as channels of one.
bool images_are_channels(const Tensor& tensor);

// ConvPass::grad_weight or grad_bias; `joined` where grad_output and input allow it.
PerSamplePlan plan_per_sample(const ConvProblem& problem, ConvPass pass, Precision precision, bool joined, bool norms);

// Either the gradients, dense (N x K x C/G x R x S or N x K), or without these the sums of their squares, N in float64,
// of a plan with norms. grad_bias reads no input.
void per_sample(const ConvProblem& problem, ConvPass pass, const PerSamplePlan& plan, const Tensor& grad_output,
                const Tensor& input, void* gradients, double* norms, void* workspace, Stream stream);

}  // namespace convx::cuda
