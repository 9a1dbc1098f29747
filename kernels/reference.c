/* SPDX-License-Identifier: Apache-2.0 */
#include "kernels/reference.h"

#include <float.h>
#include <math.h>
#include <stdbool.h>
#include <string.h>

#include "kernels/reference_bits.h"

_Static_assert(FLT_EVAL_METHOD == 0, "every operation must round to its own type");
_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "elements are read as on the GPU");

#define F32_INFINITY 0x7f800000u
#define F32_FRACTION_BITS 23
#define F32_BIAS 127
#define F64_NAN 0x7fffffffffffffffull

/* A float of 16 bits or less: sign, exponent, fraction. The magnitude is the pattern without the
 * sign. */
struct format {
    unsigned bits;
    unsigned fraction_bits;
    int bias;
    uint32_t largest;  /* magnitude of the largest finite number */
    uint32_t infinity; /* magnitude of infinity; 0: the type has none */
    uint32_t overflow; /* magnitude of what is too large */
    uint32_t nan;
};

static const struct format formats[] = {
    [LAMPREY_REFERENCE_F16] = {16, 10, 15, 0x7bff, 0x7c00, 0x7c00, 0x7fff},
    [LAMPREY_REFERENCE_BF16] = {16, 7, 127, 0x7f7f, 0x7f80, 0x7f80, 0x7fff},
    [LAMPREY_REFERENCE_E4M3] = {8, 3, 7, 0x7e, 0, 0x7e, 0x7f},
    [LAMPREY_REFERENCE_E5M2] = {8, 2, 15, 0x7b, 0x7c, 0x7b, 0x7f},
    [LAMPREY_REFERENCE_E2M1] = {4, 1, 1, 0x7, 0, 0x7, 0x7},
};

static const size_t sizes[] = {
    [LAMPREY_REFERENCE_F16] = 2, [LAMPREY_REFERENCE_BF16] = 2, [LAMPREY_REFERENCE_F32] = 4,
    [LAMPREY_REFERENCE_F64] = 8, [LAMPREY_REFERENCE_E4M3] = 1, [LAMPREY_REFERENCE_E5M2] = 1,
    [LAMPREY_REFERENCE_I8] = 1,  [LAMPREY_REFERENCE_U8] = 1,   [LAMPREY_REFERENCE_I32] = 4,
    [LAMPREY_REFERENCE_U32] = 4, [LAMPREY_REFERENCE_I64] = 8,  [LAMPREY_REFERENCE_U64] = 8,
};

size_t lamprey_reference_size(enum lamprey_reference_type type)
{
    return sizes[type];
}

static double f64_of(uint64_t bits)
{
    double value;
    memcpy(&value, &bits, sizeof(value));
    return value;
}

static uint64_t f64_bits(double value)
{
    uint64_t bits;
    memcpy(&bits, &value, sizeof(bits));
    return isnan(value) ? F64_NAN : bits;
}

float lamprey_reference_widen(enum lamprey_reference_type type, uint16_t bits)
{
    const struct format *format = &formats[type];
    const uint32_t sign = (uint32_t)bits >> (format->bits - 1) << 31;
    const uint32_t magnitude = bits & ((1u << (format->bits - 1)) - 1);
    if (magnitude > format->largest) {
        return f32_of(magnitude == format->infinity ? sign | F32_INFINITY : F32_NAN);
    }
    if (magnitude == 0) {
        return f32_of(sign);
    }
    const uint32_t hidden = 1u << format->fraction_bits;
    uint32_t exponent = magnitude >> format->fraction_bits;
    uint32_t significand = magnitude & (hidden - 1);
    if (exponent == 0) {
        exponent = 1;
    } else {
        significand |= hidden;
    }
    exponent += (uint32_t)(F32_BIAS - format->bias);
    /* A subnormal becomes normal, unless it is bf16's, whose exponents are fp32's. */
    while (!(significand & hidden) && exponent > 1) {
        significand <<= 1;
        exponent--;
    }
    /* The hidden bit, where there is one, adds 1 to the exponent's field. */
    significand <<= F32_FRACTION_BITS - format->fraction_bits;
    return f32_of(sign | (((exponent - 1) << F32_FRACTION_BITS) + significand));
}

