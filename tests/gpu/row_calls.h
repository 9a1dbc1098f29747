// SPDX-License-Identifier: Apache-2.0
// All-reduces with an epilogue on the two ranks of GpuPair: buffers with random data, launches, and
// whether what came out is right.
#ifndef LAMPREY_TESTS_GPU_ROW_CALLS_H
#define LAMPREY_TESTS_GPU_ROW_CALLS_H

#include <algorithm>
#include <random>
#include <vector>

#include "kernels/fused_reference.h"
#include "kernels/row_instances.h"
#include "kernels/row_plan.h"
#include "tests/gpu/gpu_pair.h"

extern "C" const unsigned char lamprey_row_fatbin[];

namespace lamprey_gpu {

struct RowCall {
    lamprey_algorithm algorithm;
    uint64_t tokens;
    uint32_t hidden;
    Pdl pdl;
    lamprey_quantisation quantisation = LAMPREY_QUANT_NONE; // instead of the norm's output
    uint32_t top_k = 0;                                     // of a MoE finalisation; 0: none
    uint32_t most_cluster = LAMPREY_MAX_CLUSTER;
};

// bf16, with a residual and its output, RMSNorm with a weight that is constant.
class RowCalls {
  public:
    static constexpr uint32_t kGroup = 128;
    static constexpr float kScale = 0.05f;
    static constexpr float kEpsilon = 1e-5f;

    RowCalls(const GpuPair &gpus, uint32_t lanes, uint32_t slot_cells, uint64_t most_elements,
             uint64_t most_expert_elements, uint32_t most_hidden)
        : gpus_(gpus), lanes_(lanes), slot_cells_(slot_cells)
    {
        CHECK_CU(cuLibraryLoadData(&library_, lamprey_row_fatbin, nullptr, nullptr, 0, nullptr,
                                   nullptr, 0));
        for (int kernel = 0; kernel < LAMPREY_ROW_KERNEL_COUNT; kernel++) {
            kernels_[kernel] = gpus.load(library_, lamprey_row_kernel_name(kernel));
        }
        for (int rank = 0; rank < kRanks; rank++) {
            open(rank, most_elements, most_expert_elements, most_hidden);
        }
    }

    CUdeviceptr input(int rank) const
    {
        return sides_[rank].input;
    }
    CUdeviceptr source(int rank) const // a copy of the input
    {
        return sides_[rank].source;
    }
    CUdeviceptr output(int rank) const // of the norm
    {
        return sides_[rank].norm_out;
    }

    lamprey_row_plan plan_of(const RowCall &call) const
    {
        const lamprey_row_shape shape = shape_of(call);
        return lamprey_row_plan_of(&shape, lanes_, call.most_cluster, slot_cells_);
    }

    // On the calling thread's GPU, which must be rank's.
    void launch(int rank, const RowCall &call, CUstream stream) const
    {
        const lamprey_row_shape shape = shape_of(call);
        const lamprey_row_plan plan = plan_of(call);
        lamprey_row_params params = params_of(rank, call, shape, plan);
        const int kernel = lamprey_row_kernel_of(call.algorithm, LAMPREY_BF16, kRanks,
                                                 lamprey_row_form_of(&shape, &plan, &params));
        lamprey_near_row_params near = {};
        near.rows = params.rows;
        memcpy(&near.lane, &params.lane, sizeof near.lane);
        void *arguments[] = {lamprey_row_kernel_is_near(kernel) ? (void *)&near : (void *)&params};
        CUlaunchAttribute attributes[2] = {};
        attributes[0].id = CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION;
        attributes[0].value.clusterDim.x = plan.cluster;
        attributes[0].value.clusterDim.y = attributes[0].value.clusterDim.z = 1;
        attributes[1].id = CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION;
        attributes[1].value.programmaticStreamSerializationAllowed = 1;
        CUlaunchConfig config = {};
        config.gridDimX = plan.clusters * plan.cluster;
        config.gridDimY = config.gridDimZ = config.blockDimY = config.blockDimZ = 1;
        config.blockDimX = plan.threads;
        config.sharedMemBytes = plan.shared_bytes;
        config.hStream = stream;
        config.attrs = attributes;
        config.numAttrs = call.pdl == Pdl::off ? 1 : 2;
        CHECK_CU(cuLaunchKernelEx(&config, (CUfunction)kernels_[kernel], arguments, nullptr));
    }

