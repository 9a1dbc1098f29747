/* SPDX-License-Identifier: Apache-2.0 */
/* Every kernel that is compiled. X(name in the fatbin, element type, ranks or 0 for any number up
 * to 8) */
#ifndef LAMPREY_KERNELS_INSTANCES_H
#define LAMPREY_KERNELS_INSTANCES_H

#define LAMPREY_ONE_SHOT_OF(X, suffix, type)                                                       \
    X(lamprey_one_shot_##suffix##_2, type, 2)                                                      \
    X(lamprey_one_shot_##suffix##_4, type, 4)                                                      \
    X(lamprey_one_shot_##suffix##_8, type, 8)                                                      \
    X(lamprey_one_shot_##suffix##_n, type, 0)

#define LAMPREY_ONE_SHOT_KERNELS(X)                                                                \
    LAMPREY_ONE_SHOT_OF(X, f16, lamprey::half)                                                     \
    LAMPREY_ONE_SHOT_OF(X, bf16, lamprey::bfloat16)                                                \
    LAMPREY_ONE_SHOT_OF(X, f32, lamprey::float32)

#endif