uint16_t lamprey_reference_narrow(enum lamprey_reference_type type, float value)
{
    const struct format *format = &formats[type];
    const uint32_t wide = f32_bits(value);
    const uint32_t sign = wide >> 31 << (format->bits - 1);
    const uint32_t magnitude = wide & 0x7fffffffu;
    if (magnitude > F32_INFINITY) {
        return (uint16_t)format->nan;
    }
    if (magnitude == F32_INFINITY) {
        return (uint16_t)(sign | format->overflow);
    }
    const uint32_t hidden = 1u << F32_FRACTION_BITS;
    uint32_t significand = magnitude & (hidden - 1);
    int exponent = (int)(magnitude >> F32_FRACTION_BITS);
    if (exponent == 0) {
        exponent = 1;
    } else {
        significand |= hidden;
    }
    exponent += format->bias - F32_BIAS;
    int dropped = F32_FRACTION_BITS - (int)format->fraction_bits;
    if (exponent < 1) { /* a subnormal of the narrow type has fewer bits */
        dropped += 1 - exponent;
        exponent = 1;
    }
    if (dropped > F32_FRACTION_BITS + 1) { /* below half of the smallest number */
        return (uint16_t)sign;
    }
    uint32_t kept = significand >> dropped;
    const uint32_t rest = significand - (kept << dropped);
    const uint32_t half = 1u << (dropped - 1);
    if (rest > half || (rest == half && (kept & 1))) {
        kept++;
    }
    /* The hidden bit, and a carry out of the fraction, add to the exponent's field. */
    const uint32_t rounded = ((uint32_t)(exponent - 1) << format->fraction_bits) + kept;
    return (uint16_t)(sign | (rounded > format->largest ? format->overflow : rounded));
}

static uint64_t load(size_t size, const void *input, size_t index)
{
    uint64_t bits = 0;
    memcpy(&bits, (const char *)input + index * size, size);
    return bits;
}

static void store(size_t size, void *output, size_t index, uint64_t bits)
{
    memcpy((char *)output + index * size, &bits, size);
}

float lamprey_reference_load(enum lamprey_reference_type type, const void *input, size_t index)
{
    const uint64_t bits = load(sizes[type], input, index);
    return type == LAMPREY_REFERENCE_F32 ? f32_of((uint32_t)bits)
                                         : lamprey_reference_widen(type, (uint16_t)bits);
}

static uint32_t pattern(enum lamprey_reference_type type, float value)
{
    return type == LAMPREY_REFERENCE_F32 ? f32_bits(value) : lamprey_reference_narrow(type, value);
}

void lamprey_reference_store(enum lamprey_reference_type type, void *output, size_t index,
                             float value)
{
    store(sizes[type], output, index, pattern(type, value));
}

float lamprey_reference_round(enum lamprey_reference_type type, float value)
{
    return type == LAMPREY_REFERENCE_F32
               ? f32_of(f32_bits(value))
               : lamprey_reference_widen(type, lamprey_reference_narrow(type, value));
}

/* The smaller (or larger) number: a NaN yields to a number, and -0.0 lies below +0.0. */
static double extreme(enum lamprey_reference_op op, double a, double b)
{
    if (isnan(a) || isnan(b)) {
        return isnan(a) ? b : a;
    }
    const bool a_is_below = a < b || (a == b && signbit(a) && !signbit(b));
    return a_is_below == (op == LAMPREY_REFERENCE_MIN) ? a : b;
}

static float combine_f32(enum lamprey_reference_op op, float a, float b)
{
    switch (op) {
    case LAMPREY_REFERENCE_SUM:
    case LAMPREY_REFERENCE_AVG:
        return a + b;
    case LAMPREY_REFERENCE_PROD:
        return a * b;
    default:
        return (float)extreme(op, a, b);
    }
}

