// Every check of every operation stands here and in check.cpp: from what the user said to a resolved Problem, or an
// error that names the operation, the argument, what it got and what it expected. Behind this, nothing is doubted.
#pragma once

#include <optional>
#include <stdexcept>
#include <string>

#include "common/problem.h"
#include "common/shape.h"

namespace convx {

// Bad shapes and options. Python sees convx.ShapeError, which is a ValueError and a RuntimeError.
struct ShapeError : std::runtime_error {
    using std::runtime_error::runtime_error;
};
// A wrong type or dtype. Python sees TypeError.
struct TypeError : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// What is known of an array before it is used. `shape` is the user's, in the user's layout.
struct ArrayInfo {
    const char* name;
    DType dtype;
    Shape shape;
};

using Pair = std::array<int64_t, 2>;  // height, width

constexpr int64_t size_limit = int64_t{1} << 40;  // keeps every sum and product of an axis far from overflow

struct PaddingOption {
    enum class Rule { explicit_sides, same, same_lower };
    Rule rule = Rule::explicit_sides;
    std::array<Pair, 2> sides{};  // {top, bottom}, {left, right}
};

struct ConvOptions {
    Pair stride{1, 1};
    PaddingOption padding;
    Pair dilation{1, 1};
    int64_t groups = 1;
    std::array<PaddingMode, 2> padding_mode{};
    double padding_value = 0.0;
    bool relu = false;
    bool channels_last = false;
    Algorithm algorithm = Algorithm::automatic;
};

struct ConvTransposeOptions {
    ConvOptions conv;  // without a padding mode
    Pair output_padding{};
};

struct PoolOptions {
    Pair kernel{1, 1};
    std::optional<Pair> stride;  // the kernel where not given
    PaddingOption padding;
    Pair dilation{1, 1};
    bool ceil_mode = false;
    bool channels_last = false;
    const char* prefix = "";  // of these options' names in messages: "pool_" in the fused operation
};

// A resolved problem, and whether the input came without its batch axis.
template <class Problem>
struct Checked {
    Problem problem;
    bool unbatched;
};

Checked<ConvProblem> check_conv2d(const std::string& op, const ArrayInfo& input, const ArrayInfo& weight,
                                  const ArrayInfo* bias, const ConvOptions& options);
Checked<ConvTransposeProblem> check_conv_transpose2d(const std::string& op, const ArrayInfo& input,
                                                     const ArrayInfo& weight, const ArrayInfo* bias,
                                                     const ConvTransposeOptions& options);
Checked<PoolProblem> check_max_pool2d(const std::string& op, const ArrayInfo& input, const PoolOptions& options);
// The pooling of a convolution's output, with codes.
PoolProblem check_pool_behind(const std::string& op, const Checked<ConvProblem>& conv, const PoolOptions& options);
Checked<FusedProblem> check_conv2d_relu_max_pool2d(const std::string& op, const ArrayInfo& input,
                                                   const ArrayInfo& weight, const ArrayInfo* bias,
                                                   const ConvOptions& conv, const PoolOptions& pool);

// Parts of the above that a layer asks for before it has a weight.
void check_positive(const std::string& op, const char* prefix, const char* name, const Pair& pair);
void check_groups(const std::string& op, int64_t groups, int64_t in_channels, int64_t out_channels);

// The mask of ReLU: one bit for each of `elements`.
void check_relu_mask(const std::string& op, const Shape& mask, int64_t elements);
constexpr int64_t relu_mask_bytes(int64_t elements) { return elements / 8 + (elements % 8 != 0); }
void check_codes_fit(const std::string& op, const PoolProblem& problem);
void check_dtype(const std::string& op, const ArrayInfo& array, const ArrayInfo& like);
void check_shape(const std::string& op, const ArrayInfo& array, const Shape& expected);

// One `shape` for each image of a batch; an image without a batch axis has one without it.
Shape per_sample_shape(int64_t batch, const Shape& shape, bool unbatched);

// The user's shape of a tensor of the problem: layout applied, batch axis dropped where the input had none.
Shape user_shape(const std::array<int64_t, 4>& nchw, bool channels_last, bool unbatched);

std::string shape_text(const Shape& shape);
const char* dtype_name(DType dtype);

}  // namespace convx
