// The primitives that kernels are written in, over CUDA. tests/simt/cuda/device.cuh has the same ones over ordinary
// threads of the CPU, so that every kernel can be run, poisoned and sanitized where there is no GPU.
//
// Shared memory is always dynamic and reached through shared_memory<T>(): a shim can poison it and bound it.
// Warp-wide primitives (shuffles, ldmatrix, mma) are called by all 32 lanes.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <stdexcept>
#include <string>

#include "cuda/stream.h"

namespace convx::cuda {

using half = __half;
using bfloat16 = __nv_bfloat16;

__device__ inline float to_float(float value) { return value; }
__device__ inline float to_float(half value) { return __half2float(value); }
__device__ inline float to_float(bfloat16 value) { return __bfloat162float(value); }

// Rounds to the nearest, ties to even.
template <class T>
__host__ __device__ T from_float(float value);
template <>
__host__ __device__ inline float from_float<float>(float value) {
    return value;
}
template <>
__host__ __device__ inline half from_float<half>(float value) {
    return __float2half_rn(value);
}
template <>
__host__ __device__ inline bfloat16 from_float<bfloat16>(float value) {
    return __float2bfloat16_rn(value);
}

// a * b + c, rounded once.
__device__ inline float multiply_add(float a, float b, float c) { return __fmaf_rn(a, b, c); }
__device__ inline double multiply_add(double a, double b, double c) { return __fma_rn(a, b, c); }

__device__ inline uint32_t multiply_high(uint32_t a, uint32_t b) { return __umulhi(a, b); }

__device__ inline uint32_t bits_of(float value) { return __float_as_uint(value); }
__device__ inline float float_of(uint32_t bits) { return __uint_as_float(bits); }

// Waits for all threads of the block.
__device__ inline void block_barrier() { __syncthreads(); }

// The value of the lane whose number differs in `mask`.
__device__ inline float shuffle_xor(float value, int mask) { return __shfl_xor_sync(0xffffffffu, value, mask); }
__device__ inline double shuffle_xor(double value, int mask) { return __shfl_xor_sync(0xffffffffu, value, mask); }

// Bit i: what lane i says.
__device__ inline uint32_t ballot(bool value) { return __ballot_sync(0xffffffffu, value); }

// The block's shared memory, as many bytes as the launch asked for.
template <class T>
__device__ T& shared_memory() {
    extern __shared__ __align__(16) unsigned char convx_shared_bytes[];
    return *reinterpret_cast<T*>(convx_shared_bytes);
}

// 16 bytes from global to shared memory, both aligned to 16, or zeros; readable by the thread after copies_wait, by the
// others after a barrier as well.
__device__ inline void copy_async_16(void* shared, const void* global, bool valid) {
    const uint32_t target = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
    const int bytes = valid ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(target), "l"(global), "r"(bytes) : "memory");
}
// Closes a group of copies.
__device__ inline void copies_commit() { asm volatile("cp.async.commit_group;\n" ::: "memory"); }
// Waits until at most `pending` of the latest groups are under way.
template <int pending>
__device__ void copies_wait() {
    asm volatile("cp.async.wait_group %0;\n" ::"n"(pending) : "memory");
}

// Four 8x8 matrices of 16-bit numbers (or 8x4 of 32-bit ones): lane i gives the address of the 16 bytes of row i % 8 of
// matrix i / 8, and gets of each matrix the 32 bits number lane % 4 of row lane / 4.
__device__ inline void load_matrices(uint32_t (&fragment)[4], const void* row) {
    const uint32_t source = static_cast<uint32_t>(__cvta_generic_to_shared(row));
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n"
                 : "=r"(fragment[0]), "=r"(fragment[1]), "=r"(fragment[2]), "=r"(fragment[3])
                 : "r"(source)
                 : "memory");
}

// sum (16x8) += a (16 x depth) * b (depth x 8) on the tensor cores; fragments as the PTX ISA lays them out over the
// lanes ("Matrix Fragments for mma.m16n8k8" with .tf32, "... m16n8k16" with .f16 and .bf16).
__device__ inline void mma_tf32(float (&sum)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    asm volatile(
        "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};\n"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
template <class T>
__device__ void mma_16bit(float (&sum)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);
template <>
__device__ inline void mma_16bit<half>(float (&sum)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};\n"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
template <>
__device__ inline void mma_16bit<bfloat16>(float (&sum)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};\n"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// The nearest number of 10 mantissa bits, ties away from zero, as the tensor cores read it.
__device__ inline uint32_t round_to_tf32(float value) {
    uint32_t bits;
    asm("cvt.rna.tf32.f32 %0, %1;\n" : "=r"(bits) : "f"(value));
    return bits;
}

// Puts kernel(arguments...) on the stream: the only place with <<<>>>. Nothing waits for it here.
template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), dim3 grid, int threads, size_t shared_bytes, Stream stream,
            const Arguments&... arguments) {
    const auto check = [](cudaError_t error) {
        if (error != cudaSuccess) throw std::runtime_error(std::string("CUDA: ") + cudaGetErrorString(error));
    };
    constexpr size_t without_asking = 48 * 1024;
    if (shared_bytes > without_asking)
        check(
            cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes)));
    kernel<<<grid, static_cast<unsigned>(threads), shared_bytes, static_cast<cudaStream_t>(stream)>>>(
        Parameters(arguments)...);
    check(cudaGetLastError());
}

}  // namespace convx::cuda