static double combine_f64(enum lamprey_reference_op op, double a, double b)
{
    switch (op) {
    case LAMPREY_REFERENCE_SUM:
    case LAMPREY_REFERENCE_AVG:
        return a + b;
    case LAMPREY_REFERENCE_PROD:
        return a * b;
    default:
        return extreme(op, a, b);
    }
}

/* From here: element index of all inputs, reduced, as a pattern. */

static uint64_t reduce_f32(enum lamprey_reference_type type, enum lamprey_reference_op op,
                           int nranks, const void *const *inputs, size_t index)
{
    const float share = 1.0f / (float)nranks;
    float result = 0;
    for (int rank = 0; rank < nranks; rank++) {
        float value = lamprey_reference_load(type, inputs[rank], index);
        if (op == LAMPREY_REFERENCE_AVG) {
            value *= share;
        }
        result = rank == 0 ? value : combine_f32(op, result, value);
    }
    return pattern(type, result);
}

static uint64_t reduce_f64(enum lamprey_reference_op op, int nranks, const void *const *inputs,
                           size_t index)
{
    const double share = 1.0 / nranks;
    double result = 0;
    for (int rank = 0; rank < nranks; rank++) {
        double value = f64_of(load(sizeof(value), inputs[rank], index));
        if (op == LAMPREY_REFERENCE_AVG) {
            value *= share;
        }
        result = rank == 0 ? value : combine_f64(op, result, value);
    }
    return f64_bits(result);
}

static bool is_signed(enum lamprey_reference_type type)
{
    return type == LAMPREY_REFERENCE_I8 || type == LAMPREY_REFERENCE_I32 ||
           type == LAMPREY_REFERENCE_I64;
}

/* The value of the low bits, as 64 bits. */
static uint64_t extend(enum lamprey_reference_type type, uint64_t bits)
{
    const unsigned unused = 64 - 8 * (unsigned)sizes[type];
    bits <<= unused;
    return is_signed(type) ? (uint64_t)((int64_t)bits >> unused) : bits >> unused;
}

/* Sums and products of 64 bits that have wrapped are right in their low bits. */
static uint64_t combine_integers(enum lamprey_reference_type type, enum lamprey_reference_op op,
                                 uint64_t a, uint64_t b)
{
    switch (op) {
    case LAMPREY_REFERENCE_SUM:
    case LAMPREY_REFERENCE_AVG:
        return a + b;
    case LAMPREY_REFERENCE_PROD:
        return a * b;
    default: {
        const bool a_is_below = is_signed(type) ? (int64_t)a < (int64_t)b : a < b;
        return a_is_below == (op == LAMPREY_REFERENCE_MIN) ? a : b;
    }
    }
}

static uint64_t reduce_integers(enum lamprey_reference_type type, enum lamprey_reference_op op,
                                int nranks, const void *const *inputs, size_t index)
{
    uint64_t result = 0;
    for (int rank = 0; rank < nranks; rank++) {
        const uint64_t value = extend(type, load(sizes[type], inputs[rank], index));
        result = rank == 0 ? value : combine_integers(type, op, result, value);
    }
    if (op != LAMPREY_REFERENCE_AVG) {
        return result;
    }
    result = extend(type, result);
    return is_signed(type) ? (uint64_t)((int64_t)result / nranks) : result / (uint64_t)nranks;
}

void lamprey_reference_all_reduce(enum lamprey_reference_type type, enum lamprey_reference_op op,
                                  int nranks, const void *const *inputs, void *output, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        uint64_t bits;
        switch (type) {
        case LAMPREY_REFERENCE_F16:
        case LAMPREY_REFERENCE_BF16:
        case LAMPREY_REFERENCE_F32:
        case LAMPREY_REFERENCE_E4M3:
        case LAMPREY_REFERENCE_E5M2:
            bits = reduce_f32(type, op, nranks, inputs, i);
            break;
        case LAMPREY_REFERENCE_F64:
            bits = reduce_f64(op, nranks, inputs, i);
            break;
        default:
            bits = reduce_integers(type, op, nranks, inputs, i);
            break;
        }
        store(sizes[type], output, i, bits);
    }
}
