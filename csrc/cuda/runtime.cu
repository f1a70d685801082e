#include "cuda/runtime.h"

#include <cuda_runtime.h>

#include <stdexcept>

namespace convx::cuda {

namespace {

void check(cudaError_t error) {
    if (error != cudaSuccess) throw std::runtime_error(std::string("CUDA: ") + cudaGetErrorString(error));
}

}  // namespace

int device_count() {
    int count = 0;
    return cudaGetDeviceCount(&count) == cudaSuccess ? count : 0;
}

std::string unavailable_reason() {
    int count = 0;
    const cudaError_t error = cudaGetDeviceCount(&count);
    if (error == cudaErrorInsufficientDriver)
        return "no NVIDIA driver is installed, or it is older than CUDA " + std::to_string(CUDART_VERSION / 1000) +
               "." + std::to_string(CUDART_VERSION % 1000 / 10);
    if (error != cudaSuccess) return cudaGetErrorString(error);
    return count > 0 ? "" : "the driver finds no device";
}

std::string device_name(int device) {
    cudaDeviceProp properties;
    check(cudaGetDeviceProperties(&properties, device));
    return std::string(properties.name) + ", compute capability " + std::to_string(properties.major) + "." +
           std::to_string(properties.minor);
}

DeviceGuard::DeviceGuard(int device) {
    int current = -1;
    check(cudaGetDevice(&current));
    if (current == device) return;
    check(cudaSetDevice(device));
    before_ = current;
}

DeviceGuard::~DeviceGuard() {
    if (before_ >= 0) cudaSetDevice(before_);
}

}  // namespace convx::cuda
