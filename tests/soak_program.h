// SPDX-License-Identifier: Apache-2.0
// What a random program is made of, and what its calls must give.
#ifndef LAMPREY_TESTS_SOAK_PROGRAM_H
#define LAMPREY_TESTS_SOAK_PROGRAM_H

#include <nccl.h>

#include <algorithm>
#include <random>
#include <vector>

#include "tests/reference.h"

namespace soak {

using lamprey_test::element_type;
using Random = std::mt19937_64;

constexpr int kComms = 3; // the whole world; the same again by split; the halves
constexpr int kOps = 10;  // most a phase has; each has buffers of its own
constexpr size_t kOpBytes = 3 << 20;

enum class Kind { all_reduce, scaled_sum, all_gather, broadcast };

struct Op {
    Kind kind;
    int comm;
    element_type type;
    lamprey_reference_op op;
    size_t count;
    bool in_place; // all-reduce only; never replayed, since that would change its input

    size_t bytes() const
    {
        return count * lamprey_test::bytes_of(type);
    }
};

struct Segment {
    bool grouped;
    int repeats; // a rank either captures the segment and replays it, or issues it as often
    std::vector<Op> ops;
};

using Phase = std::vector<Segment>;

// What happens between two phases; all ranks take part.
enum class Event { none, remake_child, remake_world, abort_child, revoke_child };

struct Change {
    Event event;
    int comm;            // the child that it is about
    int victim;          // place in the communicator of the rank that doesn't come
    int way;             // what the others are stuck in
    bool fresh;          // they are stuck in their first call
    bool finalize_first; // before the destruction
};

// Settings of the library for one seed.
struct Settings {
    size_t max_bytes;
    const char *algorithm;
    int max_ctas;
};

inline Settings settings_of(uint64_t seed)
{
    static const size_t limits[] = {64 << 10, 256 << 10, 32 << 10, 64 << 10, 1 << 20};
    static const char *const algorithms[] = {"auto", "one_shot", "auto", "two_shot"};
    static const int ctas[] = {128, 128, 3};
    return {limits[seed % 5], algorithms[seed % 4], ctas[seed % 3]};
}

inline size_t random_count(Random &random, const Op &op, size_t max_bytes)
{
    const size_t size = lamprey_test::bytes_of(op.type);
    switch (random() % 12) {
    case 0:
        return 1 + random() % 9;
    case 1: // beyond the limit: NCCL's
        return max_bytes / size + 1 + random() % 1000;
    case 2: // around it
        return max_bytes / size + 2 - random() % 4;
    default:
        return 1 + random() % std::min<size_t>(20000, max_bytes / size);
    }
}

inline Op random_op(Random &random, const Segment &segment, size_t max_bytes)
{
    Op op = {};
    const uint64_t kind = random() % 24;
    op.kind = kind < 4    ? Kind::all_gather
              : kind < 6  ? Kind::broadcast
              : kind == 6 ? Kind::scaled_sum
                          : Kind::all_reduce;
    op.comm = (int)(random() % kComms);
    op.type = op.kind == Kind::scaled_sum ? LAMPREY_REFERENCE_F32 : (element_type)(random() % 12);
    op.op =
        op.kind == Kind::scaled_sum ? LAMPREY_REFERENCE_SUM : (lamprey_reference_op)(random() % 5);
    const bool fp8 = op.type == LAMPREY_REFERENCE_E4M3 || op.type == LAMPREY_REFERENCE_E5M2;
    if (op.comm == 2 && fp8 && op.op == LAMPREY_REFERENCE_AVG) {
        op.op = LAMPREY_REFERENCE_SUM; // NCCL refuses the average on one rank (onerank.cu)
    }
    op.count =
        op.kind == Kind::all_reduce ? random_count(random, op, max_bytes) : 1 + random() % 5000;
    op.in_place = op.kind == Kind::all_reduce && segment.repeats == 1 && random() % 4 == 0;
    return op;
}

inline Phase random_phase(Random &random, size_t max_bytes)
{
    Phase phase;
    int left = 1 + (int)(random() % kOps);
    while (left > 0) {
        Segment segment;
        const int size = 1 + (int)(random() % (uint64_t)left);
        segment.grouped = random() % 3 == 0;
        segment.repeats = random() % 3 == 0 ? 1 + (int)(random() % 4) : 1;
        for (int i = 0; i < size; i++) {
            segment.ops.push_back(random_op(random, segment, max_bytes));
        }
        left -= size;
        phase.push_back(segment);
    }
    return phase;
}

inline Change random_change(Random &random)
{
    static const Event events[] = {Event::none,         Event::none,        Event::none,
                                   Event::none,         Event::none,        Event::remake_child,
                                   Event::remake_world, Event::abort_child, Event::revoke_child};
    Change change = {};
    change.event = events[random() % 9];
    change.comm = 1 + (int)(random() % (kComms - 1));
    change.victim = (int)(random() % 64);
    change.way = (int)(random() % 4);
    change.fresh = random() % 3 == 0;
    change.finalize_first = random() % 2;
    return change;
}

inline ncclDataType_t nccl_type(element_type type)
{
    static const ncclDataType_t types[] = {ncclFloat16,    ncclBfloat16,   ncclFloat32, ncclFloat64,
                                           ncclFloat8e4m3, ncclFloat8e5m2, ncclInt8,    ncclUint8,
                                           ncclInt32,      ncclUint32,     ncclInt64,   ncclUint64};
    return types[type];
}

inline ncclRedOp_t nccl_op(lamprey_reference_op op)
{
    static const ncclRedOp_t ops[] = {ncclSum, ncclProd, ncclMin, ncclMax, ncclAvg};
    return ops[op];
}

// -1, 0 and 1: whatever order NCCL adds them in, and with whatever width, the result is exact.
inline lamprey_test::bytes small_numbers(element_type type, size_t count, uint64_t seed)
{
    const size_t size = lamprey_test::bytes_of(type);
    lamprey_test::bytes data(count * size);
    Random random(seed);
    for (size_t i = 0; i < count; i++) {
        const int value = (int)(random() % 3) - 1;
        const double wide = value;
        uint64_t bits = (uint64_t)(int64_t)value;
        if (type == LAMPREY_REFERENCE_F64) {
            memcpy(&bits, &wide, sizeof bits);
        } else if (lamprey_test::is_float(type)) {
            bits = lamprey_test::number_bits(type, (float)value);
        }
        memcpy(data.data() + i * size, &bits, size);
    }
    return data;
}

// served: by us, so any bits will do.
inline lamprey_test::bytes input_of(const Op &op, bool served, uint64_t data, int index, int rank)
{
    using lamprey_test::data_kind;
    static const data_kind kinds[] = {data_kind::any_bits, data_kind::numbers, data_kind::any_bits,
                                      data_kind::specials, data_kind::subnormals};
    const uint64_t seed = data + (uint64_t)(index * 64 + rank);
    if (op.kind == Kind::all_reduce && served) {
        return lamprey_test::make_data(op.type, op.count, kinds[data % 5], seed);
    }
    return op.kind == Kind::all_reduce || op.kind == Kind::scaled_sum
               ? small_numbers(op.type, op.count, seed)
               : lamprey_test::make_data(op.type, op.count, data_kind::any_bits, seed);
}

constexpr float kScale = 2; // of a scaled sum

inline lamprey_test::bytes expected_of(const Op &op, const std::vector<lamprey_test::bytes> &inputs)
{
    lamprey_test::bytes expected;
    switch (op.kind) {
    case Kind::all_reduce: // NCCL keeps a lone rank's bits as they are
        return inputs.size() == 1 ? inputs[0] : lamprey_test::all_reduce(op.type, op.op, inputs);
    case Kind::scaled_sum:
        expected = lamprey_test::all_reduce_sum(op.type, inputs);
        for (size_t i = 0; i < op.count; i++) {
            const float scaled = lamprey_reference_load(op.type, expected.data(), i) * kScale;
            memcpy(expected.data() + i * sizeof scaled, &scaled, sizeof scaled);
        }
        return expected;
    case Kind::all_gather:
        for (const lamprey_test::bytes &part : inputs) {
            expected.insert(expected.end(), part.begin(), part.end());
        }
        return expected;
    case Kind::broadcast:
        break;
    }
    return inputs[0];
}

inline double number_at(element_type type, const uint8_t *data, size_t index)
{
    if (type == LAMPREY_REFERENCE_F64) {
        double value;
        memcpy(&value, data + index * sizeof value, sizeof value);
        return value;
    }
    return (double)lamprey_reference_load(type, data, index);
}

// NCCL's reductions of small numbers: only averages are rounded, and zeros have any sign.
inline bool same_numbers(const Op &op, const uint8_t *got, const uint8_t *expected)
{
    const double slack = op.op != LAMPREY_REFERENCE_AVG         ? 0
                         : lamprey_test::bytes_of(op.type) == 1 ? 0.5
                                                                : 0.05;
    if (!lamprey_test::is_float(op.type)) {
        return false;
    }
    for (size_t i = 0; i < op.count; i++) {
        const double difference = number_at(op.type, got, i) - number_at(op.type, expected, i);
        if (!(difference >= -slack && difference <= slack)) {
            return false;
        }
    }
    return true;
}

} // namespace soak

#endif
