// SPDX-License-Identifier: Apache-2.0
// The lane protocol, checked for every order in which relaxed stores may reach memory. Sanitizers
// can't see such orders; hardware shows them rarely. Each rule is also broken once, to know that
// the checks would see it.
#include "tests/protocol_model.h"

#include <gtest/gtest.h>

#include <random>

namespace lamprey_model {

void PrintTo(Broken rule, std::ostream *out)
{
    *out << "rule " << (int)rule;
}

namespace {

constexpr lamprey_algorithm kOne = LAMPREY_ONE_SHOT;
constexpr lamprey_algorithm kTwo = LAMPREY_TWO_SHOT;
constexpr Packet kWords = Packet::words;
constexpr Packet kDoubles = Packet::doubles;
constexpr Packet kFlagged = Packet::flagged;

constexpr Call kSmall = {kOne, kWords, 1, 1};
constexpr Call kDouble = {kOne, kDoubles, 1, 1};
constexpr Call kInteger = {kOne, kFlagged, 1, 1};
constexpr Call kSharded = {kTwo, kWords, 2, 1};
constexpr Call kIdle = {kOne, kWords, 0, 1};
constexpr Call kFused = {kOne, kWords, 1, 1, 1, true};

// Kernels of one thread a rank: sizes, layouts and packets of all sorts.
constexpr Call kKernels[] = {
    kSmall,
    kInteger,
    kIdle,
    {kTwo, kWords, 2, 1},
    {kOne, kWords, 2, 2},   // a larger one
    {kTwo, kFlagged, 1, 1}, // rows of two cells; the last rank has no shard
    {kOne, kDoubles, 3, 1}, // three rounds
    {kTwo, kDoubles, 4, 1}, // two rounds
};

std::string in_words(const Model &model)
{
    std::string text = std::to_string(model.ranks) + " ranks:";
    for (const Call &call : model.calls) {
        text += " {" + std::to_string(call.algorithm) + " " + std::to_string((int)call.packet) +
                " " + std::to_string(call.vectors) + " " + std::to_string(call.lane_vectors) + " " +
                std::to_string(call.threads) + "}";
    }
    return text;
}

// Both checks find nothing; how many states there were.
size_t expect_right(const Model &model)
{
    const Programs programs = programs_of(model);
    const Found found = search(programs);
    EXPECT_EQ(found.error, "") << in_words(model);
    EXPECT_EQ(unordered(programs), "") << in_words(model);
    return found.states;
}

TEST(ProtocolModel, IsRightForAllSequencesOfKernels)
{
    constexpr size_t kinds = sizeof kKernels / sizeof *kKernels;
    size_t states = 0;
    for (size_t sequence = 0; sequence < kinds * kinds * kinds * kinds; sequence++) {
        Model model;
        for (size_t rest = sequence, i = 0; i < 4; i++, rest /= kinds) {
            model.calls.push_back(kKernels[rest % kinds]);
        }
        states += expect_right(model);
        ASSERT_FALSE(HasFailure());
    }
    EXPECT_GT(states, 100000u) << "too few to have looked at anything";
}

// Kernels of several rounds and threads: the clear of a thread is of what another one read.
TEST(ProtocolModel, IsRightWithSeveralThreads)
{
    const Model models[] = {
        {{{kOne, kFlagged, 4, 1, 2}}},
        {{{kOne, kWords, 8, 2, 2}}},
        {{kInteger, {kOne, kFlagged, 3, 1, 2}}},
        {{kSharded, {kOne, kWords, 6, 2, 2}, kSmall}},
        {{{kTwo, kWords, 16, 2, 2}}},
        {{{kOne, kWords, 2, 2, 2}, {kTwo, kFlagged, 2, 1, 2}, {kOne, kFlagged, 2, 1, 2}, kSmall}},
    };
    for (const Model &model : models) {
        expect_right(model);
    }
}

// Words are judged one by one, so what goes wrong with cells of four goes wrong with two.
TEST(ProtocolModel, IsRightWithWholeCells)
{
    for (const Call &call : {kSmall, kDouble, kInteger, kSharded}) {
        expect_right({{call, call, call, call}, 2, 4});
        expect_right({{call, kDouble, kSmall, call}, 2, 4});
    }
}

TEST(ProtocolModel, IsRightForThreeRanks)
{
    const Call all_shards = {kTwo, kDoubles, 3, 1};
    const Call one_shard = {kTwo, kDoubles, 1, 1}; // two ranks hear of each other by the third only
    expect_right({{kDouble, kDouble, kDouble, kDouble, kDouble, kDouble}, 3});
    expect_right({{kSmall, kSmall, kSmall, kSmall}, 3});
    expect_right({{one_shard, one_shard, one_shard, one_shard}, 3});
    expect_right({{one_shard, kDouble, one_shard, kSmall}, 3});
    expect_right({{one_shard, kDouble, kDouble, one_shard}, 3});
    expect_right({{all_shards, kDouble, one_shard, kDouble}, 3});
    expect_right({{{kOne, kWords, 4, 1}}, 3});
    expect_right({{{kTwo, kDoubles, 10, 1}}, 3});
}

Call any_call(std::mt19937 &random)
{
    Call call;
    call.algorithm = random() % 2 ? kTwo : kOne;
    call.packet = (Packet)(random() % 3);
    const int row_vectors = (call.algorithm == kTwo ? 2 : 4) / (call.packet == kFlagged ? 2 : 1);
    call.lane_vectors = 1 + (int)(random() % (unsigned)row_vectors);
    call.vectors = (int)(random() % 24);
    call.threads = 1 + (int)(random() % 4);
    call.fused = random() % 3 == 0;
    return call;
}

// Every sequence of four, each put together with the next or not. All ranks alike: where one of
// them has a kernel's boundary between, there is only more order.
TEST(ProtocolModel, IsRightWithFusedCalls)
{
    const Call alone[] = {kSmall, kIdle, kSharded, {kOne, kDoubles, 3, 1}};
    for (size_t sequence = 0; sequence < 256; sequence++) {
        for (size_t fused = 1; fused < 8; fused++) {
            Model model;
            for (size_t rest = sequence, i = 0; i < 4; i++, rest /= 4) {
                model.calls.push_back(alone[rest % 4]);
                model.calls[i].fused = fused >> i & 1;
            }
            expect_right(model);
            ASSERT_FALSE(HasFailure());
        }
    }
    for (Call call : {Call{kOne, kWords, 2, 2, 2}, Call{kTwo, kFlagged, 2, 1, 2}}) {
        Call last = call;
        call.fused = true;
        expect_right({{call, call, last}});
        expect_right({{call, {kOne, kWords, 1, 1, 2, true}, last}});
    }
}

// Larger than what can be searched.
TEST(ProtocolModel, OrdersEveryAccessOfLongSequences)
{
    std::mt19937 random(1);
    for (int i = 0; i < 1500; i++) {
        Model model;
        model.ranks = 2 + i % 3;
        model.cell_words = 2 + i / 3 % 2 * 2;
        model.first_round = 0xfffffffe;
        for (int call = 0; call < 5; call++) {
            model.calls.push_back(any_call(random));
        }
        ASSERT_EQ(unordered(programs_of(model)), "") << in_words(model);
    }
}

struct Break {
    const char *name;
    Broken rule;
    Model model; // in which it shows
};

void PrintTo(const Break &broken, std::ostream *out)
{
    *out << broken.name;
}

const Break kBreaks[] = {
    {"ThreeSlots", Broken::three_slots, {{kSmall, kSmall, kSmall, kSmall}}},
    {"EveryRoundToClear", Broken::clear_every_round, {{kSmall, kSmall, kSmall, kSmall}}},
    {"TheLastSlotCleared", Broken::clear_last_slot, {{kSmall, kSmall, kSmall, kSmall}}},
    {"AsMuchClearedAsWasFilled",
     Broken::clear_last_layout,
     {{{kOne, kWords, 2, 2}, kSmall, kSmall, {kOne, kWords, 2, 2}}}},
    {"ClearedInTheLayoutThatWasFilled",
     Broken::clear_last_layout,
     {{kSharded, kSmall, kSmall, kSharded}}},
    {"EveryCellCleared", Broken::clear_all_cells, {{kInteger, kInteger, kInteger, kInteger}}},
    {"BothAreasCleared", Broken::clear_both_areas, {{kSharded, kSmall, kSmall, kSharded}}},
    {"IdleLanesToRest", Broken::idle_lanes_rest, {{kSmall, kIdle, kSmall, kSmall}}},
    {"TheSlotKeptApart",
     Broken::slot_kept_apart,
     {{kSmall, kSmall, kSmall, kSmall}, 2, 2, 0xfffffffe}},
    {"AFenceBetweenRounds", Broken::fence_between_rounds, {{{kOne, kWords, 4, 1}}}},
    {"AFenceBetweenRoundsAfterAnotherKernel",
     Broken::fence_between_rounds,
     {{kSharded, {kOne, kDoubles, 3, 1}}}},
    {"AFenceBetweenMessages", Broken::fence_between_messages, {{kFused, kFused, kFused, kSmall}}},
    {"EveryThreadsFence", Broken::every_thread_fences, {{{kOne, kWords, 8, 2, 2}}}},
    {"ABarrierBetweenRounds", Broken::barrier_between_rounds, {{{kOne, kFlagged, 4, 1, 2}}}},
    {"ABarrierBeforeTheState",
     Broken::barrier_before_state,
     {{{kOne, kWords, 2, 2, 2}, {kOne, kWords, 2, 2, 2}}}},
    {"TheKernelBoundary", Broken::kernel_boundary, {{kSmall, kSmall, kSmall, kSmall}}},
    {"ResultsApartFromParts", Broken::areas_apart, {{kSharded}}},
    {"EveryWordJudged", Broken::every_word_judged, {{kSmall}}},
    {"FlagAndDataInOne", Broken::flag_beside_data, {{kInteger}}},
    {"DoublesWhole", Broken::doubles_whole, {{kDouble}}},
    {"TheSentinelReplaced", Broken::sentinel_replaced, {{kSmall}}},
    {"TheSentinelReplacedInDoubles", Broken::sentinel_replaced, {{kDouble}}},
};

class ProtocolModelNeeds : public ::testing::TestWithParam<Break> {};

TEST_P(ProtocolModelNeeds, Rule)
{
    Model model = GetParam().model;
    expect_right(model);
    model.broken = GetParam().rule;
    const Programs programs = programs_of(model);
    const Found found = search(programs);
    EXPECT_FALSE(found.too_large);
    EXPECT_NE(found.error, "");
    EXPECT_NE(unordered(programs), "") << "but the search finds: " << found.error;
}

INSTANTIATE_TEST_SUITE_P(Rules, ProtocolModelNeeds, ::testing::ValuesIn(kBreaks),
                         [](const auto &info) { return std::string(info.param.name); });

// The orders that the search leaves out lead to nothing new; and the order check, which says more
// than it must, never says less.
TEST(ProtocolModel, ChecksAgree)
{
    const Model models[] = {
        {{kDouble, kDouble, kDouble, kDouble}},
        {{kSmall, kSmall, kSmall, kSmall}, 2, 2, 0xfffffffe},
        {{kSmall, kIdle, kSmall, kSmall}},
        {{{kTwo, kDoubles, 2, 1}, kDouble, kDouble, {kTwo, kDoubles, 1, 1}}},
        {{{kOne, kDoubles, 3, 1, 2}, kDouble}},
        {{{kOne, kDoubles, 1, 1, 2}, {kOne, kDoubles, 1, 1, 2}}},
        {{kInteger, kDouble, kDouble, kSmall}},
    };
    int searched = 0;
    for (Model model : models) {
        for (int rule = 0; rule <= (int)Broken::sentinel_replaced; rule++) {
            model.broken = (Broken)rule;
            const Programs programs = programs_of(model);
            const Found all = search(programs, Orders::all, 30000);
            const Found enough = search(programs);
            if (all.too_large) {
                continue;
            }
            searched++;
            EXPECT_EQ(all.error == "", enough.error == "")
                << in_words(model) << ", rule " << rule << ": " << all.error << enough.error;
            EXPECT_TRUE(all.error == "" || unordered(programs) != "")
                << in_words(model) << ", rule " << rule << ": " << all.error;
        }
    }
    EXPECT_GT(searched, 100);
}

} // namespace

} // namespace lamprey_model
