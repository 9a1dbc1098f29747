// SPDX-License-Identifier: Apache-2.0
// An explicit-state check of the lane protocol (kernels/protocol.h): one lane of two ranks, a few
// rounds of all sizes, every order in which relaxed stores may reach memory. Sanitizers can't see
// such orders; hardware shows them rarely. Each rule that the design gives is also broken once, to
// know that the check would see it.
#include <gtest/gtest.h>
#include <stdint.h>
#include <string.h>

#include <algorithm>
#include <string>
#include <unordered_set>
#include <vector>

namespace {

constexpr int kRanks = 2;
constexpr int kMaxSlots = 4;
constexpr int kWords = 2; // of a lane's piece of a slot, as many as the largest message has
constexpr uint8_t kEmpty = 0;

struct Rules {
    int slots = 3;
    int clear_age = 1;                // rounds between the use of a slot and its clearing
    bool clear_what_was_dirty = true; // else only as much as the current round uses
    bool fence_between_rounds = true; // the kernel boundary
    bool idle_rounds_rest =
        true; // else a lane that moves nothing takes a slot all the same, without clearing
};

struct Store {
    uint8_t target;
    uint8_t slot;
    uint8_t word;
    uint8_t value;

    bool same_place(const Store &other) const
    {
        return target == other.target && slot == other.slot && word == other.word;
    }
};

enum Phase : uint8_t { kPush, kClear, kPoll, kBoundary };

struct Rank {
    uint8_t round = 0;
    Phase phase = kPush;
    uint8_t polled = 0;
    uint8_t slot = 0;
    uint8_t dirty[kMaxSlots] = {}; // what each slot was last used for
    uint8_t memory[kMaxSlots][kWords] = {};
    std::vector<Store> in_flight; // issued, not yet in memory; in program order
};

struct State {
    Rank ranks[kRanks];

    std::string key() const
    {
        std::string text;
        for (const Rank &rank : ranks) {
            text += (char)rank.round;
            text += (char)rank.phase;
            text += (char)rank.polled;
            text += (char)rank.slot;
            text.append((const char *)rank.dirty, sizeof rank.dirty);
            text.append((const char *)rank.memory, sizeof rank.memory);
            text += (char)rank.in_flight.size();
            for (const Store &store : rank.in_flight) {
                text.append((const char *)&store, sizeof store);
            }
        }
        return text;
    }
};

class Model {
  public:
    Model(const Rules &rules, std::vector<int> sizes) : rules_(rules), sizes_(std::move(sizes))
    {
    }

    // "" if every execution ends with every rank having read what its peer sent.
    std::string check()
    {
        std::vector<State> todo(1);
        std::unordered_set<std::string> seen{todo[0].key()};
        while (!todo.empty()) {
            const State state = todo.back();
            todo.pop_back();
            std::vector<State> next;
            for (int rank = 0; rank < kRanks; rank++) {
                step(state, rank, next);
                perform(state, rank, next);
            }
            if (!error_.empty()) {
                return error_;
            }
            if (next.empty() && !finished(state)) {
                return "stuck in round " + std::to_string(state.ranks[0].round) + " and " +
                       std::to_string(state.ranks[1].round);
            }
            for (const State &candidate : next) {
                if (seen.insert(candidate.key()).second) {
                    todo.push_back(candidate);
                }
            }
        }
        states_ = seen.size();
        return "";
    }

    size_t states() const
    {
        return states_;
    }

  private:
    static uint8_t token(int sender, int round, int word)
    {
        return (uint8_t)(1 + sender + kRanks * (word + kWords * round));
    }

    bool finished(const State &state) const
    {
        return std::all_of(std::begin(state.ranks), std::end(state.ranks),
                           [&](const Rank &rank) { return rank.round == sizes_.size(); });
    }

