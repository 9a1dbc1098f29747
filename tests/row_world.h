// SPDX-License-Identifier: Apache-2.0
// Ranks that launch the kernels for rows, beside those of kernel_world.h and over the same memory.
#ifndef LAMPREY_TESTS_ROW_WORLD_H
#define LAMPREY_TESTS_ROW_WORLD_H

#include <math.h>

#include "kernels/row_instances.h"
#include "kernels/row_plan.h"
#include "tests/kernel_world.h"
#include "tests/row_arena.h"

extern "C" const unsigned char lamprey_row_fatbin[];

namespace lamprey_test {

class RowWorld : public KernelWorld {
  protected:
    void open_rows(uint32_t nranks, uint32_t slot_cells = 0)
    {
        open(nranks, slot_cells);
        for (Rank &rank : ranks_) {
            CUdeviceptr arena = 0;
            CHECK_CU(cuCtxSetCurrent(rank.context));
            CHECK_CU(cuMemAlloc(&arena, kArena));
            arenas_.push_back(arena);
        }
        if (!row_library()) {
            CHECK_CU(cuLibraryLoadData(&row_library(), lamprey_row_fatbin, nullptr, nullptr, 0,
                                       nullptr, nullptr, 0));
        }
        for (const Rank &rank : ranks_) {
            static std::set<CUcontext> loaded;
            if (!loaded.insert(rank.context).second) {
                continue;
            }
            CHECK_CU(cuCtxSetCurrent(rank.context));
            CUfunction function = nullptr;
            for (int i = 0; i < LAMPREY_ROW_KERNEL_COUNT; i++) {
                load(row_library(), lamprey_row_kernel_name(i), function);
                CHECK_CU(cuFuncSetAttribute(function,
                                            CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
                                            LAMPREY_ROW_SHARED_BYTES));
            }
        }
    }

    void close_rows()
    {
        for (size_t r = 0; r < arenas_.size(); r++) {
            cuCtxSetCurrent(ranks_[r].context);
            cuStreamSynchronize(ranks_[r].stream);
            cuMemFree(arenas_[r]);
        }
        arenas_.clear();
    }

    void TearDown() override
    {
        close_rows();
        KernelWorld::TearDown();
    }

    static CUlibrary &row_library()
    {
        static CUlibrary loaded = nullptr;
        return loaded;
    }

    lamprey_row_shape shape_of(const RowCall &call) const
    {
        return {call.algorithm,
                (uint32_t)ranks_.size(),
                call.tokens,
                call.hidden,
                (uint32_t)(16 / bytes_of(call.type)),
                call.quantisation == LAMPREY_QUANT_FP8_GROUP ? call.group : 1};
    }

    void launch_rows(uint32_t r, const RowCall &call, const Arena &arena)
    {
        Rank &rank = ranks_[r];
        const lamprey_row_shape shape = shape_of(call);
        const lamprey_row_plan plan =
            lamprey_row_plan_of(&shape, call.lanes, call.cluster, slot_cells_);
        ASSERT_NE(plan.cluster, 0u);
        const auto at = [&](const Span &span) {
            return span.bytes ? (void *)(arenas_[r] + span.at) : nullptr;
        };
        lamprey_row_params params = {};
        lamprey_row_plan_params(&shape, &plan, slot_cells_, &params.rows, &params.lane);
        params.rows.residual = at(arena.residual);
        params.rows.gamma = at(arena.gamma);
        params.rows.residual_out = at(arena.residual_out);
        params.rows.norm_out = at(arena.norm_out);
        params.rows.quant_out = at(arena.codes);
        params.rows.scale_out = at(arena.scales);
        params.rows.scale = call.scale_in_memory ? (const float *)at(arena.scale) : nullptr;
        params.rows.scale_value = call.scale;
        params.rows.epsilon = call.epsilon;
        params.rows.weight_bias = call.weight_bias;
        params.rows.flags =
            (call.norm ? LAMPREY_ROW_NORM : 0) | (call.pre_norm ? LAMPREY_ROW_PRE_NORM : 0) |
            (gamma_type_of(call) == LAMPREY_REFERENCE_F32 ? LAMPREY_ROW_WIDE_GAMMA : 0);
        params.rows.quantisation = call.quantisation;
        params.rows.layout = call.layout;
        params.rows.group = call.group;
        params.moe = {(uint32_t)call.source,
                      call.experts,
                      at(arena.experts),
                      at(arena.expert_scales),
                      (const int32_t *)at(arena.indices),
                      at(arena.added),
                      call.factor,
                      call.wide_scales};
        params.prelude = {at(arena.bias), at(arena.pre_gamma)};
        params.lane.send = at(arena.input);
        params.lane.recv = at(arena.sum_out);
        params.lane.lanes = (lamprey_lane *)rank.lanes;
        params.lane.rank = r;
        params.lane.timeout_ms = timeout_ms_;
        CUdeviceptr alarm = 0;
        CHECK_CU(cuCtxSetCurrent(rank.context));
        CHECK_CU(cuMemHostGetDevicePointer(&alarm, alarms_, 0));
        params.lane.alarm = (uint32_t *)alarm + r * kAlarmStride;
        for (uint32_t peer = 0; peer < shape.nranks; peer++) {
            params.lane.staging[peer] = (unsigned char *)ranks_[peer].staging;
        }
        const bool wide = call.misaligned == 0 && call.hidden % shape.vector_elements == 0;
        params.lane.flags =
            (wide ? LAMPREY_FLAG_WIDE : 0) | (call.stepwise ? LAMPREY_FLAG_STEPWISE : 0);
        form_ = lamprey_row_form_of(&shape, &plan, &params);
        const int index =
            lamprey_row_kernel_of(call.algorithm, element_of(call.type), shape.nranks, form_);
        ASSERT_GE(index, 0);
        launch_kernel(index, plan, params, rank.stream);
    }

