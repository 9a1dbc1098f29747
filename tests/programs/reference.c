/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/programs/reference.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* A small float's layout; e4m3 has no infinity and its NaN is all ones. */
struct format {
    int exponent_bits;
    int mantissa_bits;
};

static int format_of(ncclDataType_t type, struct format *format) {
    switch ((int)type) {
    case ncclFloat16:
        *format = (struct format){5, 10};
        return 1;
    case ncclBfloat16:
        *format = (struct format){8, 7};
        return 1;
    case ncclFloat32:
        *format = (struct format){8, 23};
        return 1;
    case ncclFloat64:
        *format = (struct format){11, 52};
        return 1;
    case ncclFloat8e4m3:
        *format = (struct format){4, 3};
        return 1;
    case ncclFloat8e5m2:
        *format = (struct format){5, 2};
        return 1;
    default:
        return 0;
    }
}

size_t reference_type_size(ncclDataType_t type) {
    switch ((int)type) {
    case ncclInt8:
    case ncclUint8:
    case ncclFloat8e4m3:
    case ncclFloat8e5m2:
        return 1;
    case ncclFloat16:
    case ncclBfloat16:
        return 2;
    case ncclInt32:
    case ncclUint32:
    case ncclFloat32:
        return 4;
    default:
        return 8;
    }
}

const char *reference_type_name(ncclDataType_t type) {
    static const char *const names[] = {
        [ncclInt8] = "int8",
        [ncclUint8] = "uint8",
        [ncclInt32] = "int32",
        [ncclUint32] = "uint32",
        [ncclInt64] = "int64",
        [ncclUint64] = "uint64",
        [ncclFloat16] = "float16",
        [ncclFloat32] = "float32",
        [ncclFloat64] = "float64",
        [ncclBfloat16] = "bfloat16",
        [ncclFloat8e4m3] = "float8e4m3",
        [ncclFloat8e5m2] = "float8e5m2",
    };
    return (size_t)type < sizeof names / sizeof names[0] ? names[type] : "?";
}

const char *reference_op_name(ncclRedOp_t op) {
    static const char *const names[] = {
        [ncclSum] = "sum", [ncclProd] = "prod", [ncclMax] = "max",
        [ncclMin] = "min", [ncclAvg] = "avg",
    };
    return (size_t)op < sizeof names / sizeof names[0] ? names[op] : "?";
}

static uint64_t mix(uint64_t seed, uint64_t rank, uint64_t index) {
    uint64_t x = seed * 0x9e3779b97f4a7c15u + rank * 0xd1342543de82ef95u + index;
    x ^= x >> 30;
    x *= 0xbf58476d1ce4e5b9u;
    x ^= x >> 27;
    x *= 0x94d049bb133111ebu;
    return x ^ x >> 31;
}

static double decode(uint64_t bits, struct format format) {
    int m = format.mantissa_bits;
    int e = format.exponent_bits;
    uint64_t mantissa = bits & ((1ull << m) - 1);
    int exponent = (int)(bits >> m & ((1ull << e) - 1));
    int bias = (1 << (e - 1)) - 1;
    double sign = bits >> (m + e) & 1 ? -1.0 : 1.0;
    if (exponent == (1 << e) - 1 && !(e == 4 && mantissa != 7)) {
        return mantissa != 0 ? NAN : sign * INFINITY;
    }
    if (exponent == 0) {
        return sign * ldexp((double)mantissa, 1 - bias - m);
    }
    return sign * ldexp((double)(mantissa | 1ull << m), exponent - bias - m);
}

/* Nearest, ties to even. Inputs are chosen so that nothing overflows. */
static uint64_t encode(double value, struct format format) {
    int m = format.mantissa_bits;
    int e = format.exponent_bits;
    int bias = (1 << (e - 1)) - 1;
    uint64_t sign = (uint64_t)(signbit(value) != 0) << (m + e);
    value = fabs(value);
    if (value == 0) {
        return sign;
    }
    int exponent;
    frexp(value, &exponent);
    exponent -= 1;
    if (exponent < 1 - bias) {
        exponent = 1 - bias;
    }
    uint64_t steps = (uint64_t)nearbyint(ldexp(value, m - exponent));
    /* A mantissa that rounds up to the next power of two carries into the exponent by itself. */
    if (steps >= 1ull << m) {
        return sign | (((uint64_t)(exponent + bias) << m) + (steps - (1ull << m)));
    }
    return sign | steps;
}

/* One input as the bits of its type. */
static uint64_t input_bits(size_t index, ncclDataType_t type, ncclRedOp_t op, uint64_t seed,
                           int rank, int nranks) {
    uint64_t random = mix(seed, (uint64_t)rank, index);
    struct format format;
    if (!format_of(type, &format)) {
        if (op == ncclAvg) {
            /* Not negative and no overflow: the average is then the same for every way to divide.
             */
            return random % (uint64_t)(127 / nranks + 1);
        }
        return random;
    }
    int m = format.mantissa_bits;
    int bias = (1 << (format.exponent_bits - 1)) - 1;
    uint64_t mantissa = random & ((1ull << m) - 1);
    uint64_t sign = random >> 63;
    int spread = format.exponent_bits <= 5 ? 4 : 12;
    int exponent = bias - spread / 2 + (int)((random >> 54 & 0xff) % (uint64_t)spread);
    if (op == ncclProd) {
        exponent = bias;
        if (format.exponent_bits <= 5) {
            mantissa &= 1ull << (m - 1); /* 1 or 1.5: a product of eight still fits fp8 */
            if (rank > 3) {
                mantissa = 0;
            }
        }
    }
    return sign << (m + format.exponent_bits) | (uint64_t)exponent << m | mantissa;
}

