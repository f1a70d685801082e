// From the element type that a problem names to a type.
#pragma once

#include "common/tensor_view.h"

namespace convx {

// Calls work(T{}).
template <class Work>
auto dispatch(DType dtype, const Work& work) {
    return dtype == DType::float32 ? work(float{}) : work(double{});
}

}  // namespace convx
