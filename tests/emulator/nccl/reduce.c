/* SPDX-License-Identifier: Apache-2.0 */
/* Reductions in rank order: floats of 16 and 8 bits in fp32, everything else in its own width or
 * wider, rounded once. */
#include "tests/emulator/nccl/internal.h"

#include <string.h>

#include "kernels/reference.h"

size_t emulated_type_bytes(ncclDataType_t type)
{
    switch (type) {
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
    case ncclInt64:
    case ncclUint64:
    case ncclFloat64:
        return 8;
    default:
        return 0;
    }
}

static float from_e4m3(uint8_t bits)
{
    return lamprey_reference_widen(LAMPREY_REFERENCE_E4M3, bits);
}

static uint8_t to_e4m3(float value)
{
    return (uint8_t)lamprey_reference_narrow(LAMPREY_REFERENCE_E4M3, value);
}

static float from_e5m2(uint8_t bits)
{
    return lamprey_reference_widen(LAMPREY_REFERENCE_E5M2, bits);
}

static uint8_t to_e5m2(float value)
{
    return (uint8_t)lamprey_reference_narrow(LAMPREY_REFERENCE_E5M2, value);
}

static float from_bfloat16(uint16_t bits)
{
    uint32_t wide = (uint32_t)bits << 16;
    float value = 0;
    memcpy(&value, &wide, sizeof(value));
    return value;
}

static uint16_t to_bfloat16(float value)
{
    uint32_t bits = 0;
    memcpy(&bits, &value, sizeof(bits));
    if ((bits & 0x7fffffff) > 0x7f800000) {
        return 0x7fff;
    }
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

#define PLAIN(x) (x)
#define FLOAT_ADD(a, b) ((a) + (b))
#define FLOAT_MULTIPLY(a, b) ((a) * (b))
/* Unsigned arithmetic, since integers wrap. */
#define INTEGER_ADD(a, b) ((__typeof__(a))((uint64_t)(a) + (uint64_t)(b)))
#define INTEGER_MULTIPLY(a, b) ((__typeof__(a))((uint64_t)(a) * (uint64_t)(b)))

#define DEFINE_REDUCE(name, type, wide, LOAD, STORE, ADD, MULTIPLY)                                \
    static void name(type *out, const void *const *inputs, int nranks, size_t count,               \
                     ncclRedOp_t op, const void *scalar_bytes)                                     \
    {                                                                                              \
        type scalar = (type)0;                                                                     \
        if (scalar_bytes != NULL) {                                                                \
            memcpy(&scalar, scalar_bytes, sizeof(scalar));                                         \
        }                                                                                          \
        for (size_t i = 0; i < count; i++) {                                                       \
            wide sum = 0;                                                                          \
            for (int rank = 0; rank < nranks; rank++) {                                            \
                wide value = LOAD(((const type *)inputs[rank])[i]);                                \
                if (scalar_bytes != NULL) {                                                        \
                    value = MULTIPLY(value, LOAD(scalar));                                         \
                }                                                                                  \
                if (rank == 0) {                                                                   \
                    sum = value;                                                                   \
                } else if (op == ncclProd) {                                                       \
                    sum = MULTIPLY(sum, value);                                                    \
                } else if (op == ncclMax) {                                                        \
                    sum = value > sum ? value : sum;                                               \
                } else if (op == ncclMin) {                                                        \
                    sum = value < sum ? value : sum;                                               \
                } else {                                                                           \
                    sum = ADD(sum, value);                                                         \
                }                                                                                  \
            }                                                                                      \
            if (op == ncclAvg) {                                                                   \
                if ((wide)0.5 == 0) { /* an integer's sum has wrapped before it is divided */      \
                    sum = (wide)(type)sum;                                                         \
                }                                                                                  \
                sum = (wide)(sum / (wide)nranks);                                                  \
            }                                                                                      \
            out[i] = (type)STORE(sum);                                                             \
        }                                                                                          \
    }

DEFINE_REDUCE(reduce_int8, int8_t, int64_t, PLAIN, PLAIN, INTEGER_ADD, INTEGER_MULTIPLY)
DEFINE_REDUCE(reduce_uint8, uint8_t, uint64_t, PLAIN, PLAIN, INTEGER_ADD, INTEGER_MULTIPLY)
DEFINE_REDUCE(reduce_int32, int32_t, int64_t, PLAIN, PLAIN, INTEGER_ADD, INTEGER_MULTIPLY)
DEFINE_REDUCE(reduce_uint32, uint32_t, uint64_t, PLAIN, PLAIN, INTEGER_ADD, INTEGER_MULTIPLY)
DEFINE_REDUCE(reduce_int64, int64_t, int64_t, PLAIN, PLAIN, INTEGER_ADD, INTEGER_MULTIPLY)
DEFINE_REDUCE(reduce_uint64, uint64_t, uint64_t, PLAIN, PLAIN, INTEGER_ADD, INTEGER_MULTIPLY)
DEFINE_REDUCE(reduce_float16, _Float16, float, (float), (_Float16), FLOAT_ADD, FLOAT_MULTIPLY)
DEFINE_REDUCE(reduce_bfloat16, uint16_t, float, from_bfloat16, to_bfloat16, FLOAT_ADD,
              FLOAT_MULTIPLY)
DEFINE_REDUCE(reduce_e4m3, uint8_t, float, from_e4m3, to_e4m3, FLOAT_ADD, FLOAT_MULTIPLY)
DEFINE_REDUCE(reduce_e5m2, uint8_t, float, from_e5m2, to_e5m2, FLOAT_ADD, FLOAT_MULTIPLY)
DEFINE_REDUCE(reduce_float32, float, float, PLAIN, PLAIN, FLOAT_ADD, FLOAT_MULTIPLY)
DEFINE_REDUCE(reduce_float64, double, double, PLAIN, PLAIN, FLOAT_ADD, FLOAT_MULTIPLY)

void emulated_reduce(void *out, const void *const *inputs, int nranks, size_t count,
                     const struct emulated_task *task)
{
    const void *scalar = NULL;
    if (task->custom.used) {
        scalar = task->custom.device_scalar != NULL ? task->custom.device_scalar
                                                    : (const void *)task->custom.scalar;
    }
    switch (task->type) {
    case ncclInt8:
        reduce_int8(out, inputs, nranks, count, task->op, scalar);
        break;
    case ncclUint8:
        reduce_uint8(out, inputs, nranks, count, task->op, scalar);
        break;
    case ncclInt32:
        reduce_int32(out, inputs, nranks, count, task->op, scalar);
        break;
    case ncclUint32:
        reduce_uint32(out, inputs, nranks, count, task->op, scalar);
        break;
    case ncclInt64:
        reduce_int64(out, inputs, nranks, count, task->op, scalar);
        break;
    case ncclUint64:
        reduce_uint64(out, inputs, nranks, count, task->op, scalar);
        break;
    case ncclFloat16:
        reduce_float16(out, inputs, nranks, count, task->op, scalar);
        break;
    case ncclBfloat16:
        reduce_bfloat16(out, inputs, nranks, count, task->op, scalar);
        break;
    case ncclFloat32:
        reduce_float32(out, inputs, nranks, count, task->op, scalar);
        break;
    case ncclFloat64:
        reduce_float64(out, inputs, nranks, count, task->op, scalar);
        break;
    case ncclFloat8e4m3:
        reduce_e4m3(out, inputs, nranks, count, task->op, scalar);
        break;
    case ncclFloat8e5m2:
        reduce_e5m2(out, inputs, nranks, count, task->op, scalar);
        break;
    default:
        break; /* refused when the call was made */
    }
}
