// What algorithm= may say: a family of methods, or one method by its name.
#pragma once

#include <string_view>
#include <vector>

namespace convx {

// Values from first_method on are methods, in the order in which a backend adds their names. `automatic` is resolved by
// the choice among methods (cpu/conv2d/methods.h), from the problem of one image alone.
enum class Algorithm : int { automatic, direct, winograd, first_method };

inline bool names_method(Algorithm algorithm) { return algorithm >= Algorithm::first_method; }

// By value: "auto", "direct", "winograd", then the methods of this module.
const std::vector<const char*>& algorithm_names();
void add_methods(const std::vector<const char*>& names);  // when the module is loaded

// False where nothing has this name.
bool find_algorithm(std::string_view name, Algorithm& algorithm);

}  // namespace convx
