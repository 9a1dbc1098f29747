/* SPDX-License-Identifier: Apache-2.0 */
/* The network and collective network doors. They have no device, which makes NCCL disable them and
 * go on to the next network of its list, without a warning, in every release. The one door that a
 * setting of NCCL can keep shut: from 2.29 on NCCL_NET, or netName in a communicator's config,
 * makes it initialise the network of that name alone. */
#include "plugin/nccl_plugin_abi_net.h"

#include "plugin/door_enter.h"

#define NAME "lamprey"
#define REPEAT11(x) x, x, x, x, x, x, x, x, x, x, x
#define REPEAT12(x) REPEAT11(x), x
#define REPEAT13(x) REPEAT12(x), x
#define REPEAT14(x) REPEAT13(x), x
#define REPEAT15(x) REPEAT14(x), x
#define REPEAT16(x) REPEAT15(x), x
#define REPEAT17(x) REPEAT16(x), x

static ncclResult_t devices_none(int *count)
{
    *count = 0;
    return ncclSuccess;
}

/* Stands where NCCL would need a device first. */
static ncclResult_t refuse(void)
{
    return ncclInvalidUsage;
}

static ncclResult_t finalize(void *context)
{
    (void)context;
    return ncclSuccess;
}

static ncclResult_t set_net_attr(void *context, void *attributes)
{
    (void)context;
    (void)attributes;
    return ncclSuccess;
}

static ncclResult_t net_init_v12(void **context, uint64_t comm_id, void *config,
                                 lamprey_nccl_logger logger, void *profiler_callback)
{
    (void)comm_id;
    (void)config;
    (void)profiler_callback;
    *context = NULL;
    lamprey_door_enter(logger, __builtin_return_address(0), NULL, "net");
    return ncclSuccess;
}

static ncclResult_t net_init_v10(lamprey_nccl_logger logger, void *profiler_callback)
{
    (void)profiler_callback;
    lamprey_door_enter(logger, __builtin_return_address(0), NULL, "net");
    return ncclSuccess;
}

static ncclResult_t net_init_v9(lamprey_nccl_logger logger)
{
    lamprey_door_enter(logger, __builtin_return_address(0), NULL, "net");
    return ncclSuccess;
}

static ncclResult_t collnet_init_v12(void **context, uint64_t comm_id, lamprey_nccl_logger logger)
{
    (void)comm_id;
    *context = NULL;
    lamprey_door_enter(logger, __builtin_return_address(0), NULL, "collnet");
    return ncclSuccess;
}

static ncclResult_t collnet_init_v10(lamprey_nccl_logger logger)
{
    lamprey_door_enter(logger, __builtin_return_address(0), NULL, "collnet");
    return ncclSuccess;
}

#define NET_V12                                                                                    \
    {                                                                                              \
        NAME, net_init_v12, devices_none, {REPEAT17(refuse)}, finalize, set_net_attr               \
    }
#define COLLNET_V12                                                                                \
    {                                                                                              \
        NAME, collnet_init_v12, devices_none, {REPEAT15(refuse)}, finalize                         \
    }

LAMPREY_DOOR_EXPORT const struct lamprey_abi_net_v12 ncclNetPlugin_v12 = NET_V12;
LAMPREY_DOOR_EXPORT const struct lamprey_abi_net_v12 ncclNetPlugin_v11 = NET_V12;
LAMPREY_DOOR_EXPORT const struct lamprey_abi_net_v10 ncclNetPlugin_v10 = {
    NAME, net_init_v10, devices_none, {REPEAT17(refuse)}};
LAMPREY_DOOR_EXPORT const struct lamprey_abi_net_v9 ncclNetPlugin_v9 = {
    NAME, net_init_v9, devices_none, {REPEAT17(refuse)}};
LAMPREY_DOOR_EXPORT const struct lamprey_abi_net_v8 ncclNetPlugin_v8 = {
    NAME, net_init_v9, devices_none, {REPEAT16(refuse)}};
LAMPREY_DOOR_EXPORT const struct lamprey_abi_net_v7 ncclNetPlugin_v7 = {
    NAME, net_init_v9, devices_none, {REPEAT16(refuse)}};
LAMPREY_DOOR_EXPORT const struct lamprey_abi_net_v6 ncclNetPlugin_v6 = {
    NAME, net_init_v9, devices_none, {REPEAT14(refuse)}};
LAMPREY_DOOR_EXPORT const struct lamprey_abi_net_v5 ncclNetPlugin_v5 = {
    NAME, net_init_v9, devices_none, {REPEAT13(refuse)}};

LAMPREY_DOOR_EXPORT const struct lamprey_abi_collnet_v12 ncclCollNetPlugin_v12 = COLLNET_V12;
LAMPREY_DOOR_EXPORT const struct lamprey_abi_collnet_v12 ncclCollNetPlugin_v11 = COLLNET_V12;
LAMPREY_DOOR_EXPORT const struct lamprey_abi_collnet_v10 ncclCollNetPlugin_v10 = {
    NAME, collnet_init_v10, devices_none, {REPEAT15(refuse)}};
LAMPREY_DOOR_EXPORT const struct lamprey_abi_collnet_v9 ncclCollNetPlugin_v9 = {
    NAME, collnet_init_v10, devices_none, {REPEAT15(refuse)}};
LAMPREY_DOOR_EXPORT const struct lamprey_abi_collnet_v8 ncclCollNetPlugin_v8 = {
    NAME, collnet_init_v10, devices_none, {REPEAT14(refuse)}};
LAMPREY_DOOR_EXPORT const struct lamprey_abi_collnet_v7 ncclCollNetPlugin_v7 = {
    NAME, collnet_init_v10, devices_none, {REPEAT12(refuse)}};
LAMPREY_DOOR_EXPORT const struct lamprey_abi_collnet_v6 ncclCollNetPlugin_v6 = {
    NAME, collnet_init_v10, devices_none, {REPEAT12(refuse)}};
LAMPREY_DOOR_EXPORT const struct lamprey_abi_collnet_v5 ncclCollNetPlugin_v5 = {
    NAME, collnet_init_v10, devices_none, {REPEAT11(refuse)}};
