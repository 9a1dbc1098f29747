// SPDX-License-Identifier: Apache-2.0
// An all-reduce of rows as a test describes it: the memory that every rank needs for it, and what
// that must hold afterwards, by the reference.
#ifndef LAMPREY_TESTS_ROW_ARENA_H
#define LAMPREY_TESTS_ROW_ARENA_H

#include <string.h>

#include <string>
#include <vector>

#include "kernels/fused_reference.h"
#include "kernels/rows.h"
#include "tests/reference.h"

namespace lamprey_test {

constexpr uint64_t kArena = 4 << 20; // what a rank has

enum class weights { none, of_type, fp32 };

struct RowCall {
    element_type type;
    uint64_t tokens;
    uint32_t hidden;
    lamprey_algorithm algorithm = LAMPREY_ONE_SHOT;
    uint32_t cluster = 6; // at most
    uint32_t lanes = 6;
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
    bool wide_scales = true; // fp32, and not of the rows' type
    bool added = true;
    float factor = 1;
    bool bias = false;
    bool pre_norm = false;
    weights pre_gamma = weights::none;
    bool in_place = false; // the last output of rows is the input, residual_out is the residual
};

struct Span {
    uint64_t at = 0;
    uint64_t bytes = 0; // 0: none
};

// Where a call's arrays lie in a rank's arena, and what the arena holds before and must hold after.
struct Arena {
    bytes before;
    bytes after;
    Span input, residual, bias, pre_gamma, gamma, scale, experts, expert_scales, indices, added;
    Span sum_out, residual_out, norm_out, codes, scales;
};

inline Span put(Arena &arena, const RowCall &call, const bytes &data)
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
inline Span leave(Arena &arena, const RowCall &call, bool wanted, uint64_t size)
{
    return put(arena, call, bytes(wanted ? size : 0, 0x5a));
}

inline element_type scales_type_of(const RowCall &call)
{
    return call.wide_scales ? LAMPREY_REFERENCE_F32 : call.type;
}

inline lamprey_reference_quantisation quantisation_of(const RowCall &call)
{
    return {(lamprey_reference_format)call.quantisation, call.scale, call.group,
            (lamprey_reference_layout)call.layout}; // in the same order
}

// What rank r contributes, by the reference.
inline bytes contribution(const RowCall &call, const Arena &arena)
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
            scales_type_of(call),
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

// The element type of the gammas.
inline element_type gamma_type_of(const RowCall &call)
{
    return call.gamma == weights::fp32 || call.pre_gamma == weights::fp32 ? LAMPREY_REFERENCE_F32
                                                                          : call.type;
}

// The arenas of all ranks.
inline std::vector<Arena> lay_out(const RowCall &call, size_t nranks, uint64_t seed)
{
    std::vector<Arena> arenas;
    const uint64_t elements = call.tokens * call.hidden;
    const uint64_t size = elements * bytes_of(call.type);
    const lamprey_reference_quantisation quantisation = quantisation_of(call);
    for (size_t r = 0; r < nranks; r++) {
        Arena arena;
        const bool moe = call.source != LAMPREY_ROWS_GIVEN;
        arena.input =
            put(arena, call, make_data(call.type, moe ? 0 : elements, call.kind, seed * 131 + r));
        arena.residual =
            put(arena, call,
                make_data(call.type, call.residual ? elements : 0, call.kind, seed * 17 + 5));
        const auto columns = [&](element_type type, bool wanted, uint64_t which) {
            return make_data(type, wanted ? call.hidden : 0, data_kind::numbers, seed * 19 + which);
        };
        RowCall gamma_call = call; // at multiples of its own element
        gamma_call.type = gamma_type_of(call);
        arena.gamma =
            put(arena, gamma_call, columns(gamma_call.type, call.gamma != weights::none, 0));
        arena.pre_gamma =
            put(arena, gamma_call, columns(gamma_call.type, call.pre_gamma != weights::none, 1));
        arena.bias = put(arena, call, columns(call.type, call.bias, 2));
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
                    make_data(scales_type_of(call), call.expert_scales || !finalize ? choices : 0,
                              data_kind::numbers, seed * 7 + r));
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
        const bool sum_last = call.in_place && !call.norm_out;
        arena.sum_out = sum_last ? arena.input : leave(arena, call, call.sum_out, size);
        arena.residual_out = call.in_place && call.residual
                                 ? arena.residual
                                 : leave(arena, call, call.residual_out, size);
        arena.norm_out =
            call.in_place && call.norm_out ? arena.input : leave(arena, call, call.norm_out, size);
        arena.codes = leave(arena, call, true,
                            lamprey_reference_code_bytes(&quantisation, call.tokens, call.hidden));
        arena.scales =
            leave(arena, RowCall{call.type, 0, 0}, true,
                  lamprey_reference_scale_bytes(&quantisation, call.tokens, call.hidden));
        put(arena, call, bytes(64, 0x5a));
        arenas.push_back(arena);
    }
    return arenas;
}

// What they must hold after the call.
inline void expect(const RowCall &call, std::vector<Arena> &arenas)
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
    lamprey_reference_sum(call.type,
                          call.stepwise ? LAMPREY_REFERENCE_IN_ELEMENT : LAMPREY_REFERENCE_IN_F32,
                          (int)inputs.size(), inputs.data(), sum.data(), elements);
    for (Arena &arena : arenas) {
        arena.after = arena.before;
        const auto at = [&](const Span &span) {
            return span.bytes ? arena.after.data() + span.at : nullptr;
        };
        if (arena.sum_out.bytes) {
            memcpy(at(arena.sum_out), sum.data(), sum.size());
        }
        lamprey_reference_epilogue epilogue = {};
        epilogue.type = call.type;
        epilogue.gamma_type = gamma_type_of(call);
        epilogue.tokens = call.tokens;
        epilogue.hidden = call.hidden;
        epilogue.sum = sum.data();
        epilogue.bias = at(arena.bias);
        epilogue.residual = at(arena.residual);
        epilogue.pre_gamma = at(arena.pre_gamma);
        epilogue.pre_norm = call.pre_norm;
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

inline std::string describe(const RowCall &call)
{
    return "type " + std::to_string(call.type) + ", " + std::to_string(call.tokens) + " x " +
           std::to_string(call.hidden) + ", algorithm " + std::to_string(call.algorithm) +
           ", cluster " + std::to_string(call.cluster) + ", quantisation " +
           std::to_string(call.quantisation) + ", layout " + std::to_string(call.layout) +
           ", group " + std::to_string(call.group) + ", source " + std::to_string(call.source) +
           ", misaligned " + std::to_string(call.misaligned) + ", bias " +
           std::to_string(call.bias) + ", pre-norm " + std::to_string(call.pre_norm) +
           ", in place " + std::to_string(call.in_place);
}

// How the memory of a rank is not what it must be; "" if it is.
inline std::string difference(const RowCall &call, size_t r, const Arena &arena, const bytes &got)
{
    const uint64_t at = first_difference(got.data(), arena.after.data(), got.size());
    if (at == got.size()) {
        return "";
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
    return describe(call) + ": rank " + std::to_string(r) + ", byte " + std::to_string(within) +
           " of " + where + " is " + std::to_string(got[at]) + " and not " +
           std::to_string(arena.after[at]);
}

} // namespace lamprey_test

#endif
