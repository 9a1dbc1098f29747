/* SPDX-License-Identifier: Apache-2.0 */
/* The primitives for the host: the same functions on ordinary memory, for the emulator and for
 * sanitizers. */
#ifndef LAMPREY_KERNELS_PRIMITIVES_HOST_H
#define LAMPREY_KERNELS_PRIMITIVES_HOST_H

#include <math.h>
#include <sched.h>
#include <stdint.h>
#include <string.h>
#include <time.h>

#include "kernels/host_barrier.h"
#include "kernels/store_buffer.h"

#define LAMPREY_DEVICE static inline
#define LAMPREY_INLINE inline /* in a class */
#define LAMPREY_NOINLINE static

namespace lamprey {

constexpr unsigned polls_per_look = 256;

/* What a warp's threads show each other. */
struct host_warp {
    host_barrier barrier{32};
    uint32_t values[32];
};

struct host_thread {
    unsigned grid_size;
    unsigned block_index;
    unsigned thread_index;
    unsigned block_size;
    host_barrier *barrier; /* NULL with one thread a CTA */
    unsigned cluster_size;
    host_barrier *cluster_barrier; /* NULL with one thread a cluster */
    unsigned char *const *shared;  /* of each CTA of the cluster */
    host_warp *warps; /* of the CTA; NULL: it has fewer threads than the launch asked for */
};

extern thread_local host_thread current_thread;

/* Else a thread goes over its CTA's vectors in a loop, and a warp's work is a thread's. */
#define thread_has_one_vector (lamprey::current_thread.warps != nullptr)

LAMPREY_DEVICE unsigned block_index()
{
    return current_thread.block_index;
}
LAMPREY_DEVICE unsigned grid_size()
{
    return current_thread.grid_size;
}
LAMPREY_DEVICE unsigned thread_index()
{
    return current_thread.thread_index;
}
LAMPREY_DEVICE unsigned block_size()
{
    return current_thread.block_size;
}

LAMPREY_DEVICE void block_sync()
{
    if (current_thread.barrier) {
        current_thread.barrier->wait();
    }
}
LAMPREY_DEVICE bool block_any(bool here)
{
    return current_thread.barrier ? current_thread.barrier->wait(here) : here;
}

LAMPREY_DEVICE unsigned cluster_size()
{
    return current_thread.cluster_size;
}
LAMPREY_DEVICE unsigned cluster_index()
{
    return block_index() / cluster_size();
}
LAMPREY_DEVICE unsigned cluster_rank()
{
    return block_index() % cluster_size();
}

/* Both at once, when they wait. */
LAMPREY_DEVICE void cluster_arrive()
{
}
LAMPREY_DEVICE void cluster_wait()
{
    if (current_thread.cluster_barrier) {
        current_thread.cluster_barrier->wait();
    }
}

LAMPREY_DEVICE vector *shared_memory()
{
    return reinterpret_cast<vector *>(current_thread.shared[cluster_rank()]);
}

LAMPREY_DEVICE float float_of_bits(uint32_t bits)
{
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

LAMPREY_DEVICE uint32_t bits_of_float(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

LAMPREY_DEVICE unsigned cluster_count()
{
    return grid_size() / cluster_size();
}

LAMPREY_DEVICE void store_shared(uint32_t *own, unsigned cta, uint32_t value)
{
    unsigned char *const *shared = current_thread.shared;
    const ptrdiff_t offset = reinterpret_cast<unsigned char *>(own) - shared[cluster_rank()];
    perform_store(reinterpret_cast<uint32_t *>(shared[cta] + offset), value);
}
/* A barrier orders a CTA's own stores there, so none is held back. */
LAMPREY_DEVICE void clear_shared(uint32_t *own, uint32_t value)
{
    __atomic_store_n(own, value, __ATOMIC_RELAXED);
}

LAMPREY_DEVICE unsigned warp_index()
{
    return thread_has_one_vector ? thread_index() / 32 : thread_index();
}
LAMPREY_DEVICE unsigned warp_count()
{
    return thread_has_one_vector ? block_size() / 32 : block_size();
}

LAMPREY_DEVICE uint32_t value_of_lane(uint32_t value, unsigned distance)
{
    host_warp &warp = current_thread.warps[warp_index()];
    const unsigned lane = thread_index() % 32;
    warp.values[lane] = value;
    warp.barrier.wait();
    const uint32_t other = warp.values[lane ^ distance];
    warp.barrier.wait();
    return other;
}

/* Of a whole warp, which gets it. */
template <class F> LAMPREY_DEVICE uint32_t warp_total(uint32_t value, F combine)
{
    for (unsigned distance = 1; distance < 32 && thread_has_one_vector; distance *= 2) {
        value = combine(value, value_of_lane(value, distance));
    }
    return value;
}

template <class F> LAMPREY_DEVICE float tree_sum(F f)
{
    float sums[32];
    if (thread_has_one_vector) {
        return float_of_bits(
            warp_total(bits_of_float(f(thread_index() % 32)), [](uint32_t a, uint32_t b) {
                return bits_of_float(float_of_bits(a) + float_of_bits(b));
            }));
    }
    for (unsigned lane = 0; lane < 32; lane++) {
        sums[lane] = f(lane);
    }
    for (unsigned width = 16; width > 0; width /= 2) {
        for (unsigned i = 0; i < width; i++) {
            sums[i] = sums[2 * i] + sums[2 * i + 1];
        }
    }
    return sums[0];
}

LAMPREY_DEVICE uint32_t largest_of_warp(uint32_t value)
{
    return warp_total(value, [](uint32_t a, uint32_t b) { return a > b ? a : b; });
}
LAMPREY_DEVICE bool any_of_warp(bool value)
{
    return warp_total(value, [](uint32_t a, uint32_t b) { return a | b; });
}

LAMPREY_DEVICE bool all_of_warp(bool value)
{
    return !any_of_warp(!value);
}

template <class F> LAMPREY_DEVICE void each_lane(unsigned count, F f)
{
    for (unsigned lane = 0; lane < count && lane < 32; lane++) {
        if (!thread_has_one_vector || lane == thread_index() % 32) {
            f(lane);
        }
    }
}

template <class T> LAMPREY_DEVICE void settle(T &)
{
}

/* Streams run one kernel after the other here. */
LAMPREY_DEVICE void wait_for_dependencies()
{
}
LAMPREY_DEVICE void launch_dependents()
{
}

/* Whoever is to write may need this processor, or be this very thread. */
LAMPREY_DEVICE void yield_to_writers()
{
    delayed_stores.perform_one();
    sched_yield();
}

LAMPREY_DEVICE vector load_relaxed_sys(const vector *pointer)
{
    vector v;
    bool pending = false;
    for (int i = 0; i < 4; i++) {
        v.word[i] = __atomic_load_n(&pointer->word[i], __ATOMIC_RELAXED);
        pending |= v.word[i] == 0xffffffffu;
    }
    if (pending) {
        yield_to_writers();
    }
    return v;
}

LAMPREY_DEVICE vector load_shared(const uint32_t *own)
{
    return load_relaxed_sys(reinterpret_cast<const vector *>(own));
}

LAMPREY_DEVICE void store_relaxed_sys(vector *pointer, const vector &v)
{
    for (int i = 0; i < 4; i++) {
        perform_store(&pointer->word[i], v.word[i]);
    }
}

LAMPREY_DEVICE vector load_relaxed_sys_pairs(const vector *pointer)
{
    vector v;
    bool pending = false;
    for (int i = 0; i < 2; i++) {
        const uint64_t pair = __atomic_load_n((const uint64_t *)pointer + i, __ATOMIC_RELAXED);
        v.word[2 * i] = (uint32_t)pair;
        v.word[2 * i + 1] = (uint32_t)(pair >> 32);
        pending |= v.word[2 * i + 1] == 0xffffffffu;
    }
    if (pending) {
        yield_to_writers();
    }
    return v;
}

LAMPREY_DEVICE void store_relaxed_sys_pairs(vector *pointer, const vector &v)
{
    for (int i = 0; i < 2; i++) {
        const uint64_t pair = (uint64_t)v.word[2 * i + 1] << 32 | v.word[2 * i];
        perform_store((uint64_t *)pointer + i, pair);
    }
}

LAMPREY_DEVICE void fence_sys()
{
    delayed_stores.perform_all();
#ifdef __SANITIZE_THREAD__ /* which knows no fences */
    static int meeting_point;
    __atomic_fetch_add(&meeting_point, 1, __ATOMIC_SEQ_CST);
#else
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
#endif
}

LAMPREY_DEVICE void give_way()
{
    yield_to_writers();
}

LAMPREY_DEVICE uint32_t load_relaxed_sys(const uint32_t *pointer)
{
    return __atomic_load_n(pointer, __ATOMIC_RELAXED);
}

LAMPREY_DEVICE void store_relaxed_sys(uint32_t *pointer, uint32_t value)
{
    __atomic_store_n(pointer, value, __ATOMIC_RELAXED);
}

LAMPREY_DEVICE uint64_t nanoseconds()
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

LAMPREY_DEVICE vector load(const vector *pointer)
{
    vector v;
    memcpy(&v, pointer, sizeof v);
    return v;
}

LAMPREY_DEVICE uint32_t load(const uint32_t *pointer)
{
    return __atomic_load_n(pointer, __ATOMIC_RELAXED);
}

LAMPREY_DEVICE void store(vector *pointer, const vector &v)
{
    memcpy(pointer, &v, sizeof v);
}

LAMPREY_DEVICE double double_of_bits(uint64_t bits)
{
    double value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

LAMPREY_DEVICE uint64_t bits_of_double(double value)
{
    uint64_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

/* The file is compiled without contraction. */
LAMPREY_DEVICE float multiply(float a, float b)
{
    return a * b;
}
LAMPREY_DEVICE double multiply(double a, double b)
{
    return a * b;
}

LAMPREY_DEVICE float multiply_add(float a, float b, float c)
{
    return fmaf(a, b, c);
}
LAMPREY_DEVICE float divide(float a, float b)
{
    return a / b;
}
LAMPREY_DEVICE float inverse_root(float a)
{
    return (float)(1 / sqrt((double)a)); /* which rounds as once (NUMERICS.md) */
}

LAMPREY_DEVICE float minimum(float a, float b)
{
    if (a != a || b != b) {
        return a != a ? b : a;
    }
    return a < b || (a == b && bits_of_float(a) >> 31) ? a : b;
}
LAMPREY_DEVICE float maximum(float a, float b)
{
    if (a != a || b != b) {
        return a != a ? b : a;
    }
    return a > b || (a == b && bits_of_float(b) >> 31) ? a : b;
}

LAMPREY_DEVICE constexpr bool has_fp8_conversions()
{
    return false;
}
LAMPREY_DEVICE uint32_t unpack_e4m3(uint16_t)
{
    return 0;
}
LAMPREY_DEVICE uint16_t pack_e4m3(float, float)
{
    return 0;
}
LAMPREY_DEVICE uint16_t pack_e5m2(float, float)
{
    return 0;
}

LAMPREY_DEVICE uint16_t float_to_bfloat16(float value)
{
    uint32_t bits = bits_of_float(value);
    if (value != value) {
        return 0x7fff;
    }
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

LAMPREY_DEVICE uint16_t float_to_half(float value)
{
    uint32_t bits = bits_of_float(value);
    uint16_t sign = (uint16_t)(bits >> 16 & 0x8000);
    uint32_t magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u) {
        return 0x7fff;
    }
    if (magnitude >= 0x47800000u) { /* 65536 and above */
        return sign | 0x7c00;
    }
    if (magnitude <
        0x38800000u) { /* below 2^-14: a multiple of 2^-24, found by letting an addition round */
        float scaled = float_of_bits(magnitude) + 0.5f; /* ulp(0.5) = 2^-24 */
        return sign | (uint16_t)(bits_of_float(scaled) - 0x3f000000u);
    }
    uint32_t rounded = magnitude + 0xfff + (magnitude >> 13 & 1);
    return sign |
           (uint16_t)((rounded - 0x38000000u) >> 13); /* 65520 and above carry into infinity */
}

LAMPREY_DEVICE float half_to_float(uint16_t half)
{
    uint32_t sign = (uint32_t)(half & 0x8000) << 16;
    uint32_t exponent = half >> 10 & 31;
    uint32_t fraction = half & 0x3ff;
    if (exponent == 31) {
        return float_of_bits(sign | 0x7f800000u | fraction << 13);
    }
    if (exponent == 0) {
        float value = (float)fraction * 0x1p-24f;
        return float_of_bits(sign | bits_of_float(value));
    }
    return float_of_bits(sign | (exponent + 112) << 23 | fraction << 13);
}

LAMPREY_DEVICE uint32_t pack_half(float low, float high)
{
    return (uint32_t)float_to_half(high) << 16 | float_to_half(low);
}

LAMPREY_DEVICE uint32_t pack_bfloat16(float low, float high)
{
    return (uint32_t)float_to_bfloat16(high) << 16 | float_to_bfloat16(low);
}

} // namespace lamprey

#endif
