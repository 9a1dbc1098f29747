/* SPDX-License-Identifier: Apache-2.0 */
/* fp32 numbers as patterns, for the reference alone. */
#ifndef LAMPREY_KERNELS_REFERENCE_BITS_H
#define LAMPREY_KERNELS_REFERENCE_BITS_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#define F32_NAN 0x7fffffffu

static inline float f32_of(uint32_t bits)
{
    float value;
    memcpy(&value, &bits, sizeof(value));
    return value;
}

/* Of a NaN the canonical one's. */
static inline uint32_t f32_bits(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof(bits));
    return isnan(value) ? F32_NAN : bits;
}

#endif
