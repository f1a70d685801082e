// The printable plan of one pass, for convx.explain: what would run, and why.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace convx {

// Whether a method computes a pass of a problem; where it does not, why.
struct Verdict {
    const char* refusal = nullptr;
    explicit operator bool() const { return !refusal; }
};

// One of the methods of a pass.
struct Candidate {
    std::string name;
    bool supported;
    std::string reason;       // why it was chosen, or why not
    double microseconds = 0;  // predicted for one image on one thread; 0 where it is not supported or has no rival
    std::vector<std::pair<std::string, double>> work;  // of what that is the sum (conv2d/cost.h)
};

struct PassPlan {
    std::string pass;  // forward, grad_input, ...
    std::string algorithm;
    std::string isa;
    std::string tile;   // what stays in registers
    std::string block;  // what one task works on
    std::string reason;
    int64_t tasks = 1;
    int64_t threads = 1;
    int64_t scratch_bytes = 0;
    int64_t flops = 0;
    int64_t bytes = 0;  // arrays, each read or written once
    std::vector<Candidate> candidates;
};

}  // namespace convx
