// SPDX-License-Identifier: Apache-2.0
// A model of the lane protocol (kernels/protocol.h, kernels/all_reduce.cuh): one lane of all ranks,
// since lanes share nothing, over a sequence of kernels. Two checks go over it. The search walks
// through every state that some order of the memory accesses leads to: for small models, and to
// see what goes wrong where a rule is broken. The order check proves of one run that all others are
// like it: for large ones.
//
// What a thread does is a fixed list of operations, as long as nothing goes wrong. Memory is words;
// what is stored or loaded at once is a scalar of one word or two. A relaxed store is first issued,
// then performed, any time later, in any order but for stores of a thread to one place. A fence
// waits until the thread's stores are performed. (One that merely ordered them before later stores
// would be the same to peers, who hear of a fence by later stores only.) Loads take place in
// program order, since each is waited for.
#ifndef LAMPREY_TESTS_PROTOCOL_MODEL_H
#define LAMPREY_TESTS_PROTOCOL_MODEL_H

#include <stdint.h>

#include <string>
#include <vector>

#include "kernels/protocol.h"

namespace lamprey_model {

enum class Packet { words, doubles, flagged }; // packets.cuh

// One call, as one lane sees it.
struct Call {
    lamprey_algorithm algorithm = LAMPREY_ONE_SHOT;
    Packet packet = Packet::words;
    int vectors = 1;      // of the whole message; 0: the lane sits out
    int lane_vectors = 1; // of a row that are moved in a round
    int threads = 1;
    bool fused = false; // with the next: one kernel runs both (kernels/fused.cuh)
};

// The rules, one of which may be broken.
enum class Broken {
    nothing,
    three_slots,            // two slots
    clear_every_round,      // none is cleared
    clear_last_slot,        // the slot of the round before the last is cleared
    clear_last_layout,      // cleared as the current round fills its slot
    clear_all_cells,        // one cell a vector, however many it takes
    clear_both_areas,       // of two-shot only the scattered parts
    idle_lanes_rest,        // a lane that sits out takes a slot, and clears none
    slot_kept_apart,        // the slot is the 32-bit round modulo 3
    fence_between_rounds,   // none
    fence_between_messages, // none
    every_thread_fences,    // thread 0 alone
    barrier_between_rounds, // none
    barrier_before_state,   // none between the pushes and the state's store
    kernel_boundary,        // the next kernel starts early
    areas_apart,            // two-shot's results go where the parts are
    every_word_judged,      // readiness is told by the first scalar
    flag_beside_data,       // a flag and its data are two scalars
    doubles_whole,          // 64-bit words travel as two scalars
    sentinel_replaced,      // data that looks like a cleared cell is sent as it is
};

struct Model {
    std::vector<Call> calls;
    int ranks = 2;
    int cell_words = 2; // 4 in the kernels; words are judged one by one, so two tell as much
    uint64_t first_round = 0;
    Broken broken = Broken::nothing;
};

constexpr uint8_t kOnes = 0xff; // the sentinel
constexpr uint8_t kFlag = 0;

enum class Kind : uint8_t {
    store,
    await,   // a load in a loop until the scalar is there; then it must have the right value
    load,    // a load that doesn't wait; the same
    fence,   // until the thread's stores are performed
    barrier, // until the threads that it names are at it
};

enum class Ready : uint8_t { not_ones, flag };

struct Operation {
    Kind kind;
    Ready ready;
    uint8_t width;    // words of the scalar
    uint8_t value[2]; // stored or expected
    uint16_t word;    // the first one
    uint16_t phase;   // barriers of the rank before it: what other threads' issued stores it sees
    uint8_t threads;  // that a barrier waits for
    uint16_t round;
};

struct Thread {
    int rank;
    int index; // in the rank
    std::vector<Operation> operations;
};

struct Programs {
    std::vector<Thread> threads;
    std::vector<uint8_t> memory; // at the start; only words that are used
    int rounds;
};

Programs programs_of(const Model &model);

enum class Orders { all, enough }; // protocol_model_search.cc says which are enough

struct Found {
    std::string error; // "" if nothing can go wrong
    bool too_large;    // more states than allowed: error says no more than that
    size_t states;
};

Found search(const Programs &programs, Orders orders = Orders::enough, size_t most = 1000000);

// Why not every run is known to be like the first, "" if it is known.
std::string unordered(const Programs &programs);

} // namespace lamprey_model

#endif
