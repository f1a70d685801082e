// Which instruction set runs: an ordered list of kernel tables and one override.
#pragma once

#include <string>
#include <vector>

#include "cpu/kernels/kernel_set.h"

namespace convx {

// The kernels in use: the first registered set that this machine can run, or the one that CONVX_ISA names.
// Throws std::runtime_error where CONVX_ISA names none.
const Kernels& active_kernels();

// Why that one.
std::string isa_reason();

// Names of all sets that this machine can run, best first.
std::vector<std::string> available_isas();

// Switches the process to another set; throws std::invalid_argument for a name that is not available.
void set_isa(const std::string& name);

}  // namespace convx
