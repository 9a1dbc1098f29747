/* SPDX-License-Identifier: Apache-2.0 */
/* All of NCCL's plugin tables. */
#ifndef LAMPREY_PLUGIN_NCCL_PLUGIN_ABI_H
#define LAMPREY_PLUGIN_NCCL_PLUGIN_ABI_H

#include "plugin/nccl_plugin_abi_env.h"
#include "plugin/nccl_plugin_abi_net.h"
#include "plugin/nccl_plugin_abi_profiler.h"
#include "plugin/nccl_plugin_abi_tuner.h"

#endif
