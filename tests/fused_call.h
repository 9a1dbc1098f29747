// SPDX-License-Identifier: Apache-2.0
// A call of the fused reference's epilogue with the memory that it needs.
#ifndef LAMPREY_TESTS_FUSED_CALL_H
#define LAMPREY_TESTS_FUSED_CALL_H

#include <utility>

#include "kernels/fused_reference.h"
#include "tests/reference.h"

namespace lamprey_test {

// What is empty is not asked for, or not given.
struct call {
    element_type type;
    size_t tokens;
    size_t hidden;
    bytes sum, bias, residual, pre_gamma, gamma;
    element_type gamma_type = LAMPREY_REFERENCE_F32;
    bool pre_norm = false;
    bool norm = false;
    float epsilon = 0;
    float weight_bias = 0;
    lamprey_reference_quantisation quantisation = {};
    bytes residual_out, norm_out, codes, scales;

    call(element_type t, size_t rows, size_t columns, bytes all_reduced)
        : type(t), tokens(rows), hidden(columns), sum(std::move(all_reduced)),
          residual_out(sum.size()), norm_out(sum.size())
    {
    }

    call(element_type t, const numbers &row) : call(t, 1, row.size(), store_numbers(t, row))
    {
    }

    lamprey_reference_epilogue epilogue()
    {
        const auto where = [](bytes &data) { return data.empty() ? nullptr : data.data(); };
        lamprey_reference_epilogue e = {};
        e.type = type;
        e.gamma_type = gamma_type;
        e.tokens = tokens;
        e.hidden = hidden;
        e.sum = where(sum);
        e.bias = where(bias);
        e.residual = where(residual);
        e.pre_gamma = where(pre_gamma);
        e.gamma = where(gamma);
        e.pre_norm = pre_norm;
        e.norm = norm;
        e.epsilon = epsilon;
        e.weight_bias = weight_bias;
        e.quantisation = quantisation;
        e.residual_out = where(residual_out);
        e.norm_out = where(norm_out);
        e.codes = where(codes);
        e.scales = where(scales);
        return e;
    }

    void run()
    {
        codes.assign(lamprey_reference_code_bytes(&quantisation, tokens, hidden), 0xaa);
        scales.assign(lamprey_reference_scale_bytes(&quantisation, tokens, hidden), 0xaa);
        const lamprey_reference_epilogue e = epilogue();
        lamprey_reference_finish_rows(&e);
    }
};

struct shape {
    size_t tokens;
    size_t hidden;
};

// Random rows with all that a norm can have.
inline call random_call(element_type type, shape s, element_type gamma_type, data_kind kind)
{
    const size_t count = s.tokens * s.hidden;
    call c(type, s.tokens, s.hidden, make_data(type, count, kind, 1));
    c.residual = make_data(type, count, kind, 2);
    c.gamma = make_data(gamma_type, s.hidden, data_kind::numbers, 3);
    c.gamma_type = gamma_type;
    c.weight_bias = gamma_type == LAMPREY_REFERENCE_F32 ? 1.0f : 0.0f;
    c.epsilon = 1e-5f;
    c.norm = true;
    return c;
}

} // namespace lamprey_test

#endif
