// The few things that the CUDA runtime is asked besides launches.
#pragma once

#include <string>

namespace convx::cuda {

// How many devices can be used, 0 with a reason where there is none; never throws, needs no driver.
int device_count();
std::string unavailable_reason();
std::string device_name(int device);

// Makes a device current for the calling thread, and the one before again at the end.
class DeviceGuard {
public:
    explicit DeviceGuard(int device);
    ~DeviceGuard();
    DeviceGuard(const DeviceGuard&) = delete;
    DeviceGuard& operator=(const DeviceGuard&) = delete;

private:
    int before_ = -1;  // none: nothing to restore
};

}  // namespace convx::cuda
