/* SPDX-License-Identifier: Apache-2.0 */
/* All PTX of the project: one instruction per function. Compiled for the host, primitives_host.h
 * stands in. */
#ifndef LAMPREY_KERNELS_PRIMITIVES_CUH
#define LAMPREY_KERNELS_PRIMITIVES_CUH

#include <stdint.h>

namespace lamprey {

/* 16 bytes; its words are what readiness is told by. */
struct vector {
    uint32_t word[4];
};

} // namespace lamprey

#ifndef __CUDACC__
#include "kernels/primitives_host.h"
#else

#define LAMPREY_DEVICE static __device__ __forceinline__
#define LAMPREY_INLINE __device__ __forceinline__ /* in a class */

namespace lamprey {

LAMPREY_DEVICE unsigned block_index()
{
    return blockIdx.x;
}
LAMPREY_DEVICE unsigned thread_index()
{
    return threadIdx.x;
}
LAMPREY_DEVICE unsigned block_size()
{
    return blockDim.x;
}
LAMPREY_DEVICE void block_sync()
{
    __syncthreads();
}

/* Waits until the kernels before this one on the stream have finished and their writes are visible.
 * Returns at once if the launch doesn't overlap them. */
LAMPREY_DEVICE void wait_for_dependencies()
{
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

/* Lets the next kernel of the stream start once every CTA has said so. */
LAMPREY_DEVICE void launch_dependents()
{
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;");
#endif
}

/* Staging memory, scope system: to the memory model four scalar accesses, so every word is judged
 * by itself. pointer: 16-byte aligned. */
LAMPREY_DEVICE vector load_relaxed_sys(const vector *pointer)
{
    vector v;
    asm volatile("ld.relaxed.sys.global.v4.b32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.word[0]), "=r"(v.word[1]), "=r"(v.word[2]), "=r"(v.word[3])
                 : "l"(pointer)
                 : "memory");
    return v;
}

LAMPREY_DEVICE void store_relaxed_sys(vector *pointer, const vector &v)
{
    asm volatile("st.relaxed.sys.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(pointer),
                 "r"(v.word[0]), "r"(v.word[1]), "r"(v.word[2]), "r"(v.word[3])
                 : "memory");
}

/* A word in host memory that the host may change any time. */
LAMPREY_DEVICE uint32_t load_relaxed_sys(const uint32_t *pointer)
{
    uint32_t value;
    asm volatile("ld.relaxed.sys.global.b32 %0, [%1];" : "=r"(value) : "l"(pointer) : "memory");
    return value;
}

/* Memory that only this rank's kernels touch. pointer: 16-byte aligned. */
LAMPREY_DEVICE vector load(const vector *pointer)
{
    vector v;
    asm volatile("ld.global.v4.b32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.word[0]), "=r"(v.word[1]), "=r"(v.word[2]), "=r"(v.word[3])
                 : "l"(pointer)
                 : "memory");
    return v;
}

LAMPREY_DEVICE void store(vector *pointer, const vector &v)
{
    asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(pointer), "r"(v.word[0]),
                 "r"(v.word[1]), "r"(v.word[2]), "r"(v.word[3])
                 : "memory");
}

/* The instructions give the canonical NaN of the type (0x7fff) for every NaN, round to nearest
 * even, keep subnormals. */
LAMPREY_DEVICE uint32_t pack_half(float low, float high)
{
    uint32_t packed;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
    return packed;
}

LAMPREY_DEVICE uint32_t pack_bfloat16(float low, float high)
{
    uint32_t packed;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
    return packed;
}

LAMPREY_DEVICE float half_to_float(uint16_t bits)
{
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
    return value;
}

LAMPREY_DEVICE float float_of_bits(uint32_t bits)
{
    return __uint_as_float(bits);
}

/* Additions give the canonical NaN 0x7fffffff by themselves. */
LAMPREY_DEVICE uint32_t bits_of_sum(float value)
{
    return __float_as_uint(value);
}

} // namespace lamprey

#endif
#endif