    // The next step of the rank's program, if it can be taken.
    void step(const State &state, int self, std::vector<State> &next)
    {
        State after = state;
        Rank &rank = after.ranks[self];
        if (rank.round == sizes_.size()) {
            return;
        }
        const int size = sizes_[rank.round];
        if (size == 0 && rules_.idle_rounds_rest) {
            rank.round++;
            next.push_back(after);
            return;
        }
        switch (rank.phase) {
        case kPush:
            for (int word = 0; word < size; word++) {
                rank.in_flight.push_back(
                    {(uint8_t)(1 - self), rank.slot, (uint8_t)word, token(self, rank.round, word)});
            }
            rank.phase = kClear;
            break;
        case kClear: {
            const int old = (rank.slot + rules_.slots - rules_.clear_age) % rules_.slots;
            const int length = size == 0 ? 0 : rules_.clear_what_was_dirty ? rank.dirty[old] : size;
            for (int word = 0; word < length; word++) {
                rank.in_flight.push_back({(uint8_t)self, (uint8_t)old, (uint8_t)word, kEmpty});
            }
            rank.phase = kPoll;
            break;
        }
        case kPoll:
            if (rank.polled < size) {
                const uint8_t value = rank.memory[rank.slot][rank.polled];
                if (value == kEmpty) {
                    return;
                }
                if (value != token(1 - self, rank.round, rank.polled)) {
                    error_ = "rank " + std::to_string(self) +
                             " reads another round's word in round " + std::to_string(rank.round);
                    return;
                }
                rank.polled++;
            } else {
                rank.phase = kBoundary;
            }
            break;
        case kBoundary:
            if (rules_.fence_between_rounds && !rank.in_flight.empty()) {
                return;
            }
            rank.dirty[rank.slot] = (uint8_t)size;
            rank.slot = (uint8_t)((rank.slot + 1) % rules_.slots);
            rank.polled = 0;
            rank.phase = kPush;
            rank.round++;
            break;
        }
        next.push_back(after);
    }

    // Any issued store may reach memory next, but stores of one rank to one place stay in order.
    static void perform(const State &state, int self, std::vector<State> &next)
    {
        const std::vector<Store> &stores = state.ranks[self].in_flight;
        for (size_t i = 0; i < stores.size(); i++) {
            bool first = true;
            for (size_t j = 0; j < i; j++) {
                first = first && !stores[j].same_place(stores[i]);
            }
            if (first) {
                State after = state;
                after.ranks[stores[i].target].memory[stores[i].slot][stores[i].word] =
                    stores[i].value;
                after.ranks[self].in_flight.erase(after.ranks[self].in_flight.begin() + (long)i);
                next.push_back(after);
            }
        }
    }

    Rules rules_;
    std::vector<int> sizes_;
    std::string error_;
    size_t states_ = 0;
};

// The first thing that goes wrong over all sequences of message sizes (0: the lane sits out).
std::string first_error(const Rules &rules, size_t rounds, size_t *states = nullptr)
{
    size_t sequences = 1;
    for (size_t i = 0; i < rounds; i++) {
        sequences *= kWords + 1;
    }
    size_t total = 0;
    for (size_t sequence = 0; sequence < sequences; sequence++) {
        std::vector<int> sizes;
        for (size_t i = 0, rest = sequence; i < rounds; i++, rest /= kWords + 1) {
            sizes.push_back((int)(rest % (kWords + 1)));
        }
        Model model(rules, sizes);
        const std::string error = model.check();
        if (!error.empty()) {
            return error;
        }
        total += model.states();
    }
    if (states) {
        *states = total;
    }
    return "";
}

constexpr size_t kRounds = 6;

TEST(ProtocolModel, IsRightForAllSizesAndOrders)
{
    size_t states = 0;
    EXPECT_EQ(first_error(Rules(), kRounds, &states), "");
    EXPECT_GT(states, 100000u) << "too few to have looked at anything";
}

TEST(ProtocolModel, NeedsThreeSlotsToClearARoundLate)
{
    Rules rules;
    rules.slots = 2;
    EXPECT_NE(first_error(rules, kRounds), "");
}

TEST(ProtocolModel, NeedsEveryDirtyWordCleared)
{
    Rules rules;
    rules.clear_what_was_dirty = false;
    EXPECT_NE(first_error(rules, kRounds), "");
}

TEST(ProtocolModel, NeedsAFenceBetweenRounds)
{
    Rules rules;
    rules.fence_between_rounds = false;
    EXPECT_NE(first_error(rules, kRounds), "");
}

TEST(ProtocolModel, NeedsIdleLanesToRest)
{
    Rules rules;
    rules.idle_rounds_rest = false;
    EXPECT_NE(first_error(rules, kRounds), "");
}

TEST(ProtocolModel, AllowsMoreSlotsAndLaterClears)
{
    Rules rules;
    rules.slots = 4;
    EXPECT_EQ(first_error(rules, 5), "");
    rules.clear_age = 2;
    EXPECT_EQ(first_error(rules, 5), "");
}

} // namespace
