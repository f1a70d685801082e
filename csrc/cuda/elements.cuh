// How threads walk over the elements of images: adjacent threads take adjacent elements, in whichever order memory has
// them, and with channels innermost a thread takes 16 bytes of them.
#pragma once

#include <algorithm>

#include "common/problem.h"
#include "cuda/divisor.h"
#include "cuda/launch.cuh"
#include "cuda/numbers.cuh"

namespace convx::cuda {

struct Index4 {
    int n, c, h, w;
};

// The elements of one launch, fewer than 2^31: images [n, n + images) and channels [c, c + channels).
struct Elements {
    __device__ Index4 at(int index) const {
        Index4 at;
        if (channels_inside) {
            const int column = chunks.quotient(index), row = width.quotient(column), n = height.quotient(row);
            at = {n, (index - column * chunks.value) * channels_of_chunk, row - n * height.value,
                  column - row * width.value};
        } else {
            const int row = width.quotient(index), plane = height.quotient(row), n = chunks.quotient(plane);
            at = {n, plane - n * chunks.value, row - plane * height.value, index - row * width.value};
        }
        at.n += first_n;
        at.c += first_c;
        return at;
    }

    Divisor chunks, height, width;  // chunks: of channels
    bool channels_inside;
    int channels_of_chunk, count, first_n, first_c;
};

template <int blocks, class Work>
__global__ void __launch_bounds__(256, blocks) elements_kernel(Elements elements, Work work) {
    const int64_t index = static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x;
    if (index < elements.count) work(elements.at(static_cast<int>(index)));
}

// work(Index4) for all elements of a shape, or for the first of every `channels_of_chunk` channels. A plane has at most
// 2^30 elements. `blocks`: of a multiprocessor, as in __launch_bounds__.
template <int blocks = 1, class Work>
void launch_elements(const std::array<int64_t, 4>& shape, bool channels_inside, int64_t channels_of_chunk,
                     const Work& work, Stream stream) {
    const auto [batch, channels, height, width] = shape;
    constexpr int64_t most_elements = int64_t{1} << 30;
    const int64_t of_plane = height * width, chunks = channels / channels_of_chunk;
    if (batch * chunks * of_plane == 0) return;
    const int64_t chunks_at_once = std::min(chunks, std::max<int64_t>(1, most_elements / of_plane));
    const int64_t images = chunks_at_once < chunks ? 1 : std::min(batch, most_elements / (chunks * of_plane));
    for (int64_t n = 0; n < batch; n += images)
        for (int64_t chunk = 0; chunk < chunks; chunk += chunks_at_once) {
            const int64_t count = std::min(chunks_at_once, chunks - chunk);
            const Elements elements{Divisor(count),
                                    Divisor(height),
                                    Divisor(width),
                                    channels_inside,
                                    static_cast<int>(channels_of_chunk),
                                    static_cast<int>(std::min(images, batch - n) * count * of_plane),
                                    static_cast<int>(n),
                                    static_cast<int>(chunk * channels_of_chunk)};
            launch(elements_kernel<blocks, Work>, grid(ceil_div(elements.count, 256)), 256, 0, stream, elements, work);
        }
}

template <class T>
struct Strided4 {
    Strided4() = default;
    explicit Strided4(const Tensor& tensor)
        : data(tensor.as<T>()), n(tensor.stride[0]), c(tensor.stride[1]), h(tensor.stride[2]), w(tensor.stride[3]) {}
    __device__ T* at(const Index4& index) const { return data + index.n * n + index.c * c + index.h * h + index.w * w; }
    __device__ T* image(int image, int channel) const { return data + image * n + channel * c; }

    T* data = nullptr;
    int64_t n, c, h, w;
};

// Whether `count` channels of every pixel lie side by side, aligned.
inline bool has_chunks(const Tensor& tensor, int64_t item, int64_t count) {
    const auto whole = [&](int64_t stride) { return stride % count == 0; };
    return !tensor.data || (tensor.stride[1] == 1 && whole(tensor.shape[1]) && whole(tensor.stride[0]) &&
                            whole(tensor.stride[2]) && whole(tensor.stride[3]) &&
                            reinterpret_cast<uintptr_t>(tensor.data) % static_cast<uintptr_t>(item * count) == 0);
}

}  // namespace convx::cuda