    // Before calls whose outputs are to be checked.
    void spoil_outputs(int rank, const RowCall &call) const
    {
        const Side &side = sides_[rank];
        const uint64_t elements = call.tokens * call.hidden;
        CHECK_CU(cuMemsetD8(side.residual_out, 0xee, 2 * elements));
        CHECK_CU(cuMemsetD8(side.norm_out, 0xee, 2 * elements));
        CHECK_CU(cuMemsetD8(side.codes, 0xee, elements));
        CHECK_CU(cuMemsetD8(side.scales, 0xee, scale_bytes(call)));
        CHECK_CU(cuCtxSynchronize());
    }

    // Rows of a rank's outputs that aren't what they must be; of many, some at both ends are looked
    // at.
    uint64_t wrong_rows(int rank, const RowCall &call) const
    {
        uint64_t wrong = 0;
        const uint64_t part = std::min<uint64_t>(call.tokens, 64);
        wrong += wrong_among(rank, call, 0, part);
        if (call.tokens > part) {
            wrong += wrong_among(rank, call, call.tokens - part, part);
        }
        return wrong;
    }

  private:
    using words = std::vector<uint16_t>;

    struct Side {
        CUdeviceptr input, source, residual, gamma, experts, expert_scales, indices;
        CUdeviceptr residual_out, norm_out, codes, scales;
        words own_input, own_residual, own_gamma;
        uint64_t expert_elements;
    };

    lamprey_row_shape shape_of(const RowCall &call) const
    {
        return {call.algorithm, kRanks, call.tokens,
                call.hidden,    8,      call.quantisation == LAMPREY_QUANT_FP8_GROUP ? kGroup : 1};
    }

    static lamprey_reference_quantisation quantisation_of(const RowCall &call)
    {
        return {(lamprey_reference_format)call.quantisation, kScale, kGroup,
                LAMPREY_REFERENCE_128X4}; // in the same order
    }
    static uint64_t scale_bytes(const RowCall &call)
    {
        const lamprey_reference_quantisation quantisation = quantisation_of(call);
        return lamprey_reference_scale_bytes(&quantisation, call.tokens, call.hidden) + 16;
    }

    // 0.5 to 2, both signs.
    static words random_numbers(uint64_t count, uint32_t seed)
    {
        std::mt19937 random(seed);
        words data(count);
        for (uint16_t &element : data) {
            const uint32_t bits = random();
            element = (uint16_t)(0x3f00 + bits % 256 + (bits >> 8 & 0x8000));
        }
        return data;
    }

    static CUdeviceptr upload(const void *data, uint64_t bytes)
    {
        CUdeviceptr memory = 0;
        CHECK_CU(cuMemAlloc(&memory, bytes));
        CHECK_CU(cuMemcpyHtoD(memory, data, bytes));
        return memory;
    }
    static CUdeviceptr upload(const words &data)
    {
        return upload(data.data(), 2 * data.size());
    }

    void open(int rank, uint64_t elements, uint64_t expert_elements, uint32_t hidden)
    {
        Side &side = sides_[rank];
        gpus_.use(rank);
        side.own_input = random_numbers(elements, 1 + rank);
        side.own_residual = random_numbers(elements, 10); // the same on all ranks
        side.own_gamma = random_numbers(hidden, 11);
        side.input = upload(side.own_input);
        side.source = upload(side.own_input);
        side.residual = upload(side.own_residual);
        side.gamma = upload(side.own_gamma);
        if (expert_elements > 0) {
            open_experts(side, rank, expert_elements, hidden);
        }
        CHECK_CU(cuMemAlloc(&side.residual_out, 2 * elements));
        CHECK_CU(cuMemAlloc(&side.norm_out, 2 * elements));
        CHECK_CU(cuMemAlloc(&side.codes, elements));
        CHECK_CU(cuMemAlloc(&side.scales, 2 * elements + (1 << 20)));
        CHECK_CU(cuCtxSynchronize());
    }

