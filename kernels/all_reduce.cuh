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

/* What lies between two rounds of one kernel: what other threads received and cleared comes before
 * what this one pushes next. */
LAMPREY_DEVICE void between_rounds()
{
    fence_sys();
    block_sync();
    fence_sys();
}

/* CTAs that have a part in the call. */
template <class PARAMS> LAMPREY_DEVICE unsigned ctas_of(const PARAMS &)
{
    return grid_size();
}

/* One lane's part of a call. ELEMENT, OPERATORS, RANKS: instances.h. SIMPLE: LAMPREY_FLAG_SIMPLE is
 * known to be set. FUSED: one of several calls in a kernel (fused.cuh). */
template <int ELEMENT, int OPERATORS, int RANKS, bool SIMPLE,
          class params = typename params_for<RANKS>::type, bool FUSED = false>
struct lane_work {
    using E = typename element_of<ELEMENT>::type;
    using OP = typename operator_of<OPERATORS, E>::type;
    using packet = typename E::packet;
    using number = typename E::number;
    static constexpr int elements = elements_per_vector<E>;
    /* Ranks that are waited for together: arrays of this size stay in registers, of which the
     * kernels for rows have fewer to spare. */
    static constexpr unsigned batch = RANKS ? RANKS
                                      : OPERATORS == LAMPREY_ROW_SUM
                                          ? LAMPREY_NEAR_RANKS / 2
                                          : LAMPREY_NEAR_RANKS / packet::cells;

    const params &p;
    const unsigned nranks;
    const unsigned lane;
    const OP op;
    unsigned slot;
    bool aborted = false;
    vector *lane_cells[RANKS ? RANKS : 1]; /* this lane's memory at peer(i); 0: our own */

    LAMPREY_INLINE explicit lane_work(const params &given)
        : p(given), nranks(RANKS ? RANKS : given.nranks), lane(block_index()), op(given)
    {
    }

    LAMPREY_INLINE vector *lane_cells_of(unsigned owner) const
    {
        return reinterpret_cast<vector *>(p.staging[owner]) +
               (uint64_t)lane * LAMPREY_SLOTS * p.slot_cells;
    }

    /* What can be known before the state is there, while its load is under way. */
    LAMPREY_INLINE void prepare_addresses()
    {
#pragma unroll
        for (unsigned k = 0; k < (RANKS ? RANKS : 1); k++) {
            lane_cells[k] = lane_cells_of(peer(k));
            settle(lane_cells[k]);
        }
    }

    /* Vector index of a row that lies in the memory of peer(k). */
    LAMPREY_INLINE vector *cell(unsigned k, unsigned of_slot, unsigned row, unsigned row_cells,
                                unsigned index) const
    {
        vector *const cells = RANKS || k == 0 ? lane_cells[k] : lane_cells_of(peer(k));
        return cells + of_slot * p.slot_cells + row * row_cells + index * packet::cells;
    }

    LAMPREY_INLINE bool wide() const
    {
        return SIMPLE || p.flags & LAMPREY_FLAG_WIDE;
    }

    /* 0: ourselves; then the others, each rank beginning with the one behind it, so that they don't
     * all send to one at a time. k: 0 to nranks - 1. */
    LAMPREY_INLINE unsigned peer(unsigned k) const
    {
        const unsigned other = p.rank + k;
        return other >= nranks ? other - nranks : other;
    }

    LAMPREY_INLINE vector load_clean(uint64_t index) const
    {
        return packet::clean(load_input<E>(p.send, index, p.count, wide()));
    }

    LAMPREY_INLINE void store_result(uint64_t index, const vector &v) const
    {
        store_output<E>(p.recv, index, p.count, wide(), v);
    }

    LAMPREY_INLINE void clear_rows(unsigned of_slot, unsigned first_row, unsigned row_cells,
                                   unsigned dirty) const
    {
        const vector empty = {
            {LAMPREY_SENTINEL, LAMPREY_SENTINEL, LAMPREY_SENTINEL, LAMPREY_SENTINEL}};
        for (unsigned index = thread_index(); index < dirty; index += block_size()) {
#pragma unroll
            for (unsigned k = 1; k < (RANKS ? RANKS : nranks); k++) {
                vector *const row = cell(0, of_slot, first_row + peer(k), row_cells, 0);
                store_relaxed_sys(row + index, empty);
            }
        }
    }

