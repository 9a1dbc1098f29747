// SPDX-License-Identifier: Apache-2.0
// What each thread does in each kernel, after kernels/all_reduce.cuh; names are the same.
#include <algorithm>
#include <map>

#include "tests/protocol_model.h"

namespace lamprey_model {

namespace {

constexpr int kSlotRows = 4; // cells a slot has for each rank

class Generator {
  public:
    explicit Generator(const Model &model) : model_(model), nranks_(model.ranks)
    {
        for (const Call &call : model.calls) {
            block_ = std::max(block_, call.threads);
        }
        for (int rank = 0; rank < nranks_; rank++) {
            for (int index = 0; index < block_; index++) {
                programs_.threads.push_back({rank, index, {}});
            }
        }
    }

    Programs generate()
    {
        for (const Call &call : model_.calls) {
            kernel(call);
        }
        programs_.rounds = rounds_;
        pack_memory();
        return programs_;
    }

  private:
    bool broken(Broken rule) const
    {
        return model_.broken == rule;
    }

    unsigned slots() const
    {
        return broken(Broken::three_slots) ? 2 : LAMPREY_SLOTS;
    }

    unsigned slot() const
    {
        return broken(Broken::slot_kept_apart)
                   ? (uint32_t)(model_.first_round + (uint64_t)rounds_) % slots()
                   : (unsigned)turns_ % slots();
    }

    int slot_cells() const
    {
        return kSlotRows * nranks_;
    }

    int row_cells(lamprey_algorithm algorithm) const
    {
        return slot_cells() / (int)lamprey_rows(algorithm, (uint32_t)nranks_);
    }

    static int vector_cells(const Call &call)
    {
        return call.packet == Packet::flagged ? 2 : 1;
    }

    // The word in which the state of a rank's lane lies; staging memory is before it.
    int state_word(int rank) const
    {
        const int words = LAMPREY_SLOTS * slot_cells() * model_.cell_words + 1;
        return (rank + 1) * words - 1;
    }

    int staging_word(int rank, unsigned of_slot, int row, int row_cells, int cell) const
    {
        const int words = LAMPREY_SLOTS * slot_cells() * model_.cell_words + 1;
        const int at = (int)of_slot * slot_cells() + row * row_cells + cell;
        return rank * words + at * model_.cell_words;
    }

    template <class F> void each_thread(int threads, F f)
    {
        for (Thread &thread : programs_.threads) {
            if (thread.index < threads) {
                thread_ = &thread;
                rank_ = thread.rank;
                f();
            }
        }
    }

    template <class F> void each_vector(const Call &call, int count, F f)
    {
        for (int index = thread_->index; index < count; index += call.threads) {
            f(index);
        }
    }

    void add(Kind kind, int word, int width, uint8_t first, uint8_t second = 0,
             Ready ready = Ready::not_ones, int threads = 0)
    {
        thread_->operations.push_back({kind,
                                       ready,
                                       (uint8_t)width,
                                       {first, second},
                                       (uint16_t)word,
                                       (uint16_t)phase_,
                                       (uint8_t)threads,
                                       (uint16_t)rounds_});
    }

    void barrier(int threads)
    {
        each_thread(threads, [&] { add(Kind::barrier, 0, 0, 0, 0, Ready::not_ones, threads); });
        phase_++;
    }

    void fence(int threads)
    {
        each_thread(threads, [&] { add(Kind::fence, 0, 0, 0); });
    }

    // A word of data, never a sentinel nor a flag: of which sender, round, area and vector it is.
    uint8_t token(int sender, bool finished, int index) const
    {
        return (uint8_t)(1 + (((rounds_ % 7 * 4 + sender) * 2 + finished) * 4 + index % 4));
    }

    // Word i of a vector as it is sent. Some data looks like the sentinel: which, changes from
    // round to round.
    uint8_t data(const Call &call, int sender, bool finished, int vector, int i) const
    {
        const int index = vector * model_.cell_words + i;
        const bool ones = (index + rounds_) % 2 == 1;
        const bool replaced = !broken(Broken::sentinel_replaced);
        switch (call.packet) {
        case Packet::words:
            return ones && !replaced ? kOnes : token(sender, finished, index);
        case Packet::doubles: // half a scalar may be all ones, not both
            return (ones && rounds_ % 2 == 1) || !replaced ? kOnes : token(sender, finished, index);
        case Packet::flagged:
            return ones ? kOnes : token(sender, finished, index);
        }
        return 0;
    }

