// How threads walk over the cells of images: adjacent threads take adjacent cells, in whichever order memory has them,
// and with channels innermost a thread takes 16 bytes of them.
#pragma once

#include <algorithm>

#include "common/problem.h"
#include "cuda/divisor.h"
#include "cuda/launch.cuh"
#include "cuda/numbers.cuh"

namespace convx::cuda {

struct Cell {
    int n, c, h, w;
};

// The cells of one launch, fewer than 2^31: images [n, n + images) and channels [c, c + channels).
struct Cells {
    __device__ Cell at(int index) const {
        Cell cell;
        if (channels_inside) {
            const int column = chunks.quotient(index), row = width.quotient(column), n = height.quotient(row);
            cell = {n, (index - column * chunks.value) * channels_of_chunk, row - n * height.value,
                    column - row * width.value};
        } else {
            const int row = width.quotient(index), plane = height.quotient(row), n = chunks.quotient(plane);
            cell = {n, plane - n * chunks.value, row - plane * height.value, index - row * width.value};
        }
        cell.n += first_n;
        cell.c += first_c;
        return cell;
    }

    Divisor chunks, height, width;  // chunks: of channels
    bool channels_inside;
    int channels_of_chunk, count, first_n, first_c;
};

// Calls visit(cells) for launches that cover all cells of a shape. A plane has at most 2^30 cells.
template <class Visit>
void for_each_launch(const std::array<int64_t, 4>& shape, bool channels_inside, int64_t channels_of_chunk,
                     const Visit& visit) {
    const auto [batch, channels, height, width] = shape;
    constexpr int64_t most_cells = int64_t{1} << 30;
    const int64_t of_plane = height * width, chunks = channels / channels_of_chunk;
    if (batch * chunks * of_plane == 0) return;
    const int64_t chunks_at_once = std::min(chunks, std::max<int64_t>(1, most_cells / of_plane));
    const int64_t images = chunks_at_once < chunks ? 1 : std::min(batch, most_cells / (chunks * of_plane));
    for (int64_t n = 0; n < batch; n += images)
        for (int64_t chunk = 0; chunk < chunks; chunk += chunks_at_once) {
            const int64_t count = std::min(chunks_at_once, chunks - chunk);
            visit(Cells{Divisor(count), Divisor(height), Divisor(width), channels_inside,
                        static_cast<int>(channels_of_chunk),
                        static_cast<int>(std::min(images, batch - n) * count * of_plane), static_cast<int>(n),
                        static_cast<int>(chunk * channels_of_chunk)});
        }
}

template <class T>
struct Strided4 {
    Strided4() = default;
    explicit Strided4(const Tensor& tensor)
        : data(static_cast<T*>(tensor.data)), n(tensor.stride[0]), c(tensor.stride[1]), h(tensor.stride[2]),
          w(tensor.stride[3]) {}
    __device__ int64_t offset(const Cell& cell) const { return cell.n * n + cell.c * c + cell.h * h + cell.w * w; }
    __device__ T* at(const Cell& cell) const { return data + offset(cell); }
    __device__ T* image(int image, int channel) const { return data + image * n + channel * c; }

    T* data = nullptr;
    int64_t n, c, h, w;
};

// Some adjacent channels of one cell, moved as one where there are several.
template <class T, int count_>
struct alignas(sizeof(T) * count_) Channels {
    static constexpr int count = count_;
    T value[count];
};
template <int count, class T>
__device__ Channels<T, count> load_channels(const T* at) {
    return *reinterpret_cast<const Channels<T, count>*>(at);
}
template <class T, int count>
__device__ void store_channels(T* at, const Channels<T, count>& channels) {
    *reinterpret_cast<Channels<T, count>*>(at) = channels;
}

// Whether `count` channels of every cell lie side by side, aligned.
inline bool has_chunks(const Tensor& tensor, int64_t item, int64_t count) {
    const auto whole = [&](int64_t stride) { return stride % count == 0; };
    return !tensor.data || (tensor.stride[1] == 1 && whole(tensor.shape[1]) && whole(tensor.stride[0]) &&
                            whole(tensor.stride[2]) && whole(tensor.stride[3]) &&
                            reinterpret_cast<uintptr_t>(tensor.data) % static_cast<uintptr_t>(item * count) == 0);
}

}  // namespace convx::cuda
