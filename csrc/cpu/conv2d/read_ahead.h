// Asks for what will be staged next while the present band is computed: staging alone waits for memory a third of its
// time, in pieces too short for the hardware's prefetcher.
#pragma once

#include <cstdint>

namespace convx {

// Rows of `width` adjacent elements, `lines` of each of `channels`, asked for in equal shares.
template <class T>
class ReadAhead {
public:
    ReadAhead() = default;
    ReadAhead(const T* source, int64_t channels, int64_t channel_stride, int64_t lines, int64_t line_stride,
              int64_t width, int64_t shares)
        : source_(reinterpret_cast<const char*>(source)), channel_stride_(channel_stride * item),
          line_stride_(line_stride * item), lines_(lines), row_(width * item / line + 1),
          left_(channels * lines * row_), share_(left_ / (shares > 0 ? shares : 1) + 1) {}

    explicit operator bool() const { return left_ > 0; }

    void next() {
        for (int64_t i = 0; i < share_ && left_ > 0; ++i, --left_) {
            __builtin_prefetch(source_ + at_line_ * line_stride_ + at_ * line);
            if (++at_ < row_) continue;
            at_ = 0;
            if (++at_line_ < lines_) continue;
            at_line_ = 0;
            source_ += channel_stride_;
        }
    }

private:
    static constexpr int64_t item = sizeof(T), line = 64;
    const char* source_ = nullptr;
    int64_t channel_stride_ = 0, line_stride_ = 0, lines_ = 0;
    int64_t row_ = 0;  // cache lines of a row
    int64_t left_ = 0, share_ = 0;
    int64_t at_ = 0, at_line_ = 0;
};

}  // namespace convx
