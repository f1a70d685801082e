// A vector whose first elements lie in place: the tables of a small problem need no heap, which would cost more than
// filling them (20 to 40 ns an allocation).
#pragma once

#include <algorithm>
#include <cstddef>
#include <memory>
#include <type_traits>
#include <utility>

namespace convx {

template <class T, size_t in_place>
class SmallVector {
    static_assert(std::is_trivially_copyable_v<T>, "elements are copied as they are");

public:
    SmallVector() = default;
    SmallVector(const SmallVector& other) { append(other); }
    SmallVector(SmallVector&& other) noexcept : size_(other.size_), capacity_(other.capacity_) {
        heap_ = std::move(other.heap_);
        if (!heap_) std::copy_n(other.place_, size_, place_);
        other.size_ = 0;
        other.capacity_ = in_place;
    }
    SmallVector& operator=(SmallVector other) noexcept {
        size_ = other.size_;
        capacity_ = other.capacity_;
        heap_ = std::move(other.heap_);
        if (!heap_) std::copy_n(other.place_, size_, place_);
        return *this;
    }

    void reserve(size_t count) {
        if (count <= capacity_) return;
        std::unique_ptr<T[]> larger(new T[count]);
        std::copy_n(data(), size_, larger.get());
        heap_ = std::move(larger);
        capacity_ = count;
    }
    void push_back(const T& value) {
        const T copy = value;  // it may be one of ours
        if (size_ == capacity_) reserve(2 * capacity_);
        data()[size_++] = copy;
    }

    size_t size() const { return size_; }
    bool empty() const { return size_ == 0; }
    T* data() { return heap_ ? heap_.get() : place_; }
    const T* data() const { return heap_ ? heap_.get() : place_; }
    T& operator[](size_t i) { return data()[i]; }
    const T& operator[](size_t i) const { return data()[i]; }
    T* begin() { return data(); }
    T* end() { return data() + size_; }
    const T* begin() const { return data(); }
    const T* end() const { return data() + size_; }
    const T& back() const { return data()[size_ - 1]; }

private:
    void append(const SmallVector& other) {
        reserve(other.size_);
        std::copy_n(other.data(), other.size_, data());
        size_ = other.size_;
    }

    size_t size_ = 0, capacity_ = in_place;
    std::unique_ptr<T[]> heap_;
    T place_[in_place];
};

}  // namespace convx
