// What algorithm="auto" means in this process: "auto", or "direct" after set_default_algorithm("direct") or with
// CONVX_ALGORITHM=direct in the environment. It is read where arguments are, so every plan below has it in its problem.
#pragma once

#include <string>

#include "common/problem.h"

namespace convx {

Algorithm default_algorithm();  // throws std::runtime_error where CONVX_ALGORITHM names none
void set_default_algorithm(Algorithm algorithm);
std::string default_algorithm_reason();

}  // namespace convx