    /* What the last round filled, by the layout that it had. */
    LAMPREY_INLINE void clear(unsigned of_slot, unsigned dirty) const
    {
        if (dirty & LAMPREY_DIRTY_TWO_SHOT) {
            const unsigned row_cells = p.row_cells[LAMPREY_TWO_SHOT];
            clear_rows(of_slot, 0, row_cells, dirty & ~LAMPREY_DIRTY_TWO_SHOT);
            clear_rows(of_slot, nranks, row_cells, dirty & ~LAMPREY_DIRTY_TWO_SHOT);
        } else {
            clear_rows(of_slot, 0, p.row_cells[LAMPREY_ONE_SHOT], dirty);
        }
    }

    /* From now on the lane sends nothing, in this call and in those behind it: a peer that comes
     * late must find its data missing, not that of a later call. */
    LAMPREY_INLINE void leave()
    {
        aborted = true;
        store_relaxed_sys(&p.lanes[lane].dead, 1);
    }

    /* since: when this wait was first looked at; 0 before. */
    LAMPREY_INLINE void look_for_alarm(unsigned polls, uint64_t &since)
    {
        if (polls % polls_per_look != 0) {
            return;
        }
        if (load_relaxed_sys(p.alarm + LAMPREY_ALARM_ABORT) != 0) {
            leave();
        } else if (p.timeout_ms != 0) {
            const uint64_t now = nanoseconds();
            since = since == 0 ? now : since;
            if (now - since > p.timeout_ms * (uint64_t)1000000) {
                store_relaxed_sys(p.alarm + LAMPREY_ALARM_TIMED_OUT, 1);
                leave();
            }
        }
    }

    LAMPREY_INLINE vector receive_one(unsigned row, unsigned row_cells, unsigned index)
    {
        vector received = {{0, 0, 0, 0}};
        uint64_t since = 0;
        for (unsigned polls = 1; !aborted; polls++) {
            if (packet::receive(cell(0, slot, row, row_cells, index), &received)) {
                break;
            }
            look_for_alarm(polls, since);
        }
        return received;
    }

