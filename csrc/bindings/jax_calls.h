// What the handlers of convx._jax share: an XLA FFI call as arrays, views and options.
//
// XLA calls a handler from one of its own threads, without Python. Buffers are dense and in row-major order of the
// user's axes; the shapes of results were resolved when the function was traced, by the same checks that run here
// again.
#pragma once

#include <cfenv>
#include <new>

#include "bindings/entry_points.h"
#include "xla/ffi/api/ffi.h"

namespace convx::jax {

namespace ffi = ::xla::ffi;

// Those of convx._cpu; set before the first handler is registered.
extern const CpuEntryPoints* cpu;

template <class T>
const CpuPasses<T>& passes() {
    if constexpr (sizeof(T) == sizeof(float))
        return cpu->float32;
    else
        return cpu->float64;
}

struct Buffer {
    ArrayInfo info;
    void* data;
    ffi::DataType type;
};

class Call {
public:
    Call(ffi::RemainingArgs arguments, ffi::RemainingRets results, ffi::Dictionary attributes)
        : arguments_(arguments), results_(results), attributes_(attributes) {}

    size_t arguments() const { return arguments_.size(); }
    size_t results() const { return results_.size(); }
    Buffer argument(size_t i, const char* name) const;
    Buffer result(size_t i, const char* name) const;

    // The attributes that python/convx/jax/_calls.py writes; those of pooling begin with `prefix` in the fused block.
    ConvOptions conv_options() const;
    PoolOptions pool_options(const std::string& prefix = "") const;

private:
    template <class T>
    T attribute(const std::string& name) const;
    Pair pair(const std::string& name) const;
    PaddingOption padding(const std::string& name) const;

    ffi::RemainingArgs arguments_;
    ffi::RemainingRets results_;
    ffi::Dictionary attributes_;
};

// In logical N, C, H, W order.
template <class T>
TensorView<T> image_view(const Buffer& buffer, bool channels_last) {
    const Shape& s = buffer.info.shape;
    const std::array<int64_t, 4> nchw =
        channels_last ? std::array<int64_t, 4>{s[0], s[3], s[1], s[2]} : std::array<int64_t, 4>{s[0], s[1], s[2], s[3]};
    return {static_cast<T*>(buffer.data), nchw, dense_strides(nchw, channels_last)};
}
template <class T>
TensorView<T> plain_view(const Buffer& buffer) {
    return image_view<T>(buffer, false);
}
template <class T>
TensorView<T> vector_view(const Buffer& buffer) {
    return {static_cast<T*>(buffer.data), {1, buffer.info.shape[0], 1, 1}, {0, 1, 0, 0}};
}

// Calls work(T{}) with the element type.
template <class Work>
void dispatch(DType dtype, const Work& work) {
    if (dtype == DType::float32)
        work(float{});
    else
        work(double{});
}

// The floating-point settings of a program that changed none. XLA's threads flush denormal numbers to zero and convx's
// own do not: results would depend on which thread took a task.
class PlainFloatingPoint {
public:
    PlainFloatingPoint() {
        std::fegetenv(&before_);
        std::fesetenv(FE_DFL_ENV);
    }
    ~PlainFloatingPoint() { std::fesetenv(&before_); }
    PlainFloatingPoint(const PlainFloatingPoint&) = delete;
    PlainFloatingPoint& operator=(const PlainFloatingPoint&) = delete;

private:
    std::fenv_t before_;
};

// A function of a Call as XLA calls it; what it throws becomes the call's error.
template <void (*function)(const Call&)>
ffi::Error run(ffi::RemainingArgs arguments, ffi::RemainingRets results, ffi::Dictionary attributes) {
    const PlainFloatingPoint plain;
    try {
        function(Call(arguments, results, attributes));
    } catch (const std::bad_alloc&) {
        return {ffi::ErrorCode::kResourceExhausted, "convx: scratch memory could not be allocated"};
    } catch (const std::exception& error) {
        return ffi::Error::InvalidArgument(error.what());
    }
    return ffi::Error::Success();
}

template <void (*function)(const Call&)>
XLA_FFI_Error* handler(XLA_FFI_CallFrame* frame) {
    static const auto* const bound =
        ffi::Ffi::Bind().RemainingArgs().RemainingRets().Attrs().To(run<function>).release();
    return bound->Call(frame);
}

void conv2d(const Call& call);
void conv2d_grad_input(const Call& call);
void conv2d_grad_weight(const Call& call);
void conv2d_grad_bias(const Call& call);
void relu(const Call& call);
void relu_backward(const Call& call);
void max_pool2d(const Call& call);
void max_pool2d_backward(const Call& call);
void conv2d_relu_max_pool2d(const Call& call);
void conv2d_relu_max_pool2d_grad_input(const Call& call);
void conv2d_relu_max_pool2d_grad_weight(const Call& call);

}  // namespace convx::jax