    // Every choice is a row of its own, in an order that isn't the tokens'.
    void open_experts(Side &side, int rank, uint64_t elements, uint32_t hidden)
    {
        const uint64_t choices = elements / hidden;
        std::vector<float> scales(choices);
        std::vector<int32_t> indices(choices);
        for (uint64_t i = 0; i < choices; i++) {
            scales[i] = 0.125f + (float)(i % 7) / 16;
            indices[i] = (int32_t)(choices - 1 - i);
        }
        side.expert_elements = elements;
        side.experts = upload(random_numbers(elements, 20 + (uint32_t)rank));
        side.expert_scales = upload(scales.data(), 4 * choices);
        side.indices = upload(indices.data(), 4 * choices);
    }

    lamprey_row_params params_of(int rank, const RowCall &call, const lamprey_row_shape &shape,
                                 const lamprey_row_plan &plan) const
    {
        const Side &side = sides_[rank];
        const Gpu &gpu = gpus_.gpu(rank);
        lamprey_row_params params = {};
        params.rows.residual = (const void *)side.residual;
        params.rows.gamma = (const void *)side.gamma;
        params.rows.residual_out = (void *)side.residual_out;
        params.rows.norm_out =
            call.quantisation == LAMPREY_QUANT_NONE ? (void *)side.norm_out : nullptr;
        params.rows.quant_out = (void *)side.codes;
        params.rows.scale_out = (void *)side.scales;
        params.rows.scale_value = kScale;
        params.rows.epsilon = kEpsilon;
        params.rows.flags = LAMPREY_ROW_NORM | LAMPREY_ROW_EARLY_GAMMA;
        params.rows.quantisation = call.quantisation;
        params.rows.layout = LAMPREY_SCALES_128X4;
        params.rows.group = kGroup;
        if (call.top_k > 0) {
            params.moe = {LAMPREY_ROWS_MOE_FINALIZE,
                          call.top_k,
                          (const void *)side.experts,
                          (const void *)side.expert_scales,
                          (const int32_t *)side.indices,
                          (const void *)side.source,
                          1,
                          1};
        }
        params.lane.send = (const void *)side.input;
        params.lane.lanes = (lamprey_lane *)gpu.lanes;
        params.lane.alarm = (uint32_t *)gpu.alarm;
        params.lane.rank = (uint32_t)rank;
        params.lane.flags = LAMPREY_FLAG_WIDE | (call.pdl == Pdl::signal ? LAMPREY_FLAG_SIGNAL : 0);
        for (int peer = 0; peer < kRanks; peer++) {
            params.lane.staging[peer] = (unsigned char *)gpus_.gpu(peer).staging;
        }
        lamprey_row_plan_params(&shape, &plan, slot_cells_, &params.rows, &params.lane);
        return params;
    }

    static words download(CUdeviceptr memory, uint64_t first, uint64_t count)
    {
        words data(count);
        CHECK_CU(cuMemcpyDtoH(data.data(), memory + 2 * first, 2 * count));
        return data;
    }

