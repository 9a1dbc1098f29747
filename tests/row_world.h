// SPDX-License-Identifier: Apache-2.0
// Ranks that launch the kernels for rows, beside those of kernel_world.h and over the same memory.
#ifndef LAMPREY_TESTS_ROW_WORLD_H
#define LAMPREY_TESTS_ROW_WORLD_H

#include <math.h>

#include <string>

#include "kernels/fused_reference.h"
#include "kernels/row_instances.h"
#include "kernels/row_plan.h"
#include "tests/kernel_world.h"

extern "C" const unsigned char lamprey_row_fatbin[];

namespace lamprey_test {

constexpr uint64_t kArena = 4 << 20;

enum class weights { none, of_type, fp32 };

struct RowCall {
    element_type type;
    uint64_t tokens;
    uint32_t hidden;
    lamprey_algorithm algorithm = LAMPREY_ONE_SHOT;
    uint32_t cluster = 6; // at most
    uint32_t lanes = kLanes;
    bool sum_out = false;
    bool residual = true;
    bool residual_out = true;
    bool norm = true;
    bool norm_out = true;
    weights gamma = weights::of_type;
    float epsilon = 1e-5f;
    float weight_bias = 0;
    bool stepwise = false;
    lamprey_quantisation quantisation = LAMPREY_QUANT_NONE;
    lamprey_scale_layout layout = LAMPREY_SCALES_128X4;
    uint32_t group = 128;
    float scale = 0.37f;
    bool scale_in_memory = true;
    uint32_t misaligned = 0; // elements by which every buffer is off
    data_kind kind = data_kind::numbers;
    lamprey_row_source source = LAMPREY_ROWS_GIVEN;
    uint32_t experts = 3;
    bool expert_scales = true;
    bool added = true;
    float factor = 1;
};

struct Span {
    uint64_t at = 0;
    uint64_t bytes = 0; // 0: none
};

// Where a call's arrays lie in a rank's arena, and what the arena holds before and must hold after.
struct Arena {
    bytes before;
    bytes after;
    Span input, residual, gamma, scale, experts, expert_scales, indices, added;
    Span sum_out, residual_out, norm_out, codes, scales;
};

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

    static Span put(Arena &arena, const RowCall &call, const bytes &data)
    {
        Span span;
        span.at = (arena.before.size() + 63) / 64 * 64 + 64 +
                  (data.empty() ? 0 : call.misaligned * bytes_of(call.type));
        span.bytes = data.size();
        arena.before.resize(span.at, 0x5a);
        arena.before.insert(arena.before.end(), data.begin(), data.end());
        return span;
    }

    // Room for an output.
    static Span leave(Arena &arena, const RowCall &call, bool wanted, uint64_t size)
    {
        return put(arena, call, bytes(wanted ? size : 0, 0x5a));
    }

    static bytes floats(uint64_t count, uint64_t seed)
    {
        return make_data(LAMPREY_REFERENCE_F32, count, data_kind::numbers, seed);
    }

    static lamprey_reference_quantisation quantisation_of(const RowCall &call)
    {
        return {(lamprey_reference_format)call.quantisation, call.scale, call.group,
                (lamprey_reference_layout)call.layout}; // in the same order
    }

