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

// A buffer of these sizes.
Array dense_array(const char* name, const Shape& shape, void* data, DType dtype = DType::float32);

class Call {
public:
    Call(ffi::RemainingArgs arguments, ffi::RemainingRets results, ffi::Dictionary attributes)
        : arguments_(arguments), results_(results), attributes_(attributes) {}

    size_t arguments() const { return arguments_.size(); }
    size_t results() const { return results_.size(); }
    // Codes have one byte an item, indices eight.
    Array argument(size_t i, const char* name) const;
    Array result(size_t i, const char* name) const;

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