    static void launch_kernel(int index, const lamprey_row_plan &plan, lamprey_row_params &params,
                              CUstream stream)
    {
        CUfunction function = nullptr;
        load(row_library(), lamprey_row_kernel_name(index), function);
        lamprey_near_row_params near = {};
        near.rows = params.rows;
        memcpy(&near.lane, &params.lane, sizeof near.lane);
        void *arguments[] = {lamprey_row_kernel_is_near(index) ? (void *)&near : (void *)&params};
        CUlaunchAttribute attributes[2] = {};
        attributes[0].id = CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION;
        attributes[0].value.programmaticStreamSerializationAllowed = 1;
        attributes[1].id = CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION;
        attributes[1].value.clusterDim = {plan.cluster, 1, 1};
        CUlaunchConfig config = {};
        config.gridDimX = plan.clusters * plan.cluster;
        config.gridDimY = config.gridDimZ = config.blockDimY = config.blockDimZ = 1;
        config.blockDimX = plan.threads;
        config.sharedMemBytes = plan.shared_bytes;
        config.hStream = stream;
        config.attrs = attributes;
        config.numAttrs = plan.cluster > 1 ? 2 : 1;
        CHECK_CU(cuLaunchKernelEx(&config, function, arguments, nullptr));
    }

    void run_rows(const RowCall &call, uint64_t seed)
    {
        std::vector<Arena> arenas = lay_out(call, ranks_.size(), seed);
        ASSERT_LE(arenas[0].before.size(), kArena);
        expect(call, arenas);
        for (uint32_t r = 0; r < ranks_.size(); r++) {
            CHECK_CU(cuCtxSetCurrent(ranks_[r].context));
            CHECK_CU(cuMemcpyHtoDAsync(arenas_[r], arenas[r].before.data(), arenas[r].before.size(),
                                       ranks_[r].stream));
        }
        synchronize();
        for (uint32_t r = 0; r < ranks_.size(); r++) {
            launch_rows(r, call, arenas[r]);
        }
        for (uint32_t r = 0; r < ranks_.size(); r++) {
            bytes got(arenas[r].before.size());
            CHECK_CU(cuCtxSetCurrent(ranks_[r].context));
            CHECK_CU(cuMemcpyDtoHAsync(got.data(), arenas_[r], got.size(), ranks_[r].stream));
            CHECK_CU(cuStreamSynchronize(ranks_[r].stream));
            ASSERT_EQ(difference(call, r, arenas[r], got), "");
        }
    }

    std::vector<CUdeviceptr> arenas_;
    lamprey_row_form form_ = LAMPREY_ROWS_ANY; // of the last launch
};

} // namespace lamprey_test

#endif