    // What rank r contributes, by the reference.
    static bytes contribution(const RowCall &call, const Arena &arena)
    {
        bytes own(call.tokens * call.hidden * bytes_of(call.type));
        const auto accumulation =
            call.stepwise ? LAMPREY_REFERENCE_IN_ELEMENT : LAMPREY_REFERENCE_IN_F32;
        const auto at = [&](const Span &span) {
            return span.bytes ? arena.before.data() + span.at : nullptr;
        };
        if (call.source == LAMPREY_ROWS_MOE_REDUCE) {
            const lamprey_reference_moe_reduction reduction = {
                call.type,         accumulation,
                call.tokens,       call.hidden,
                call.experts,      reinterpret_cast<const float *>(at(arena.expert_scales)),
                at(arena.experts), at(arena.added)};
            lamprey_reference_moe_reduce(&reduction, own.data());
        } else if (call.source == LAMPREY_ROWS_MOE_FINALIZE) {
            const lamprey_reference_moe_finalisation finalisation = {
                call.type,
                LAMPREY_REFERENCE_F32,
                accumulation,
                call.tokens,
                call.hidden,
                call.experts,
                at(arena.experts),
                reinterpret_cast<const int32_t *>(at(arena.indices)),
                at(arena.expert_scales),
                call.factor,
                at(arena.added)};
            lamprey_reference_moe_finalise(&finalisation, own.data());
        } else {
            memcpy(own.data(), at(arena.input), own.size());
        }
        return own;
    }

    void lay_out(const RowCall &call, uint64_t seed, std::vector<Arena> &arenas) const
    {
        const uint64_t elements = call.tokens * call.hidden;
        const uint64_t size = elements * bytes_of(call.type);
        const lamprey_reference_quantisation quantisation = quantisation_of(call);
        for (size_t r = 0; r < ranks_.size(); r++) {
            Arena arena;
            const bool moe = call.source != LAMPREY_ROWS_GIVEN;
            arena.input = put(arena, call,
                              make_data(call.type, moe ? 0 : elements, call.kind, seed * 131 + r));
            arena.residual =
                put(arena, call,
                    make_data(call.type, call.residual ? elements : 0, call.kind, seed * 17 + 5));
            const element_type gamma_type =
                call.gamma == weights::fp32 ? LAMPREY_REFERENCE_F32 : call.type;
            arena.gamma = put(arena, call,
                              make_data(gamma_type, call.gamma == weights::none ? 0 : call.hidden,
                                        data_kind::numbers, seed * 19));
            bytes scale(sizeof call.scale);
            memcpy(scale.data(), &call.scale, sizeof call.scale);
            arena.scale = put(arena, RowCall{call.type, 0, 0}, scale);
            if (moe) {
                const bool finalize = call.source == LAMPREY_ROWS_MOE_FINALIZE;
                const uint64_t choices = call.experts * call.tokens;
                arena.experts =
                    put(arena, call,
                        make_data(call.type, choices * call.hidden, call.kind, seed * 137 + r));
                arena.expert_scales =
                    put(arena, RowCall{call.type, 0, 0},
                        floats(call.expert_scales || !finalize ? choices : 0, seed * 7 + r));
                bytes indices(finalize ? choices * 4 : 0);
                for (uint64_t i = 0; i < indices.size() / 4; i++) {
                    const int32_t row = i % 5 == 3 ? -1 : (int32_t)((i * 7 + r) % choices);
                    memcpy(indices.data() + i * 4, &row, 4);
                }
                arena.indices = put(arena, RowCall{call.type, 0, 0}, indices);
                arena.added =
                    put(arena, call,
                        make_data(call.type, call.added ? elements : 0, call.kind, seed * 139 + r));
            }
            arena.sum_out = leave(arena, call, call.sum_out, size);
            arena.residual_out = leave(arena, call, call.residual_out, size);
            arena.norm_out = leave(arena, call, call.norm_out, size);
            arena.codes =
                leave(arena, call, true,
                      lamprey_reference_code_bytes(&quantisation, call.tokens, call.hidden));
            arena.scales =
                leave(arena, RowCall{call.type, 0, 0}, true,
                      lamprey_reference_scale_bytes(&quantisation, call.tokens, call.hidden));
            put(arena, call, bytes(64, 0x5a));
            ASSERT_LE(arena.before.size(), kArena);
            arenas.push_back(arena);
        }
    }

