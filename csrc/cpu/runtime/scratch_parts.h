// A buffer handed out in parts.
#pragma once

#include <cstdint>

namespace convx {

// Hands out 64-byte aligned parts of a buffer; without a buffer it only adds up their sizes.
class ScratchParts {
public:
    explicit ScratchParts(void* buffer = nullptr) : buffer_(static_cast<char*>(buffer)) {}

    template <class T>
    T* take(int64_t count) {
        T* part = buffer_ ? reinterpret_cast<T*>(buffer_ + bytes_) : nullptr;
        bytes_ += (count * static_cast<int64_t>(sizeof(T)) + 63) / 64 * 64;
        return part;
    }

    int64_t bytes() const { return bytes_; }

private:
    char* buffer_;
    int64_t bytes_ = 0;
};

}  // namespace convx