    void send(const Call &call, int to, int row, int sender, bool finished, int vector)
    {
        const int word =
            staging_word(to, slot(), row, row_cells(call.algorithm), vector * vector_cells(call));
        for (int i = 0; i < model_.cell_words; i++) {
            const uint8_t value = data(call, sender, finished, vector, i);
            if (call.packet == Packet::words) {
                add(Kind::store, word + i, 1, value);
            } else if (call.packet == Packet::doubles) {
                if (broken(Broken::doubles_whole)) {
                    add(Kind::store, word + i, 1, value);
                } else if (i % 2 == 0) {
                    add(Kind::store, word + i, 2, value,
                        data(call, sender, finished, vector, i + 1));
                }
            } else if (broken(Broken::flag_beside_data)) {
                add(Kind::store, word + 2 * i, 1, value);
                add(Kind::store, word + 2 * i + 1, 1, kFlag);
            } else {
                add(Kind::store, word + 2 * i, 2, value, kFlag);
            }
        }
    }

    void receive(const Call &call, int row, int sender, bool finished, int vector)
    {
        const int word = staging_word(rank_, slot(), row, row_cells(call.algorithm),
                                      vector * vector_cells(call));
        for (int i = 0; i < model_.cell_words; i++) {
            const uint8_t value = data(call, sender, finished, vector, i);
            if (call.packet == Packet::words) {
                const bool judged = i == 0 || !broken(Broken::every_word_judged);
                add(judged ? Kind::await : Kind::load, word + i, 1, value);
            } else if (call.packet == Packet::doubles) {
                if (i % 2 == 0) {
                    add(Kind::await, word + i, 2, value,
                        data(call, sender, finished, vector, i + 1));
                }
            } else if (broken(Broken::flag_beside_data)) {
                add(Kind::await, word + 2 * i + 1, 1, kFlag, 0, Ready::flag);
                add(Kind::load, word + 2 * i, 1, value);
            } else {
                add(Kind::await, word + 2 * i, 2, value, kFlag, Ready::flag);
            }
        }
    }

    void clear(const Call &call)
    {
        if (broken(Broken::clear_every_round)) {
            return;
        }
        const int age = broken(Broken::clear_last_slot) ? 2 : 1;
        const unsigned of_slot = (slot() + slots() - (unsigned)age % slots()) % slots();
        uint32_t dirty = broken(Broken::clear_last_layout) ? filled(call) : dirty_;
        bool two_shot = dirty & LAMPREY_DIRTY_TWO_SHOT;
        const lamprey_algorithm algorithm = two_shot ? LAMPREY_TWO_SHOT : LAMPREY_ONE_SHOT;
        two_shot = two_shot && !broken(Broken::clear_both_areas);
        const int rows = two_shot ? 2 * nranks_ : nranks_;
        const int cells = (int)(dirty & ~LAMPREY_DIRTY_TWO_SHOT);
        for (int index = thread_->index; index < cells; index += call.threads) {
            for (int row = 0; row < rows; row++) {
                if (row != rank_ && row != nranks_ + rank_) {
                    const int word = staging_word(rank_, of_slot, row, row_cells(algorithm), index);
                    for (int i = 0; i < model_.cell_words; i++) {
                        add(Kind::store, word + i, 1, kOnes);
                    }
                }
            }
        }
    }

    uint32_t filled(const Call &call) const
    {
        const int cells = broken(Broken::clear_all_cells) ? 1 : vector_cells(call);
        return (uint32_t)(call.lane_vectors * cells) |
               (call.algorithm == LAMPREY_TWO_SHOT ? LAMPREY_DIRTY_TWO_SHOT : 0);
    }

    void load_state()
    {
        add(Kind::load, state_word(rank_), 1, (uint8_t)turns_);
    }

    // The rest of a round's pushes: the clear, and after the last the state.
    void turn(const Call &call, bool last)
    {
        each_thread(call.threads, [&] { clear(call); });
        if (!broken(Broken::barrier_before_state)) {
            barrier(call.threads);
        }
        if (last) {
            each_thread(1, [&] { add(Kind::store, state_word(rank_), 1, (uint8_t)(turns_ + 1)); });
        }
    }

    void one_shot_round(const Call &call, int first, bool last)
    {
        const int count = std::min(call.vectors - first, call.lane_vectors);
        each_thread(call.threads, [&] {
            each_vector(call, count, [&](int index) {
                for (int i = 0; i < nranks_; i++) {
                    if (i != rank_) {
                        send(call, i, rank_, rank_, false, index);
                    }
                }
            });
        });
        turn(call, last);
        each_thread(call.threads, [&] {
            each_vector(call, count, [&](int index) {
                for (int source = 0; source < nranks_; source++) {
                    if (source != rank_) {
                        receive(call, source, source, false, index);
                    }
                }
            });
        });
    }