    void expect(const RowCall &call, std::vector<Arena> &arenas) const
    {
        const uint64_t elements = call.tokens * call.hidden;
        std::vector<bytes> own;
        std::vector<const void *> inputs;
        for (const Arena &arena : arenas) {
            own.push_back(contribution(call, arena));
        }
        for (const bytes &one : own) {
            inputs.push_back(one.data());
        }
        bytes sum(elements * bytes_of(call.type));
        lamprey_reference_sum(
            call.type, call.stepwise ? LAMPREY_REFERENCE_IN_ELEMENT : LAMPREY_REFERENCE_IN_F32,
            (int)inputs.size(), inputs.data(), sum.data(), elements);
        for (Arena &arena : arenas) {
            arena.after = arena.before;
            const auto at = [&](const Span &span) {
                return span.bytes ? arena.after.data() + span.at : nullptr;
            };
            if (call.sum_out) {
                memcpy(at(arena.sum_out), sum.data(), sum.size());
            }
            lamprey_reference_epilogue epilogue = {};
            epilogue.type = call.type;
            epilogue.gamma_type = call.gamma == weights::fp32 ? LAMPREY_REFERENCE_F32 : call.type;
            epilogue.tokens = call.tokens;
            epilogue.hidden = call.hidden;
            epilogue.sum = sum.data();
            epilogue.residual = at(arena.residual);
            epilogue.gamma = at(arena.gamma);
            epilogue.norm = call.norm;
            epilogue.epsilon = call.epsilon;
            epilogue.weight_bias = call.weight_bias;
            epilogue.quantisation = quantisation_of(call);
            epilogue.residual_out = at(arena.residual_out);
            epilogue.norm_out = at(arena.norm_out);
            epilogue.codes = at(arena.codes);
            epilogue.scales = at(arena.scales);
            lamprey_reference_finish_rows(&epilogue);
        }
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
        params.rows.flags = (call.norm ? LAMPREY_ROW_NORM : 0) |
                            (call.gamma == weights::fp32 ? LAMPREY_ROW_WIDE_GAMMA : 0);
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
                      1};
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

    static std::string describe(const RowCall &call)
    {
        return "type " + std::to_string(call.type) + ", " + std::to_string(call.tokens) + " x " +
               std::to_string(call.hidden) + ", algorithm " + std::to_string(call.algorithm) +
               ", cluster " + std::to_string(call.cluster) + ", quantisation " +
               std::to_string(call.quantisation) + ", layout " + std::to_string(call.layout) +
               ", group " + std::to_string(call.group) + ", source " + std::to_string(call.source) +
               ", misaligned " + std::to_string(call.misaligned);
    }

    static void compare(const RowCall &call, size_t r, const Arena &arena, const bytes &got)
    {
        const uint64_t at = first_difference(got.data(), arena.after.data(), got.size());
        if (at == got.size()) {
            return;
        }
        const char *where = "nothing that may be written";
        const std::pair<const char *, Span> outputs[] = {{"the sum", arena.sum_out},
                                                         {"residual_out", arena.residual_out},
                                                         {"norm_out", arena.norm_out},
                                                         {"quant_out", arena.codes},
                                                         {"scale_out", arena.scales}};
        uint64_t within = at;
        for (const auto &output : outputs) {
            if (at >= output.second.at && at < output.second.at + output.second.bytes) {
                where = output.first;
                within = at - output.second.at;
            }
        }
        FAIL() << describe(call) << ": rank " << r << ", byte " << within << " of " << where
               << " is " << (int)got[at] << " and not " << (int)arena.after[at];
    }

    void run_rows(const RowCall &call, uint64_t seed)
    {
        std::vector<Arena> arenas;
        lay_out(call, seed, arenas);
        if (HasFatalFailure()) {
            return;
        }
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
            compare(call, r, arenas[r], got);
        }
    }

    std::vector<CUdeviceptr> arenas_;
    lamprey_row_form form_ = LAMPREY_ROWS_ANY; // of the last launch
};

} // namespace lamprey_test

#endif