static void store(void *data, size_t index, size_t size, uint64_t bits) {
    memcpy((unsigned char *)data + index * size, &bits, size);
}

static uint64_t load(const void *data, size_t index, size_t size) {
    uint64_t bits = 0;
    memcpy(&bits, (const unsigned char *)data + index * size, size);
    return bits;
}

void reference_fill(void *data, size_t first, size_t count, ncclDataType_t type, ncclRedOp_t op,
                    uint64_t seed, int rank, int nranks) {
    size_t size = reference_type_size(type);
    for (size_t i = 0; i < count; i++) {
        store(data, i, size, input_bits(first + i, type, op, seed, rank, nranks));
    }
}

static int is_signed(ncclDataType_t type) {
    return type == ncclInt8 || type == ncclInt32 || type == ncclInt64;
}

static uint64_t extend(uint64_t bits, ncclDataType_t type) {
    int shift = 64 - 8 * (int)reference_type_size(type);
    return is_signed(type) ? (uint64_t)((int64_t)(bits << shift) >> shift) : bits << shift >> shift;
}

static uint64_t integer_reference(size_t index, ncclDataType_t type, ncclRedOp_t op, uint64_t seed,
                                  int nranks) {
    uint64_t result = extend(input_bits(index, type, op, seed, 0, nranks), type);
    for (int rank = 1; rank < nranks; rank++) {
        uint64_t x = extend(input_bits(index, type, op, seed, rank, nranks), type);
        int less = is_signed(type) ? (int64_t)x < (int64_t)result : x < result;
        switch ((int)op) {
        case ncclProd:
            result *= x;
            break;
        case ncclMax:
            result = less ? result : x;
            break;
        case ncclMin:
            result = less ? x : result;
            break;
        default:
            result += x;
            break;
        }
    }
    if (op == ncclAvg) {
        result /= (uint64_t)nranks;
    }
    return extend(result, type);
}

/* The rounded result, the exact one and the largest error of any order and any intermediate
 * rounding. */
static uint64_t float_reference(size_t index, ncclDataType_t type, struct format format,
                                ncclRedOp_t op, uint64_t seed, int nranks, double *value,
                                double *tolerance) {
    int wide = type == ncclFloat64;
    double accumulator = 0;
    double magnitude = 0;
    for (int rank = 0; rank < nranks; rank++) {
        double x = decode(input_bits(index, type, op, seed, rank, nranks), format);
        if (rank == 0) {
            accumulator = x;
            magnitude = fabs(x);
            continue;
        }
        switch ((int)op) {
        case ncclProd:
            accumulator = wide ? accumulator * x : (double)((float)accumulator * (float)x);
            magnitude *= fabs(x);
            break;
        case ncclMax:
            accumulator = x > accumulator ? x : accumulator;
            break;
        case ncclMin:
            accumulator = x < accumulator ? x : accumulator;
            break;
        default:
            accumulator = wide ? accumulator + x : (double)((float)accumulator + (float)x);
            magnitude += fabs(x);
            break;
        }
    }
    if (op == ncclAvg) {
        accumulator /= nranks;
        magnitude /= nranks;
    }
    *value = accumulator;
    /* Every step rounds by at most half a unit in the last place of something no larger than
     * magnitude; averages also round the factor and each scaled input. The last term covers results
     * below the normal range. */
    double steps = op == ncclAvg ? 2.0 * nranks + 2 : nranks;
    int bias = (1 << (format.exponent_bits - 1)) - 1;
    *tolerance = steps * (ldexp(magnitude, -format.mantissa_bits - 1) * 1.01 +
                          ldexp(1, -bias - format.mantissa_bits));
    return encode(accumulator, format);
}

size_t reference_check(const void *data, size_t first, size_t count, ncclDataType_t type,
                       ncclRedOp_t op, uint64_t seed, int nranks, int exact, const char *what) {
    size_t size = reference_type_size(type);
    size_t wrong = 0;
    struct format format;
    int is_float = format_of(type, &format);
    int bits_count = op == ncclMax || op == ncclMin || (exact && op != ncclAvg);
    for (size_t i = 0; i < count; i++) {
        uint64_t got = load(data, i, size);
        uint64_t want;
        int good;
        if (is_float) {
            double value;
            double tolerance;
            want = float_reference(first + i, type, format, op, seed, nranks, &value, &tolerance);
            good = got == want;
            if (!good && !bits_count) {
                good = fabs(decode(got, format) - value) <= tolerance;
            }
        } else {
            got = extend(got, type);
            want = integer_reference(first + i, type, op, seed, nranks);
            good = got == want;
        }
        if (!good) {
            if (wrong == 0) {
                fprintf(stderr,
                        "%s: %s %s: element %zu of %zu is 0x%" PRIx64 " instead of 0x%" PRIx64 "\n",
                        what, reference_type_name(type), reference_op_name(op), first + i, count,
                        got, want);
            }
            wrong++;
        }
    }
    return wrong;
}
