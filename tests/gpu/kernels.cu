/* SPDX-License-Identifier: Apache-2.0 */
/* The kernels that the hardware tests put around the product's. */
#include "tests/gpu/decode_step.cuh"
#include "tests/gpu/pdl_order.cuh"
#include "tests/gpu/soak_calls.cuh"

#define DEFINE(name, params, threads)                                                              \
    extern "C" __global__ void __launch_bounds__(threads)                                          \
        lamprey_##name(const __grid_constant__ params given)                                       \
    {                                                                                              \
        lamprey::name(given);                                                                      \
    }

DEFINE(decode_step, decode_step_params, 256)
DEFINE(pdl_order_produce, pdl_order_params, 1024)
DEFINE(pdl_order_consume_early, pdl_order_params, 128)
DEFINE(pdl_order_consume, pdl_order_params, 128)
DEFINE(soak_calls_fill, soak_calls_params, 128)
DEFINE(soak_calls_check, soak_calls_params, 128)
DEFINE(soak_calls_replay, soak_calls_replay_params, 32)
