#include "common/algorithm.h"

namespace convx {

namespace {

std::vector<const char*>& names() {
    static std::vector<const char*> all{"auto", "direct", "winograd"};
    return all;
}

}  // namespace

const std::vector<const char*>& algorithm_names() { return names(); }

void add_methods(const std::vector<const char*>& methods) {
    names().insert(names().end(), methods.begin(), methods.end());
}

bool find_algorithm(std::string_view name, Algorithm& algorithm) {
    for (size_t i = 0; i < names().size(); ++i)
        if (name == names()[i]) {
            algorithm = static_cast<Algorithm>(i);
            return true;
        }
    return false;
}

}  // namespace convx
