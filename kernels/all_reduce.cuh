/* SPDX-License-Identifier: Apache-2.0 */
/* The all-reduces. The protocol and the staging memory's layout are in protocol.h.
 *
 * Between two kernels the kernel boundary orders a round's clears before the next round's pushes;
 * between two rounds of one kernel a fence does. */
#ifndef LAMPREY_KERNELS_ALL_REDUCE_CUH
#define LAMPREY_KERNELS_ALL_REDUCE_CUH

#include "kernels/message.cuh"
#include "kernels/operators.cuh"

namespace lamprey {

/* One lane's part of a call. ELEMENT, OPERATORS, RANKS: instances.h. */
template <int ELEMENT, int OPERATORS, int RANKS> struct lane_work {
    using E = typename element_of<ELEMENT>::type;
    using OP = typename operator_of<OPERATORS, E>::type;
    using params = typename params_for<RANKS>::type;
    using packet = typename E::packet;
    using number = typename E::number;
    static constexpr int elements = elements_per_vector<E>;
    /* Ranks that are waited for together: arrays of this size stay in registers. */
    static constexpr unsigned batch = RANKS ? RANKS : LAMPREY_NEAR_RANKS / packet::cells;

    const params &p;
    const unsigned nranks;
    const unsigned lane;
    const OP op;
    unsigned slot;
    bool aborted = false;

    LAMPREY_INLINE explicit lane_work(const params &given)
        : p(given), nranks(RANKS ? RANKS : given.nranks), lane(block_index()), op(given)
    {
    }

    /* Vector index of a row that lies in owner's memory. */
    LAMPREY_INLINE vector *cell(unsigned owner, unsigned of_slot, unsigned row, unsigned row_cells,
                                unsigned index) const
    {
        const uint64_t first = (uint64_t)(lane * LAMPREY_SLOTS + of_slot) * p.slot_cells;
        return reinterpret_cast<vector *>(p.staging[owner]) + first + row * row_cells +
               index * packet::cells;
    }

    LAMPREY_INLINE vector load_clean(uint64_t index) const
    {
        return packet::clean(load_input<E>(p.send, index, p.count, p.flags & LAMPREY_FLAG_WIDE));
    }

    LAMPREY_INLINE void store_result(uint64_t index, const vector &v) const
    {
        store_output<E>(p.recv, index, p.count, p.flags & LAMPREY_FLAG_WIDE, v);
    }

    LAMPREY_INLINE void clear(unsigned of_slot, unsigned dirty) const
    {
        const vector empty = {
            {LAMPREY_SENTINEL, LAMPREY_SENTINEL, LAMPREY_SENTINEL, LAMPREY_SENTINEL}};
        const bool two_shot = dirty & LAMPREY_DIRTY_TWO_SHOT;
        const unsigned row_cells = p.row_cells[two_shot ? LAMPREY_TWO_SHOT : LAMPREY_ONE_SHOT];
        const unsigned rows = two_shot ? 2 * nranks : nranks;
        const uint64_t first = (uint64_t)(lane * LAMPREY_SLOTS + of_slot) * p.slot_cells;
        vector *const cells = reinterpret_cast<vector *>(p.staging[p.rank]) + first;
        for (unsigned index = thread_index(); index < (dirty & ~LAMPREY_DIRTY_TWO_SHOT);
             index += block_size()) {
            for (unsigned row = 0; row < rows; row++) {
                if (row != p.rank && row != nranks + p.rank) {
                    store_relaxed_sys(cells + row * row_cells + index, empty);
                }
            }
        }
    }

    /* Waits for vector index of the rows that belong to ranks first to first + batch, all but our
     * own. */
    LAMPREY_INLINE void receive(unsigned first_row, unsigned row_cells, unsigned first,
                                unsigned index, vector *received)
    {
        for (unsigned polls = 1; !aborted; polls++) {
            bool complete = true;
#pragma unroll
            for (unsigned i = 0; i < batch; i++) {
                const unsigned source = first + i;
                if (source < nranks && source != p.rank) {
                    complete &= packet::receive(
                        cell(p.rank, slot, first_row + source, row_cells, index), &received[i]);
                }
            }
            if (complete) {
                return;
            }
            if (polls % polls_per_abort_check == 0 && load_relaxed_sys(p.abort) != 0) {
                aborted = true;
            }
        }
    }

    LAMPREY_INLINE void add(number *total, const vector &v, bool first) const
    {
        constexpr int group = elements_per_group<E>;
#pragma unroll
        for (int i = 0; i < elements / group; i++) {
            number next[group];
            E::unpack(v.word + i * E::group, next);
            op.template prepare<group>(next);
            if (first) {
#pragma unroll
                for (int k = 0; k < group; k++) {
                    total[i * group + k] = next[k];
                }
            } else {
                op.template combine<group>(total + i * group, next);
            }
        }
    }

    /* All ranks' vectors of index, ours among them, as one. */
    LAMPREY_INLINE vector reduce(unsigned row_cells, unsigned index, const vector &own)
    {
        number total[elements];
#pragma unroll 1
        for (unsigned first = 0; first < nranks; first += batch) {
            vector received[batch];
            receive(0, row_cells, first, index, received);
#pragma unroll
            for (unsigned i = 0; i < batch; i++) {
                const unsigned source = first + i;
                if (source < nranks) {
                    add(total, select(source == p.rank, own, received[i]), source == 0);
                }
            }
        }
        op.template finish<elements>(total);
        return E::pack(total);
    }

    LAMPREY_INLINE void one_shot_round(uint64_t first_vector, unsigned count, bool first_round,
                                       vector own, unsigned last_slot, unsigned dirty, bool last,
                                       const vector &next_state)
    {
        const unsigned row_cells = p.row_cells[LAMPREY_ONE_SHOT];
        each_vector(count, [&](unsigned index) {
            if (!thread_has_one_vector || !first_round) {
                own = load_clean(first_vector + index);
            }
#pragma unroll
            for (unsigned i = 0; i < (RANKS ? RANKS : nranks); i++) {
                if (i != p.rank) {
                    packet::send(cell(i, slot, p.rank, row_cells, index), own);
                }
            }
        });
        turn(last_slot, dirty, last, next_state);
        each_vector(count, [&](unsigned index) {
            if (!thread_has_one_vector) {
                own = load_clean(first_vector + index);
            }
            const vector result = reduce(row_cells, index, own);
            if (!aborted) {
                store_result(first_vector + index, result);
            }
        });
    }

    LAMPREY_INLINE void two_shot_round(uint64_t first_vector, unsigned last_slot, unsigned dirty,
                                       bool last, const vector &next_state)
    {
        const unsigned row_cells = p.row_cells[LAMPREY_TWO_SHOT];
        vector own = {{0, 0, 0, 0}};
        each_vector(p.lane_vectors, [&](unsigned index) {
#pragma unroll 1
            for (unsigned first = 0; first < nranks; first += batch) {
                vector input[batch];
#pragma unroll
                for (unsigned i = 0; i < batch; i++) {
                    const uint64_t at = shard_vector(first_vector, first + i, index);
                    if (first + i < nranks && at < p.vectors) {
                        input[i] = load_clean(at);
                    }
                }
#pragma unroll
                for (unsigned i = 0; i < batch; i++) {
                    const unsigned owner = first + i;
                    if (owner < nranks && shard_vector(first_vector, owner, index) < p.vectors) {
                        if (owner == p.rank) {
                            own = input[i];
                        } else {
                            packet::send(cell(owner, slot, p.rank, row_cells, index), input[i]);
                        }
                    }
                }
            }
        });
        turn(last_slot, dirty, last, next_state);
        each_vector(p.lane_vectors, [&](unsigned index) {
            const uint64_t at = shard_vector(first_vector, p.rank, index);
            if (at < p.vectors) {
                if (!thread_has_one_vector) {
                    own = load_clean(at);
                }
                const vector result = reduce(row_cells, index, own);
                if (!aborted) {
                    store_result(at, result);
                    for (unsigned i = 0; i < nranks; i++) {
                        if (i != p.rank) {
                            packet::send(cell(i, slot, nranks + p.rank, row_cells, index), result);
                        }
                    }
                }
            }
        });
        each_vector(p.lane_vectors,
                    [&](unsigned index) { gather(first_vector, row_cells, index); });
    }

    LAMPREY_INLINE uint64_t shard_vector(uint64_t first_vector, unsigned shard,
                                         unsigned index) const
    {
        return first_vector + (uint64_t)shard * p.lane_vectors + index;
    }

    /* The other ranks' finished shards. */
    LAMPREY_INLINE void gather(uint64_t first_vector, unsigned row_cells, unsigned index)
    {
        for (unsigned source = 0; source < nranks; source++) {
            const uint64_t at = shard_vector(first_vector, source, index);
            if (source != p.rank && at < p.vectors) {
                vector result;
                receive_one(nranks + source, row_cells, index, &result);
                if (!aborted) {
                    store_result(at, result);
                }
            }
        }
    }

    LAMPREY_INLINE void receive_one(unsigned row, unsigned row_cells, unsigned index,
                                    vector *received)
    {
        for (unsigned polls = 1; !aborted; polls++) {
            if (packet::receive(cell(p.rank, slot, row, row_cells, index), received)) {
                return;
            }
            if (polls % polls_per_abort_check == 0 && load_relaxed_sys(p.abort) != 0) {
                aborted = true;
            }
        }
    }

    /* After the pushes, off their way: the last round's slot is cleared, and the state of the next
     * call stored once every thread has read this one's. */
    LAMPREY_INLINE void turn(unsigned last_slot, unsigned dirty, bool last,
                             const vector &next_state) const
    {
        clear(last_slot, dirty);
        block_sync();
        if (last && thread_index() == 0) {
            store(reinterpret_cast<vector *>(p.lanes + lane), next_state);
        }
    }

    template <int ALGORITHM> LAMPREY_INLINE void run()
    {
        wait_for_dependencies();
        if (p.flags & LAMPREY_FLAG_SIGNAL) {
            launch_dependents();
        }
        /* The state's load overlaps the first input's. */
        const vector state = load(reinterpret_cast<const vector *>(p.lanes + lane));
        constexpr bool one_shot = ALGORITHM == LAMPREY_ONE_SHOT;
        const unsigned lane_vectors = p.lane_vectors * (one_shot ? 1 : nranks);
        uint64_t first = (uint64_t)lane * lane_vectors;
        vector early = {{0, 0, 0, 0}};
        if (one_shot && thread_has_one_vector && first + thread_index() < p.vectors &&
            thread_index() < p.lane_vectors) {
            early = load_clean(first + thread_index());
        }
        slot = state.word[0];
        unsigned dirty = state.word[1];
        uint64_t round = (uint64_t)state.word[3] << 32 | state.word[2];
        for (unsigned i = 0; i < p.rounds && first < p.vectors; i++) {
            const uint64_t following = first + (uint64_t)grid_size() * lane_vectors;
            const bool last = i + 1 == p.rounds || following >= p.vectors;
            const unsigned last_slot = slot == 0 ? LAMPREY_SLOTS - 1 : slot - 1;
            const unsigned next_slot = slot == LAMPREY_SLOTS - 1 ? 0 : slot + 1;
            const unsigned filled =
                p.lane_vectors * packet::cells | (one_shot ? 0 : LAMPREY_DIRTY_TWO_SHOT);
            round++;
            const vector next = {{next_slot, filled, (uint32_t)round, (uint32_t)(round >> 32)}};
            if (one_shot) {
                const uint64_t left = p.vectors - first;
                one_shot_round(first, (unsigned)(left < p.lane_vectors ? left : p.lane_vectors),
                               i == 0, early, last_slot, dirty, last, next);
            } else {
                two_shot_round(first, last_slot, dirty, last, next);
            }
            if (!last) {
                fence_sys();
                block_sync();
            }
            slot = next_slot;
            dirty = filled;
            first = following;
        }
    }
};

} // namespace lamprey

#endif
