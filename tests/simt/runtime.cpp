// The shim's runtime: one device, always there.
#include "cuda/runtime.h"

namespace convx::cuda {

int device_count() { return 1; }
std::string unavailable_reason() { return ""; }
std::string device_name(int) { return "SIMT shim"; }
DeviceGuard::DeviceGuard(int) {}
DeviceGuard::~DeviceGuard() { (void)before_; }

}  // namespace convx::cuda