    void two_shot_round(const Call &call, int first, bool last)
    {
        const auto has = [&](int shard, int index) {
            return first + shard * call.lane_vectors + index < call.vectors;
        };
        const int gathered = broken(Broken::areas_apart) ? 0 : nranks_; // the first row
        each_thread(call.threads, [&] {
            each_vector(call, call.lane_vectors, [&](int index) {
                for (int owner = 0; owner < nranks_; owner++) {
                    if (owner != rank_ && has(owner, index)) {
                        send(call, owner, rank_, rank_, false, index);
                    }
                }
            });
        });
        turn(call, last);
        each_thread(call.threads, [&] {
            each_vector(call, call.lane_vectors, [&](int index) {
                for (int i = 0; i < nranks_ && has(rank_, index); i++) {
                    if (i != rank_) {
                        receive(call, i, i, false, index);
                    }
                }
                for (int i = 0; i < nranks_ && has(rank_, index); i++) {
                    if (i != rank_) {
                        send(call, i, gathered + rank_, rank_, true, index);
                    }
                }
            });
            each_vector(call, call.lane_vectors, [&](int index) {
                for (int source = 0; source < nranks_; source++) {
                    if (source != rank_ && has(source, index)) {
                        receive(call, gathered + source, source, true, index);
                    }
                }
            });
        });
    }

    void kernel(const Call &call)
    {
        if (!in_kernel_) { // else the state is carried on
            each_thread(call.threads, [&] { load_state(); });
        }
        in_kernel_ = call.fused;
        const int step = call.lane_vectors * (call.algorithm == LAMPREY_TWO_SHOT ? nranks_ : 1);
        for (int first = 0; first < call.vectors; first += step) {
            const bool last = first + step >= call.vectors;
            if (call.algorithm == LAMPREY_TWO_SHOT) {
                two_shot_round(call, first, last);
            } else {
                one_shot_round(call, first, last);
            }
            if (!last) {
                if (!broken(Broken::fence_between_rounds)) {
                    fence(broken(Broken::every_thread_fences) ? 1 : call.threads);
                }
                if (!broken(Broken::barrier_between_rounds)) {
                    barrier(call.threads);
                }
            }
            dirty_ = filled(call);
            rounds_++;
            turns_++;
        }
        if (call.vectors == 0 && broken(Broken::idle_lanes_rest)) {
            each_thread(1, [&] { add(Kind::store, state_word(rank_), 1, (uint8_t)(turns_ + 1)); });
            dirty_ = 0;
            turns_++;
        }
        if (call.fused) {
            if (!broken(Broken::fence_between_messages)) {
                fence(broken(Broken::every_thread_fences) ? 1 : block_);
            }
            barrier(block_);
        } else if (!broken(Broken::kernel_boundary)) {
            fence(block_);
            barrier(block_);
        }
    }

    // Keeps the words that are used only: states are smaller.
    void pack_memory()
    {
        std::map<int, int> place;
        for (const Thread &thread : programs_.threads) {
            for (const Operation &operation : thread.operations) {
                for (int i = 0; i < operation.width; i++) {
                    place[operation.word + i] = 0;
                }
            }
        }
        for (auto &[word, at] : place) {
            at = (int)programs_.memory.size();
            bool state = false;
            for (int rank = 0; rank < nranks_; rank++) {
                state = state || word == state_word(rank);
            }
            programs_.memory.push_back(state ? 0 : kOnes);
        }
        for (Thread &thread : programs_.threads) {
            for (Operation &operation : thread.operations) {
                if (operation.width) {
                    operation.word = (uint16_t)place[operation.word];
                }
            }
        }
    }

    const Model &model_;
    const int nranks_;
    int block_ = 1;
    Programs programs_;
    Thread *thread_ = nullptr; // whose operations are being added
    int rank_ = 0;
    int rounds_ = 0; // done
    int turns_ = 0;  // of the slots: the same, if idle lanes rest
    int phase_ = 0;
    uint32_t dirty_ = 0;
    bool in_kernel_ = false; // a call before it was fused with this one
};

} // namespace

Programs programs_of(const Model &model)
{
    return Generator(model).generate();
}

} // namespace lamprey_model