    // What a rank adds to the sum.
    words contribution(int rank, const RowCall &call, uint64_t token, uint64_t tokens) const
    {
        const Side &side = sides_[rank];
        const uint64_t first = token * call.hidden;
        words own(side.own_input.begin() + (ptrdiff_t)first,
                  side.own_input.begin() + (ptrdiff_t)(first + tokens * call.hidden));
        if (call.top_k == 0) {
            return own;
        }
        const uint64_t choices = call.tokens * call.top_k;
        gpus_.use(rank);
        const words experts = download(side.experts, 0, side.expert_elements);
        std::vector<float> scales(choices);
        std::vector<int32_t> indices(choices);
        CHECK_CU(cuMemcpyDtoH(scales.data(), side.expert_scales, 4 * choices));
        CHECK_CU(cuMemcpyDtoH(indices.data(), side.indices, 4 * choices));
        const uint64_t chosen = token * call.top_k;
        const lamprey_reference_moe_finalisation finalisation = {LAMPREY_REFERENCE_BF16,
                                                                 LAMPREY_REFERENCE_F32,
                                                                 LAMPREY_REFERENCE_IN_F32,
                                                                 tokens,
                                                                 call.hidden,
                                                                 call.top_k,
                                                                 experts.data(),
                                                                 indices.data() + chosen,
                                                                 scales.data() + chosen,
                                                                 1,
                                                                 own.data()};
        words sum(tokens * call.hidden);
        lamprey_reference_moe_finalise(&finalisation, sum.data());
        return sum;
    }

    uint64_t wrong_among(int rank, const RowCall &call, uint64_t token, uint64_t tokens) const
    {
        const Side &side = sides_[rank];
        const uint64_t first = token * call.hidden;
        const uint64_t count = tokens * call.hidden;
        words own[kRanks];
        const void *inputs[kRanks];
        for (int peer = 0; peer < kRanks; peer++) {
            own[peer] = contribution(peer, call, token, tokens);
            inputs[peer] = own[peer].data();
        }
        words sum(count), residual_out(count), norm_out(count);
        lamprey_reference_sum(LAMPREY_REFERENCE_BF16, LAMPREY_REFERENCE_IN_F32, kRanks, inputs,
                              sum.data(), count);
        const lamprey_reference_quantisation quantisation = quantisation_of(call);
        std::vector<unsigned char> codes(
            lamprey_reference_code_bytes(&quantisation, tokens, call.hidden) + 1);
        std::vector<unsigned char> scales(
            lamprey_reference_scale_bytes(&quantisation, tokens, call.hidden) + 1);
        lamprey_reference_epilogue epilogue = {};
        epilogue.type = epilogue.gamma_type = LAMPREY_REFERENCE_BF16;
        epilogue.tokens = tokens;
        epilogue.hidden = call.hidden;
        epilogue.sum = sum.data();
        epilogue.residual = side.own_residual.data() + first;
        epilogue.gamma = side.own_gamma.data();
        epilogue.norm = true;
        epilogue.epsilon = kEpsilon;
        epilogue.quantisation = quantisation;
        epilogue.residual_out = residual_out.data();
        epilogue.norm_out = norm_out.data();
        epilogue.codes = codes.data();
        epilogue.scales = scales.data();
        lamprey_reference_finish_rows(&epilogue);
        gpus_.use(rank);
        const words got_residual = download(side.residual_out, first, count);
        const words got_norm = download(side.norm_out, first, count);
        std::vector<unsigned char> got_codes(codes.size());
        const uint64_t row_codes = (codes.size() - 1) / tokens;
        if (row_codes > 0) {
            CHECK_CU(
                cuMemcpyDtoH(got_codes.data(), side.codes + token * row_codes, row_codes * tokens));
        }
        uint64_t wrong = 0;
        for (uint64_t row = 0; row < tokens; row++) {
            const uint64_t at = row * call.hidden;
            wrong += memcmp(&got_residual[at], &residual_out[at], 2 * call.hidden) != 0 ||
                     (call.quantisation == LAMPREY_QUANT_NONE
                          ? memcmp(&got_norm[at], &norm_out[at], 2 * call.hidden) != 0
                          : memcmp(&got_codes[row * row_codes], &codes[row * row_codes],
                                   row_codes) != 0);
        }
        return wrong;
    }

    const GpuPair &gpus_;
    const uint32_t lanes_;
    const uint32_t slot_cells_;
    CUlibrary library_ = nullptr;
    CUkernel kernels_[LAMPREY_ROW_KERNEL_COUNT] = {};
    Side sides_[kRanks] = {};
};

} // namespace lamprey_gpu

#endif
