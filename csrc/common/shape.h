// The sizes of an array's axes, kept in place: as vectors, the shapes that one call looks at cost more than its checks.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <initializer_list>

namespace convx {

class Shape {
public:
    static constexpr size_t most_axes = 64;  // NumPy's own limit

    Shape() = default;
    Shape(std::initializer_list<int64_t> sizes) : Shape(sizes.begin(), sizes.end()) {}
    template <class Iterator>
    Shape(Iterator first, Iterator last) : count_(static_cast<size_t>(last - first)) {
        std::copy(first, last, sizes_);
    }
    Shape(const Shape& other) : Shape(other.begin(), other.end()) {}
    Shape& operator=(const Shape& other) {
        count_ = other.count_;
        std::copy(other.begin(), other.end(), sizes_);
        return *this;
    }

    size_t size() const { return count_; }
    void resize(size_t count) { count_ = count; }  // new sizes are not set
    int64_t operator[](size_t axis) const { return sizes_[axis]; }
    int64_t& operator[](size_t axis) { return sizes_[axis]; }
    const int64_t* begin() const { return sizes_; }
    const int64_t* end() const { return sizes_ + count_; }

    bool operator==(const Shape& other) const { return std::equal(begin(), end(), other.begin(), other.end()); }
    bool operator!=(const Shape& other) const { return !(*this == other); }

private:
    size_t count_ = 0;
    int64_t sizes_[most_axes];
};

template <class Sizes>
constexpr int64_t element_count(const Sizes& shape) {
    int64_t count = 1;
    for (const int64_t size : shape) count *= size;
    return count;
}

}  // namespace convx