    /* Vector index of ranks first to first + batch, with our own among them. */
    LAMPREY_INLINE void receive(unsigned row_cells, unsigned first, unsigned index,
                                const vector &own, vector *received)
    {
        if (RANKS == 2) {
            const vector other = receive_one(1 - p.rank, row_cells, index);
            received[0] = select(p.rank == 0, own, other);
            received[1] = select(p.rank == 0, other, own);
            return;
        }
        uint64_t since = 0;
        for (unsigned polls = 1; !aborted; polls++) {
            bool complete = true;
#pragma unroll
            for (unsigned i = 0; i < batch; i++) {
                const unsigned source = first + i;
                if (source == p.rank) {
                    received[i] = own;
                } else if (source < nranks) {
                    complete &=
                        packet::receive(cell(0, slot, source, row_cells, index), &received[i]);
                }
            }
            if (complete) {
                return;
            }
            look_for_alarm(polls, since);
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
            receive(row_cells, first, index, own, received);
#pragma unroll
            for (unsigned i = 0; i < batch; i++) {
                const unsigned source = first + i;
                if (source < nranks) {
                    add(total, received[i], source == 0);
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
            for (unsigned k = 1; k < (RANKS ? RANKS : nranks) && !aborted; k++) {
                packet::send(cell(k, slot, p.rank, row_cells, index), own);
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
                    if (first + i < nranks && has_vector(first_vector, first + i, index)) {
                        input[i] = load_clean(shard_vector(first_vector, peer(first + i), index));
                    }
                }
#pragma unroll
                for (unsigned i = 0; i < batch; i++) {
                    const unsigned k = first + i;
                    if (k < nranks && has_vector(first_vector, k, index)) {
                        if (k == 0) {
                            own = input[i];
                        } else if (!aborted) {
                            packet::send(cell(k, slot, p.rank, row_cells, index), input[i]);
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
#pragma unroll
                    for (unsigned k = 1; k < (RANKS ? RANKS : nranks); k++) {
                        packet::send(cell(k, slot, nranks + p.rank, row_cells, index), result);
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

    /* Of the shard of peer(k). */
    LAMPREY_INLINE bool has_vector(uint64_t first_vector, unsigned k, unsigned index) const
    {
        return shard_vector(first_vector, peer(k), index) < p.vectors;
    }

    /* The other ranks' finished shards. */
    LAMPREY_INLINE void gather(uint64_t first_vector, unsigned row_cells, unsigned index)
    {
        for (unsigned k = 1; k < nranks; k++) {
            const uint64_t at = shard_vector(first_vector, peer(k), index);
            if (at < p.vectors) {
                const vector result = receive_one(nranks + peer(k), row_cells, index);
                if (!aborted) {
                    store_result(at, result);
                }
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
        /* The state's load overlaps the first input's. */
        const vector state = load(reinterpret_cast<const vector *>(p.lanes + lane));
        const uint32_t dead = load(&p.lanes[lane].dead);
        constexpr bool one_shot = ALGORITHM == LAMPREY_ONE_SHOT;
        const unsigned lane_vectors = p.lane_vectors * (one_shot ? 1 : nranks);
        uint64_t first = (uint64_t)lane * lane_vectors;
        vector early = {{0, 0, 0, 0}};
        if (one_shot && thread_has_one_vector && first + thread_index() < p.vectors &&
            thread_index() < p.lane_vectors) {
            early = load_input<E>(p.send, first + thread_index(), p.count, wide());
        }
        prepare_addresses();
        early = packet::clean(early);
        if (dead) {
            return;
        }
        slot = state.word[0];
        unsigned dirty = state.word[1];
        uint64_t round = (uint64_t)state.word[3] << 32 | state.word[2];
        rounds<ALGORITHM>(first, lane_vectors, early, dirty, round);
    }

    /* A call that is one of several. */
    template <int ALGORITHM> LAMPREY_INLINE void rounds_of_message(unsigned &dirty, uint64_t &round)
    {
        const unsigned lane_vectors = p.lane_vectors * (ALGORITHM == LAMPREY_ONE_SHOT ? 1 : nranks);
        const vector early = {{0, 0, 0, 0}};
        prepare_addresses();
        rounds<ALGORITHM>((uint64_t)lane * lane_vectors, lane_vectors, early, dirty, round);
    }

    /* first: this lane's first vector. early: the first round's own, unless the call is one of
     * several. dirty, round: of the lane's state, which is carried on from call to call. */
    template <int ALGORITHM>
    LAMPREY_INLINE void rounds(uint64_t first, unsigned lane_vectors, const vector &early,
                               unsigned &dirty, uint64_t &round)
    {
        constexpr bool one_shot = ALGORITHM == LAMPREY_ONE_SHOT;
        for (unsigned i = 0; first < p.vectors; i++) {
            const uint64_t following = first + (uint64_t)ctas_of(p) * lane_vectors;
            const bool last = SIMPLE || following >= p.vectors;
            const unsigned last_slot = slot == 0 ? LAMPREY_SLOTS - 1 : slot - 1;
            const unsigned next_slot = slot == LAMPREY_SLOTS - 1 ? 0 : slot + 1;
            const unsigned filled =
                p.lane_vectors * packet::cells | (one_shot ? 0 : LAMPREY_DIRTY_TWO_SHOT);
            round++;
            const vector next = {{next_slot, filled, (uint32_t)round, (uint32_t)(round >> 32)}};
            if (one_shot) {
                const uint64_t left = p.vectors - first;
                one_shot_round(first, (unsigned)(left < p.lane_vectors ? left : p.lane_vectors),
                               !FUSED && i == 0, early, last_slot, dirty, last, next);
            } else {
                two_shot_round(first, last_slot, dirty, last, next);
            }
            if (SIMPLE || (last && !FUSED)) {
                return;
            }
            if (!FUSED || !last) {
                between_rounds();
            }
            slot = next_slot;
            dirty = filled;
            first = following;
        }
    }
};

/* A function of its own, so that the simple case is short and in one piece. */
template <int ELEMENT, int OPERATORS, int RANKS>
LAMPREY_NOINLINE void one_shot_in_general(const typename params_for<RANKS>::type &p)
{
    lane_work<ELEMENT, OPERATORS, RANKS, false>(p).template run<LAMPREY_ONE_SHOT>();
}

template <int ALGORITHM, int ELEMENT, int OPERATORS, int RANKS>
LAMPREY_DEVICE void all_reduce(const typename params_for<RANKS>::type &p)
{
    wait_for_dependencies();
    if (p.flags & LAMPREY_FLAG_SIGNAL) {
        launch_dependents();
    }
    if (ALGORITHM == LAMPREY_TWO_SHOT) {
        lane_work<ELEMENT, OPERATORS, RANKS, false>(p).template run<LAMPREY_TWO_SHOT>();
    } else if (p.flags & LAMPREY_FLAG_SIMPLE) {
        lane_work<ELEMENT, OPERATORS, RANKS, true>(p).template run<LAMPREY_ONE_SHOT>();
    } else {
        one_shot_in_general<ELEMENT, OPERATORS, RANKS>(p);
    }
}

} // namespace lamprey

#endif
