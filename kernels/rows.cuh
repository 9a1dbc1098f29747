/* SPDX-License-Identifier: Apache-2.0 */
/* All-reduces of rows with an epilogue: rows.h. The exchange is all_reduce.cuh's, over the same
 * memory and lane states, so both kinds of calls mix. */
#ifndef LAMPREY_KERNELS_ROWS_CUH
#define LAMPREY_KERNELS_ROWS_CUH

#include "kernels/all_reduce.cuh"
#include "kernels/quantise_vector.cuh"
#include "kernels/row_exchange.cuh"
#include "kernels/row_instances.h"
#include "kernels/row_source.cuh"

namespace lamprey {

template <int RANKS> struct row_params_for {
    using type = lamprey_near_row_params;
};
template <> struct row_params_for<0> {
    using type = lamprey_row_params;
};

/* One lane's part of a call. FORM: enum lamprey_row_form. */
template <int ALGORITHM, int ELEMENT, int RANKS, int FORM> struct row_work {
    static constexpr bool SINGLE = FORM != LAMPREY_ROWS_ANY;
    static constexpr bool QUANTISES = FORM != LAMPREY_ROWS_SINGLE;
    static constexpr bool HAS_PRELUDE = RANKS == 0;
    using lane_type =
        lane_work<ELEMENT, SINGLE ? LAMPREY_SUM_ONLY : LAMPREY_ROW_SUM, RANKS, SINGLE>;
    using E = typename lane_type::E;
    using packet = typename E::packet;
    using params = typename row_params_for<RANKS>::type;
    static constexpr unsigned elements = elements_per_vector<E>;
    static constexpr unsigned segment = LAMPREY_SEGMENT_VECTORS;

    const params &p;
    const lamprey_row_args &rows;
    lane_type lane;
    const unsigned first; /* vector of a row with which the share starts */
    const unsigned count; /* vectors of the share that a row has */
    vector value;         /* the share where it is in registers */
    row_exchange exchange;
    unsigned dirty;
    uint64_t round;

    LAMPREY_INLINE explicit row_work(const params &given)
        : p(given), rows(given.rows), lane(given.lane), first(cluster_rank() * rows.share_vectors),
          count(first >= rows.row_vectors                       ? 0
                : rows.row_vectors - first < rows.share_vectors ? rows.row_vectors - first
                                                                : rows.share_vectors),
          value{{0, 0, 0, 0}}, exchange(rows.share_vectors), dirty(0), round(0)
    {
    }

    /* A thread a vector of the share. */
    static LAMPREY_INLINE bool in_registers()
    {
        return SINGLE && thread_has_one_vector;
    }
    LAMPREY_INLINE bool normalises() const
    {
        return rows.flags & LAMPREY_ROW_NORM;
    }
    LAMPREY_INLINE bool pre_normalises() const
    {
        return HAS_PRELUDE && rows.flags & LAMPREY_ROW_PRE_NORM;
    }
    /* Does the epilogue need what the cluster's other CTAs have? */
    LAMPREY_INLINE bool exchanges() const
    {
        return pre_normalises() || normalises() || quantises();
    }
    LAMPREY_INLINE bool quantises() const
    {
        return QUANTISES && rows.quantisation != LAMPREY_QUANT_NONE;
    }

    /* ---- the share ---- */

    LAMPREY_INLINE vector get(unsigned index) const
    {
        return in_registers() ? value : shared_memory()[index];
    }
    LAMPREY_INLINE void set(unsigned index, const vector &v)
    {
        if (in_registers()) {
            value = v;
        } else {
            shared_memory()[index] = v;
        }
    }
    /* Of the epilogue: always the same threads' as the segments. */
    template <class F> LAMPREY_INLINE void each_of_share(F f)
    {
#pragma unroll 1
        for (unsigned s = warp_index(); s < exchange.segments(); s += warp_count()) {
            each_lane(segment, [&](unsigned at) {
                const unsigned index = s * segment + at;
                if (index < count) {
                    f(index);
                }
            });
        }
    }

    /* Vector index of the share, in a matrix of rows. */
    LAMPREY_INLINE vector load_row(const void *matrix, uint64_t token, unsigned index) const
    {
        return load_input<E>(row_of<E>(matrix, token, rows.hidden), first + index, rows.hidden,
                             lane.wide());
    }
    LAMPREY_INLINE void store_row(void *matrix, uint64_t token, unsigned index,
                                  const vector &v) const
    {
        store_output<E>(row_of<E>(matrix, token, rows.hidden), first + index, rows.hidden,
                        lane.wide(), v);
    }

    LAMPREY_INLINE vector load_contribution(uint64_t token, unsigned index) const
    {
        if constexpr (RANKS == 0) {
            if (p.moe.source != LAMPREY_ROWS_GIVEN) {
                const moe_source<E> source = {
                    p.moe, rows, (p.lane.flags & LAMPREY_FLAG_STEPWISE) != 0, lane.wide()};
                return packet::clean(source.load(token, first + index));
            }
        }
        return packet::clean(load_row(p.lane.send, token, index));
    }

    /* ---- the exchange: the share's sum over ranks ---- */

    /* From the second round of a kernel on. */
    LAMPREY_INLINE void begin_round(bool next_row)
    {
        /* What other threads received and cleared comes before what this one pushes next. */
        fence_sys();
        block_sync();
        if (next_row && exchanges()) {
            exchange.next_row();
        }
        fence_sys();
    }

    LAMPREY_INLINE unsigned next_slot() const
    {
        return lane.slot == LAMPREY_SLOTS - 1 ? 0 : lane.slot + 1;
    }

    LAMPREY_INLINE void turn(bool last)
    {
        constexpr bool one_shot = ALGORITHM == LAMPREY_ONE_SHOT;
        const unsigned last_slot = lane.slot == 0 ? LAMPREY_SLOTS - 1 : lane.slot - 1;
        const unsigned filled =
            p.lane.lane_vectors * packet::cells | (one_shot ? 0 : LAMPREY_DIRTY_TWO_SHOT);
        round++;
        lane.turn(last_slot, dirty, last,
                  {{next_slot(), filled, (uint32_t)round, (uint32_t)(round >> 32)}});
        dirty = filled;
    }

    /* A round is over: its slot stays as it is until the next one has begun. */
    LAMPREY_INLINE void end_round()
    {
        lane.slot = next_slot();
    }

    LAMPREY_INLINE void one_shot_slice(uint64_t token, unsigned from, unsigned vectors, bool last)
    {
        const unsigned row_cells = p.lane.row_cells[LAMPREY_ONE_SHOT];
        each_vector(vectors, [&](unsigned index) {
            const vector own = load_contribution(token, from + index);
            set(from + index, own);
            for (unsigned k = 1; k < (RANKS ? RANKS : lane.nranks) && !lane.aborted; k++) {
                packet::send(lane.cell(k, lane.slot, p.lane.rank, row_cells, index), own);
            }
        });
        turn(last);
        each_vector(vectors, [&](unsigned index) {
            set(from + index, lane.reduce(row_cells, index, get(from + index)));
        });
    }

    LAMPREY_INLINE void two_shot_slice(uint64_t token, unsigned from, unsigned vectors, bool last)
    {
        const unsigned row_cells = p.lane.row_cells[LAMPREY_TWO_SHOT];
        const unsigned shard_vectors = p.lane.lane_vectors;
        const unsigned own_shard = p.lane.rank * shard_vectors;
        each_vector(shard_vectors, [&](unsigned index) {
            for (unsigned k = 0; k < lane.nranks; k++) {
                const unsigned at = lane.peer(k) * shard_vectors + index;
                if (at < vectors) {
                    const vector v = load_contribution(token, from + at);
                    if (k == 0) {
                        set(from + at, v);
                    } else if (!lane.aborted) {
                        packet::send(lane.cell(k, lane.slot, p.lane.rank, row_cells, index), v);
                    }
                }
            }
        });
        turn(last);
        each_vector(shard_vectors, [&](unsigned index) {
            const unsigned at = own_shard + index;
            if (at < vectors) {
                const vector result = lane.reduce(row_cells, index, get(from + at));
                set(from + at, result);
                for (unsigned k = 1; k < lane.nranks && !lane.aborted; k++) {
                    packet::send(
                        lane.cell(k, lane.slot, lane.nranks + p.lane.rank, row_cells, index),
                        result);
                }
            }
        });
        each_vector(shard_vectors, [&](unsigned index) {
            for (unsigned k = 1; k < lane.nranks; k++) {
                const unsigned at = lane.peer(k) * shard_vectors + index;
                if (at < vectors) {
                    set(from + at, lane.receive_one(lane.nranks + lane.peer(k), row_cells, index));
                }
            }
        });
    }

    /* Only rounds in which the lane moves data: in them alone the ranks wait for each other. */
    LAMPREY_INLINE void reduce_share(uint64_t token, bool first_row, bool last_row)
    {
        for (unsigned from = 0; from < count; from += rows.slice_vectors) {
            const unsigned left_over = count - from;
            const unsigned vectors =
                left_over < rows.slice_vectors ? left_over : rows.slice_vectors;
            const bool last = last_row && from + vectors == count;
            if (!first_row || from > 0) {
                begin_round(from == 0);
            }
            if (ALGORITHM == LAMPREY_ONE_SHOT) {
                one_shot_slice(token, from, vectors, last);
            } else {
                two_shot_slice(token, from, vectors, last);
            }
            end_round();
        }
    }

    /* The same where a round is the whole share, in registers. */
    LAMPREY_INLINE void send_single(const vector &own, bool last)
    {
        const unsigned row_cells = p.lane.row_cells[LAMPREY_ONE_SHOT];
        each_vector(count, [&](unsigned index) {
#pragma unroll
            for (unsigned k = 1; k < (RANKS ? RANKS : lane.nranks) && !lane.aborted; k++) {
                packet::send(lane.cell(k, lane.slot, p.lane.rank, row_cells, index), own);
            }
        });
        turn(last);
    }
    LAMPREY_INLINE void receive_single(const vector &own)
    {
        const unsigned row_cells = p.lane.row_cells[LAMPREY_ONE_SHOT];
        each_vector(count, [&](unsigned index) { set(index, lane.reduce(row_cells, index, own)); });
        end_round();
    }

    /* ---- the epilogue ---- */

    /* What a thread has loaded before it needs it, where it has one vector. */
    struct early {
        vector residual;
        vector gamma[2];
        float scale; /* what the quantiser takes: the scale, or its inverse for FP8 */
    };

    LAMPREY_INLINE void load_gamma(const void *from, unsigned index, vector *gamma) const
    {
        const uint32_t wide = rows.flags & LAMPREY_ROW_WIDE_GAMMA;
        if (elements == 8 && wide) {
            for (unsigned i = 0; i < 2; i++) {
                gamma[i] =
                    load_input<float32>(from, 2 * (first + index) + i, rows.hidden, lane.wide());
            }
        } else {
            gamma[0] = load_input<E>(from, first + index, rows.hidden, lane.wide());
        }
    }

    LAMPREY_INLINE void unpack_gamma(const vector *gamma, float *weights) const
    {
        if (elements == 8 && rows.flags & LAMPREY_ROW_WIDE_GAMMA) {
            unpack_vector<float32>(gamma[0], weights);
            unpack_vector<float32>(gamma[1], weights + 4);
        } else {
            unpack_vector<E>(gamma[0], weights);
        }
    }

    /* from: the weights, or NULL: all are 1. ahead: the vector's, where they are loaded already. */
    LAMPREY_INLINE vector scaled(const vector &v, unsigned index, float factor, const void *from,
                                 const vector *ahead) const
    {
        float numbers[elements];
        unpack_vector<E>(v, numbers);
        for (unsigned i = 0; i < elements; i++) {
            numbers[i] = multiply(numbers[i], factor);
        }
        if (from) {
            float weights[elements];
            if (ahead) {
                unpack_gamma(ahead, weights);
            } else {
                vector gamma[2];
                load_gamma(from, index, gamma);
                unpack_gamma(gamma, weights);
            }
            for (unsigned i = 0; i < elements; i++) {
                numbers[i] = multiply(numbers[i], rows.weight_bias + weights[i]);
            }
        }
        return E::pack(numbers);
    }

    /* The sum's vector, with the bias. */
    LAMPREY_INLINE vector biased(unsigned index) const
    {
        if constexpr (HAS_PRELUDE) {
            if (p.prelude.bias) {
                return add_vectors<E>(get(index), load_row(p.prelude.bias, 0, index));
            }
        }
        return get(index);
    }

    LAMPREY_INLINE vector add_residual(const vector &sum, const vector &residual) const
    {
        return rows.residual ? add_vectors<E>(sum, residual) : sum;
    }
    LAMPREY_INLINE void store_sums(uint64_t token, unsigned index, const vector &sum,
                                   const vector &with_residual) const
    {
        if (p.lane.recv && !lane.aborted) {
            store_row(p.lane.recv, token, index, sum);
        }
        if (rows.residual_out && !lane.aborted) {
            store_row(rows.residual_out, token, index, with_residual);
        }
    }

    /* The sum's vector, with all that comes before the norm, and what is written on the way. */
    LAMPREY_INLINE vector finish_sum(uint64_t token, unsigned index, float pre_factor)
    {
        const vector sum = get(index);
        vector before = biased(index);
        if constexpr (HAS_PRELUDE) {
            if (pre_normalises()) {
                before = scaled(before, index, pre_factor, p.prelude.gamma, nullptr);
            }
        }
        vector residual = {{0, 0, 0, 0}};
        if (rows.residual) {
            residual = load_row(rows.residual, token, index); /* which an output may replace */
        }
        const vector v = add_residual(before, residual);
        store_sums(token, index, sum, v);
        set(index, v);
        return v;
    }

    /* Of a sum of squares: no NaN but the canonical one, since others mean something else. */
    static LAMPREY_INLINE uint32_t word_of(float sum)
    {
        return sum == sum ? bits_of_float(sum) : 0x7fffffffu;
    }

    /* Tells the cluster the sums of squares of this share, vector_at(index) being its vectors, or
     * that some data is missing. */
    template <class F> LAMPREY_INLINE void give_squares(F vector_at)
    {
#pragma unroll 1
        for (unsigned s = warp_index(); s < exchange.segments(); s += warp_count()) {
            const float sum = tree_sum([&](unsigned at) {
                const unsigned index = s * segment + at;
                return index < count ? sum_of_squares<E>(vector_at(index)) : 0.0f;
            });
            exchange.give_square(s, lane.aborted ? row_exchange::left : word_of(sum));
        }
    }

    /* The row's factor. False: some CTA of the cluster lacks its data, and all have left. */
    LAMPREY_INLINE bool take_factor(float *factor)
    {
        float total;
        if (!exchange.template take_squares<SINGLE>(&total)) {
            if (!lane.aborted) {
                lane.leave();
            }
            return false;
        }
        *factor = inverse_root(multiply(total, rows.inverse_hidden) + rows.epsilon);
        return true;
    }

    /* ahead: gamma, where it is loaded already. */
    LAMPREY_INLINE void normalise(uint64_t token, unsigned index, float factor, const vector *ahead)
    {
        const vector v = scaled(get(index), index, factor, rows.gamma, ahead);
        if (rows.norm_out) {
            store_row(rows.norm_out, token, index, v);
        }
        set(index, v);
    }

    LAMPREY_INLINE void quantise_share(uint64_t token) const
    {
        block_sync();
        const unsigned row_left = rows.hidden - first * elements;
        const unsigned share = count * elements;
        const unsigned here = count == 0 ? 0 : row_left < share ? row_left : share;
        const row_part part = {token, first * elements, here, exchange};
        quantiser<E>(rows, part).run();
    }

    /* A second one for the same row: as begin_round, but nothing of a round is under way. */
    LAMPREY_INLINE void next_exchange()
    {
        block_sync();
        exchange.next_row();
        fence_sys();
        block_sync();
    }

    /* False: the row can't be finished, and none behind it. */
    LAMPREY_INLINE bool finish_row(uint64_t token)
    {
        /* A thread's vectors are others' from here on, and so is that some are missing. */
        lane.aborted = block_any(lane.aborted);
        float pre_factor = 0;
        const auto finished = [&](unsigned index) { return finish_sum(token, index, pre_factor); };
        if (pre_normalises()) {
            give_squares([&](unsigned index) { return biased(index); });
            if (!take_factor(&pre_factor)) {
                return false;
            }
        }
        if (!normalises() && !quantises()) {
            each_of_share(finished);
            return true;
        }
        if (pre_normalises()) {
            next_exchange();
        }
        float factor;
        give_squares(finished);
        if (!take_factor(&factor)) {
            return false;
        }
        if (normalises()) {
            each_of_share([&](unsigned index) { normalise(token, index, factor, nullptr); });
        }
        if (quantises()) {
            quantise_share(token);
        }
        return true;
    }

    /* The same with a vector a thread. What peers and the cluster wait for goes out first. */
    LAMPREY_INLINE bool finish_vector(uint64_t token, const early &ahead)
    {
        const unsigned index = thread_index();
        const bool has_vector = index < count;
        const vector sum = value;
        value = add_residual(sum, ahead.residual);
        if (exchanges() && warp_index() < exchange.segments()) {
            const bool missing = any_of_warp(lane.aborted);
            const float squares =
                tree_sum([&](unsigned) { return has_vector ? sum_of_squares<E>(value) : 0.0f; });
            exchange.give_square(warp_index(), missing ? row_exchange::left : word_of(squares));
        }
        if (has_vector) {
            store_sums(token, index, sum, value);
        }
        if (!exchanges()) {
            return true;
        }
        float factor;
        if (!take_factor(&factor)) {
            return false;
        }
        if (normalises() && has_vector) {
            normalise(token, index, factor, ahead.gamma);
        }
        if (quantises()) {
            vector_quantiser<E>(rows, token, exchange, (first + index) * elements, has_vector,
                                value)
                .run(ahead.scale);
        }
        return true;
    }

    /* ---- all of it ---- */

    LAMPREY_INLINE void take_state(const vector &state)
    {
        lane.slot = state.word[0];
        dirty = state.word[1];
        round = (uint64_t)state.word[3] << 32 | state.word[2];
    }

    LAMPREY_INLINE const vector *vector_of(const void *matrix, uint64_t token) const
    {
        return static_cast<const vector *>(row_of<E>(matrix, token, rows.hidden)) + first +
               thread_index();
    }

    /* What the quantiser takes that is the same for all rows, and costs time. */
    LAMPREY_INLINE float quantiser_scale(uint64_t token) const
    {
        const float scale = row_scales{rows, token}.given_scale();
        return rows.quantisation == LAMPREY_QUANT_FP8_STATIC ? divide(1.0f, scale) : scale;
    }

    /* From the stream's earlier work to the pushes there is one load, and nothing else that waits:
     * addresses are there before, and all that comes from memory is under way at once. */
    LAMPREY_INLINE void run_in_registers()
    {
        early ahead = {{{0, 0, 0, 0}}, {{{0, 0, 0, 0}}, {{0, 0, 0, 0}}}, 0};
        const bool has_vector = thread_index() < count;
        const bool has_gamma = has_vector && rows.gamma;
        /* Beside eight ranks' vectors there are no registers for it: gamma comes while the
         * cluster's sums are under way. */
        constexpr bool crowded = RANKS == LAMPREY_NEAR_RANKS;
        const bool early_gamma = !crowded && rows.flags & LAMPREY_ROW_EARLY_GAMMA;
        const unsigned clusters = cluster_count();
        uint64_t token = cluster_index();
        const vector *own_at = vector_of(p.lane.send, token);
        const vector *residual_at = vector_of(rows.residual, token);
        lamprey_lane *state_at = p.lane.lanes + lane.lane;
        if (has_gamma && early_gamma) {
            load_gamma(rows.gamma, thread_index(), ahead.gamma);
        }
        if (exchanges()) {
            exchange.begin();
        }
        lane.prepare_addresses();
        settle(own_at);
        settle(residual_at);
        settle(state_at);
        wait_for_dependencies();
        if (p.lane.flags & LAMPREY_FLAG_SIGNAL) {
            launch_dependents();
        }
        const vector state = load(reinterpret_cast<const vector *>(state_at));
        lane.aborted = load(&state_at->dead) != 0;
        vector own = {{0, 0, 0, 0}};
        if (has_vector) {
            own = load(own_at);
        }
        if (has_vector && rows.residual) {
            ahead.residual = load(residual_at);
        }
        if (has_gamma && !early_gamma && !crowded) {
            load_gamma(rows.gamma, thread_index(), ahead.gamma);
        }
        const bool dead = lane.aborted;
        take_state(state);
        for (bool first_row = true;; first_row = false) {
            const bool last = token + clusters >= rows.tokens;
            own = packet::clean(own);
            if (!dead) {
                send_single(own, last);
            }
            if (first_row && exchanges()) {
                if (quantises()) {
                    ahead.scale = quantiser_scale(token);
                }
                cluster_wait(); /* every CTA is there to be written to */
            }
            if (!dead) {
                receive_single(own);
            }
            if (has_gamma && crowded) {
                load_gamma(rows.gamma, thread_index(), ahead.gamma);
            }
            if (!finish_vector(token, ahead) || last) {
                return;
            }
            token += clusters;
            begin_round(true);
            lane.prepare_addresses(); /* again, so that they take no registers all the time */
            if (has_vector) {
                own = load(vector_of(p.lane.send, token));
                if (rows.residual) {
                    ahead.residual = load(vector_of(rows.residual, token));
                }
            }
        }
    }

    LAMPREY_INLINE void run_in_memory()
    {
        wait_for_dependencies();
        if (p.lane.flags & LAMPREY_FLAG_SIGNAL) {
            launch_dependents();
        }
        const vector state = load(reinterpret_cast<const vector *>(p.lane.lanes + lane.lane));
        lane.aborted = load(&p.lane.lanes[lane.lane].dead) != 0;
        const bool dead = lane.aborted;
        lane.prepare_addresses();
        if (exchanges()) {
            exchange.begin();
            cluster_wait(); /* every CTA is there to be written to */
        }
        take_state(state);
        const unsigned clusters = cluster_count();
        for (uint64_t token = cluster_index(); token < rows.tokens; token += clusters) {
            if (!dead) {
                reduce_share(token, token < clusters, token + clusters >= rows.tokens);
            }
            if (!finish_row(token)) {
                return;
            }
        }
    }

    LAMPREY_INLINE void run()
    {
        if (in_registers()) {
            run_in_registers();
        } else {
            run_in_memory();
        }
    }
};

/* A lane that lacks its data tells its cluster, and all of them leave together, at the same row. */
template <int ALGORITHM, int ELEMENT, int RANKS, int FORM>
LAMPREY_DEVICE void all_reduce_rows(const typename row_params_for<RANKS>::type &p)
{
    row_work<ALGORITHM, ELEMENT, RANKS, FORM>(p).run();
}

} // namespace lamprey

#endif
