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
#define LAMPREY_NOINLINE static __device__ __noinline__

namespace lamprey {

/* The alarm lies in host memory. A GPU's reads of it are served one by one, 0.5 to 0.7 us each
 * (2 x H200), and every waiting warp reads: 0.35 ms for 256 KiB. The wait before the first look
 * must be far longer than that, or a rank that looked is so late that its peers look in the next
 * round, and so on for ever. About 20 ms. */
constexpr unsigned polls_per_look = 1 << 16;

/* A thread a vector: no loop, and what a thread read stays in its registers. */
constexpr bool thread_has_one_vector = true;

LAMPREY_DEVICE unsigned block_index()
{
    return blockIdx.x;
}
LAMPREY_DEVICE unsigned grid_size()
{
    return gridDim.x;
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
/* The same; whether any thread says so. */
LAMPREY_DEVICE bool block_any(bool here)
{
    return __syncthreads_or(here) != 0;
}

/* Of the cluster, its place in the grid and this CTA's in it; without clusters a CTA is one. */
LAMPREY_DEVICE unsigned cluster_index()
{
#if __CUDA_ARCH__ >= 900
    unsigned index;
    asm("mov.u32 %0, %%clusterid.x;" : "=r"(index));
    return index;
#else
    return blockIdx.x;
#endif
}
LAMPREY_DEVICE unsigned cluster_size()
{
#if __CUDA_ARCH__ >= 900
    unsigned size;
    asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(size));
    return size;
#else
    return 1;
#endif
}
LAMPREY_DEVICE unsigned cluster_rank()
{
#if __CUDA_ARCH__ >= 900
    unsigned rank;
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
#else
    return 0;
#endif
}
LAMPREY_DEVICE unsigned cluster_count()
{
#if __CUDA_ARCH__ >= 900
    unsigned count;
    asm("mov.u32 %0, %%nclusterid.x;" : "=r"(count));
    return count;
#else
    return gridDim.x;
#endif
}

/* What the cluster's threads wrote before they arrived is seen by those that have waited. */
LAMPREY_DEVICE void cluster_arrive()
{
#if __CUDA_ARCH__ >= 900
    asm volatile("barrier.cluster.arrive.release;" ::: "memory");
#endif
}
LAMPREY_DEVICE void cluster_wait()
{
#if __CUDA_ARCH__ >= 900
    asm volatile("barrier.cluster.wait.acquire;" ::: "memory");
#else
    __syncthreads();
#endif
}

/* The CTA's dynamic shared memory. */
LAMPREY_DEVICE vector *shared_memory()
{
    extern __shared__ __align__(16) unsigned char lamprey_shared[];
    return reinterpret_cast<vector *>(lamprey_shared);
}

/* Writes a word where CTA cta of the cluster has what lies at own here. Relaxed, as all accesses to
 * words that another CTA may write. */
LAMPREY_DEVICE void store_shared(uint32_t *own, unsigned cta, uint32_t value)
{
#if __CUDA_ARCH__ >= 900
    uint32_t address;
    asm("mapa.shared::cluster.u32 %0, %1, %2;"
        : "=r"(address)
        : "r"((uint32_t)__cvta_generic_to_shared(own)), "r"(cta));
    asm volatile("st.relaxed.cluster.shared::cluster.u32 [%0], %1;" ::"r"(address), "r"(value)
                 : "memory");
#else
    asm volatile("st.volatile.shared.u32 [%0], %1;" ::"r"((uint32_t)__cvta_generic_to_shared(own)),
                 "r"(value)
                 : "memory");
#endif
}

/* Of this CTA's. */
LAMPREY_DEVICE void clear_shared(uint32_t *own, uint32_t value)
{
    asm volatile("st.volatile.shared.u32 [%0], %1;" ::"r"((uint32_t)__cvta_generic_to_shared(own)),
                 "r"(value)
                 : "memory");
}

/* Four words; own: 16-byte aligned. */
LAMPREY_DEVICE vector load_shared(const uint32_t *own)
{
    vector v;
    asm volatile("ld.volatile.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.word[0]), "=r"(v.word[1]), "=r"(v.word[2]), "=r"(v.word[3])
                 : "r"((uint32_t)__cvta_generic_to_shared(own))
                 : "memory");
    return v;
}

/* f(lane), lane from 0 to 31, as a tree of neighbours. For a whole warp, which gets the sum. */
template <class F> LAMPREY_DEVICE float tree_sum(F f)
{
    float sum = f(threadIdx.x % 32);
    for (unsigned distance = 1; distance < 32; distance *= 2) {
        sum += __shfl_xor_sync(0xffffffffu, sum, distance);
    }
    return sum;
}

/* Of a whole warp, which gets it. */
LAMPREY_DEVICE uint32_t largest_of_warp(uint32_t value)
{
    return __reduce_max_sync(0xffffffffu, value);
}
LAMPREY_DEVICE bool any_of_warp(bool value)
{
    return __any_sync(0xffffffffu, value);
}
/* What one of its threads has seen, all see after this. */
LAMPREY_DEVICE bool all_of_warp(bool value)
{
    const bool all = __all_sync(0xffffffffu, value);
    __syncwarp();
    return all;
}

/* What the lane has whose number differs in the bit distance. For a whole warp. */
LAMPREY_DEVICE uint32_t value_of_lane(uint32_t value, unsigned distance)
{
    return __shfl_xor_sync(0xffffffffu, value, distance);
}

/* A warp's work is a thread's where there are no warps. */
LAMPREY_DEVICE unsigned warp_index()
{
    return threadIdx.x / 32;
}
LAMPREY_DEVICE unsigned warp_count()
{
    return blockDim.x / 32;
}
/* f(lane) by the threads of a warp. */
template <class F> LAMPREY_DEVICE void each_lane(unsigned count, F f)
{
    if (threadIdx.x % 32 < count) {
        f(threadIdx.x % 32);
    }
}

/* The address is computed by now, and not just before it is used. */
template <class T> LAMPREY_DEVICE void settle(T *&address)
{
    asm volatile("" : "+l"(address));
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

/* The same as two scalars of 64 bits. */
LAMPREY_DEVICE vector load_relaxed_sys_pairs(const vector *pointer)
{
    uint64_t low;
    uint64_t high;
    asm volatile("ld.relaxed.sys.global.v2.b64 {%0, %1}, [%2];"
                 : "=l"(low), "=l"(high)
                 : "l"(pointer)
                 : "memory");
    return {{(uint32_t)low, (uint32_t)(low >> 32), (uint32_t)high, (uint32_t)(high >> 32)}};
}

LAMPREY_DEVICE void store_relaxed_sys_pairs(vector *pointer, const vector &v)
{
    const uint64_t low = (uint64_t)v.word[1] << 32 | v.word[0];
    const uint64_t high = (uint64_t)v.word[3] << 32 | v.word[2];
    asm volatile("st.relaxed.sys.global.v2.b64 [%0], {%1, %2};" ::"l"(pointer), "l"(low), "l"(high)
                 : "memory");
}

/* Orders this thread's accesses before it with those after it, for all that see the latter. */
LAMPREY_DEVICE void fence_sys()
{
    asm volatile("fence.acq_rel.sys;" ::: "memory");
}

/* Before a wait looks again. */
LAMPREY_DEVICE void give_way()
{
}

/* A word in host memory that the host may change any time. */
LAMPREY_DEVICE uint32_t load_relaxed_sys(const uint32_t *pointer)
{
    uint32_t value;
    asm volatile("ld.relaxed.sys.global.b32 %0, [%1];" : "=r"(value) : "l"(pointer) : "memory");
    return value;
}

LAMPREY_DEVICE void store_relaxed_sys(uint32_t *pointer, uint32_t value)
{
    asm volatile("st.relaxed.sys.global.b32 [%0], %1;" ::"l"(pointer), "r"(value) : "memory");
}

/* Of a clock that all multiprocessors share. */
LAMPREY_DEVICE uint64_t nanoseconds()
{
    uint64_t now;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
    return now;
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

LAMPREY_DEVICE uint32_t load(const uint32_t *pointer)
{
    uint32_t value;
    asm volatile("ld.global.b32 %0, [%1];" : "=r"(value) : "l"(pointer) : "memory");
    return value;
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

LAMPREY_DEVICE uint32_t bits_of_float(float value)
{
    return __float_as_uint(value);
}

LAMPREY_DEVICE double double_of_bits(uint64_t bits)
{
    return __longlong_as_double((long long)bits);
}

LAMPREY_DEVICE uint64_t bits_of_double(double value)
{
    return (uint64_t)__double_as_longlong(value);
}

/* Never contracted into a fused multiply-add. */
LAMPREY_DEVICE float multiply(float a, float b)
{
    return __fmul_rn(a, b);
}
LAMPREY_DEVICE double multiply(double a, double b)
{
    return __dmul_rn(a, b);
}

LAMPREY_DEVICE float multiply_add(float a, float b, float c)
{
    return __fmaf_rn(a, b, c);
}

/* Rounded once, to nearest even. */
LAMPREY_DEVICE float divide(float a, float b)
{
    return __fdiv_rn(a, b);
}
LAMPREY_DEVICE float inverse_root(float a)
{
    return __frsqrt_rn(a);
}

/* A NaN loses against a number; -0.0 is less than +0.0. */
LAMPREY_DEVICE float minimum(float a, float b)
{
    float value;
    asm("min.f32 %0, %1, %2;" : "=f"(value) : "f"(a), "f"(b));
    return value;
}
LAMPREY_DEVICE float maximum(float a, float b)
{
    float value;
    asm("max.f32 %0, %1, %2;" : "=f"(value) : "f"(a), "f"(b));
    return value;
}

LAMPREY_DEVICE constexpr bool has_fp8_conversions()
{
#if __CUDA_ARCH__ >= 890
    return true;
#else
    return false;
#endif
}

/* Two fp8 numbers to two fp16 ones, and back from fp32: to nearest even, beyond the largest number
 * to the largest, NaN to 0x7f. */
LAMPREY_DEVICE uint32_t unpack_e4m3(uint16_t pair)
{
    uint32_t halves = 0;
#if __CUDA_ARCH__ >= 890
    asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(halves) : "h"(pair));
#endif
    return halves;
}
LAMPREY_DEVICE uint16_t pack_e4m3(float low, float high)
{
    uint16_t pair = 0;
#if __CUDA_ARCH__ >= 890
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(pair) : "f"(high), "f"(low));
#endif
    return pair;
}
LAMPREY_DEVICE uint16_t pack_e5m2(float low, float high)
{
    uint16_t pair = 0;
#if __CUDA_ARCH__ >= 890
    asm("cvt.rn.satfinite.e5m2x2.f32 %0, %1, %2;" : "=h"(pair) : "f"(high), "f"(low));
#endif
    return pair;
}

} // namespace lamprey

#endif
#endif
