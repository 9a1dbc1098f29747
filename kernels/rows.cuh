/* SPDX-License-Identifier: Apache-2.0 */
/* All-reduces of rows with an epilogue: rows.h. The exchange is all_reduce.cuh's, over the same
 * memory and lane states, so both kinds of calls mix. */
#ifndef LAMPREY_KERNELS_ROWS_CUH
#define LAMPREY_KERNELS_ROWS_CUH

#include "kernels/all_reduce.cuh"
#include "kernels/quantise.cuh"
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
    static constexpr bool in_registers = SINGLE && thread_has_one_vector;
    static constexpr unsigned segment = LAMPREY_SEGMENT_VECTORS;

    const params &p;
    const lamprey_row_args &rows;
    lane_type lane;
    const unsigned first; /* vector of a row with which the share starts */
    const unsigned count; /* vectors of the share that a row has */
    const unsigned segments;
    vector value; /* the share where it is in registers */
    vector *const values;
    uint32_t *const unit_largest;
    uint32_t *const exchange;
    uint32_t *const left; /* two, in turns; non-zero: some CTA of the cluster lacks its data */
    unsigned dirty;
    unsigned next_slot;
    uint64_t round;

    LAMPREY_INLINE explicit row_work(const params &given)
        : p(given), rows(given.rows), lane(given.lane), first(cluster_rank() * rows.share_vectors),
          count(first >= rows.row_vectors                       ? 0
                : rows.row_vectors - first < rows.share_vectors ? rows.row_vectors - first
                                                                : rows.share_vectors),
          segments(lamprey_share_segments(rows.share_vectors)), value{{0, 0, 0, 0}},
          values(shared_memory()),
          unit_largest(reinterpret_cast<uint32_t *>(values + rows.share_vectors)),
          exchange(unit_largest + lamprey_share_units(rows.share_vectors, elements)),
          left(exchange + 2 * lamprey_row_exchange_words(rows.share_vectors, cluster_size())),
          dirty(0), next_slot(0), round(0)
    {
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
        return in_registers ? value : values[index];
    }
    LAMPREY_INLINE void set(unsigned index, const vector &v)
    {
        if (in_registers) {
            value = v;
        } else {
            values[index] = v;
        }
    }
    template <class F> LAMPREY_INLINE void each_of_share(F f)
    {
        if (in_registers) {
            if (thread_index() < count) {
                f(thread_index());
            }
        } else {
            for (unsigned index = thread_index(); index < count; index += block_size()) {
                f(index);
            }
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
    LAMPREY_INLINE void begin_round()
    {
        /* What other threads received and cleared comes before what this one pushes next. */
        fence_sys();
        block_sync();
        fence_sys();
    }

    LAMPREY_INLINE void turn(bool last)
    {
        constexpr bool one_shot = ALGORITHM == LAMPREY_ONE_SHOT;
        const unsigned last_slot = lane.slot == 0 ? LAMPREY_SLOTS - 1 : lane.slot - 1;
        const unsigned filled =
            p.lane.lane_vectors * packet::cells | (one_shot ? 0 : LAMPREY_DIRTY_TWO_SHOT);
        next_slot = lane.slot == LAMPREY_SLOTS - 1 ? 0 : lane.slot + 1;
        round++;
        lane.turn(last_slot, dirty, last,
                  {{next_slot, filled, (uint32_t)round, (uint32_t)(round >> 32)}});
        dirty = filled;
    }

    /* A round is over: its slot stays as it is until the next one has begun. */
    LAMPREY_INLINE void end_round()
    {
        lane.slot = next_slot;
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
                begin_round();
            }
            if (ALGORITHM == LAMPREY_ONE_SHOT) {
                one_shot_slice(token, from, vectors, last);
            } else {
                two_shot_slice(token, from, vectors, last);
            }
            end_round();
        }
    }

    /* The same where a round is the whole share: the next row's input comes early. */
    LAMPREY_INLINE void reduce_single(vector own, bool last)
    {
        const unsigned row_cells = p.lane.row_cells[LAMPREY_ONE_SHOT];
        each_vector(count, [&](unsigned index) {
#pragma unroll
            for (unsigned k = 1; k < (RANKS ? RANKS : lane.nranks) && !lane.aborted; k++) {
                packet::send(lane.cell(k, lane.slot, p.lane.rank, row_cells, index), own);
            }
        });
        turn(last);
        each_vector(count, [&](unsigned index) { set(index, lane.reduce(row_cells, index, own)); });
        end_round();
    }

    /* ---- the epilogue ---- */

    /* What a thread has loaded before it needs it. */
    struct early {
        vector residual;
        vector gamma[2];
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

    /* gamma: from load_gamma where the vector is weighted. */
    LAMPREY_INLINE vector scaled(const vector &v, float factor, bool weighted,
                                 const vector *gamma) const
    {
        float numbers[elements];
        unpack_vector<E>(v, numbers);
        for (unsigned i = 0; i < elements; i++) {
            numbers[i] = multiply(numbers[i], factor);
        }
        if (weighted) {
            float weights[elements];
            unpack_gamma(gamma, weights);
            for (unsigned i = 0; i < elements; i++) {
                numbers[i] = multiply(numbers[i], rows.weight_bias + weights[i]);
            }
        }
        return E::pack(numbers);
    }

    /* from: the weights, or NULL: all are 1. */
    LAMPREY_INLINE vector weighted(const vector &v, float factor, const void *from,
                                   unsigned index) const
    {
        vector gamma[2] = {};
        if (from) {
            load_gamma(from, index, gamma);
        }
        return scaled(v, factor, from != nullptr, gamma);
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

    /* The sum's vector, with all that comes before the norm, and what is written on the way. */
    LAMPREY_INLINE vector finish_sum(uint64_t token, unsigned index, const early &ahead,
                                     float pre_factor)
    {
        vector residual = ahead.residual;
        if (rows.residual && !in_registers) {
            residual = load_row(rows.residual, token, index); /* which an output may replace */
        }
        if (p.lane.recv && !lane.aborted) {
            store_row(p.lane.recv, token, index, get(index));
        }
        vector v = biased(index);
        if constexpr (HAS_PRELUDE) {
            if (pre_normalises()) {
                v = weighted(v, pre_factor, p.prelude.gamma, index);
            }
        }
        if (rows.residual) {
            v = add_vectors<E>(v, residual);
        }
        if (rows.residual_out && !lane.aborted) {
            store_row(rows.residual_out, token, index, v);
        }
        set(index, v);
        return v;
    }

    /* Tells the cluster the sums of squares of this share, vector_at(index) being its vectors, and
     * whether some data is missing. */
    template <class F>
    LAMPREY_INLINE void give_squares(uint32_t *sums, uint32_t *incomplete, F vector_at)
    {
        for (unsigned s = warp_index(); s < segments; s += warp_count()) {
            const float sum = tree_sum([&](unsigned at) {
                const unsigned index = s * segment + at;
                return index < count ? sum_of_squares<E>(vector_at(index)) : 0.0f;
            });
            each_lane(cluster_size(), [&](unsigned cta) {
                store_shared(sums + cluster_rank() * segments + s, cta, bits_of_float(sum));
            });
        }
        if (lane.aborted) {
            for (unsigned cta = 0; cta < cluster_size(); cta++) {
                store_shared(incomplete, cta, 1);
            }
        }
    }

    LAMPREY_INLINE float factor_of(const uint32_t *sums) const
    {
        float total = 0;
#pragma unroll 8
        for (unsigned s = 0; s < cluster_size() * segments; s++) {
            total += float_of_bits(sums[s]);
        }
        const float mean = multiply(total, divide(1.0f, (float)rows.hidden));
        return inverse_root(mean + rows.epsilon);
    }

    LAMPREY_INLINE void normalise(uint64_t token, unsigned index, float factor, const early &ahead)
    {
        const vector v = in_registers
                             ? scaled(get(index), factor, rows.gamma != nullptr, ahead.gamma)
                             : weighted(get(index), factor, rows.gamma, index);
        if (rows.norm_out) {
            store_row(rows.norm_out, token, index, v);
        }
        set(index, v);
    }

    LAMPREY_INLINE void quantise_share(uint64_t token, uint32_t *warp_largest) const
    {
        if (in_registers && thread_index() < count) {
            values[thread_index()] = value;
        }
        block_sync();
        const unsigned row_left = rows.hidden - first * elements;
        const unsigned share = count * elements;
        const row_part part = {
            token,  first * elements, count == 0 ? 0 : row_left < share ? row_left : share,
            values, unit_largest,     warp_largest};
        quantiser<E>{rows, part}.run();
    }

    /* The words of an exchange, the exchanges of a kernel being numbered: two lie side by side,
     * since the cluster may still be reading those of the last one. */
    LAMPREY_INLINE uint32_t *words_of(unsigned number) const
    {
        return exchange +
               number % 2 * lamprey_row_exchange_words(rows.share_vectors, cluster_size());
    }

    /* Exchanges sums of squares. False: some CTA lacks its data, so all drop the row. */
    template <class F> LAMPREY_INLINE bool exchange_squares(unsigned number, F vector_at)
    {
        uint32_t *const incomplete = left + number % 2;
        give_squares(words_of(number), incomplete, vector_at);
        cluster_arrive();
        cluster_wait();
        const bool complete = *incomplete == 0;
        if (!complete && !lane.aborted) {
            lane.leave();
        }
        return complete;
    }

    /* row: how many the lane has finished before. */
    LAMPREY_INLINE void finish_row(uint64_t token, unsigned row, const early &ahead)
    {
        if (!in_registers) {
            block_sync(); /* a thread's vectors are others' from here on */
        }
        float pre_factor = 0;
        const auto finished = [&](unsigned index) {
            return finish_sum(token, index, ahead, pre_factor);
        };
        const bool ends_with_sum = !normalises() && !quantises();
        unsigned number = pre_normalises() && !ends_with_sum ? 2 * row : row;
        if (exchanges() && row == 0) {
            cluster_wait(); /* until every CTA is there to be written to */
        }
        if (pre_normalises()) {
            if (!exchange_squares(number, [&](unsigned index) { return biased(index); })) {
                return;
            }
            pre_factor = factor_of(words_of(number));
            number++;
        }
        if (ends_with_sum) {
            each_of_share(finished);
            return;
        }
        if (!exchange_squares(number, finished)) {
            return;
        }
        uint32_t *const words = words_of(number);
        if (normalises()) {
            const float factor = factor_of(words);
            each_of_share([&](unsigned index) { normalise(token, index, factor, ahead); });
        }
        if (quantises()) {
            quantise_share(token, words + cluster_size() * segments);
        }
    }

    /* ---- all of it ---- */

    LAMPREY_INLINE void run()
    {
        early ahead = {{{0, 0, 0, 0}}, {{{0, 0, 0, 0}}, {{0, 0, 0, 0}}}};
        const bool has_vector = thread_index() < count;
        if (in_registers && has_vector && rows.gamma && rows.flags & LAMPREY_ROW_EARLY_GAMMA) {
            load_gamma(rows.gamma, thread_index(), ahead.gamma);
        }
        wait_for_dependencies();
        if (p.lane.flags & LAMPREY_FLAG_SIGNAL) {
            launch_dependents();
        }
        const vector state = load(reinterpret_cast<const vector *>(p.lane.lanes + lane.lane));
        lane.aborted = load(&p.lane.lanes[lane.lane].dead) != 0;
        const bool dead = lane.aborted;
        uint64_t token = cluster_index();
        const unsigned clusters = grid_size() / cluster_size();
        vector own = {{0, 0, 0, 0}};
        if (in_registers && has_vector) {
            own = load_row(p.lane.send, token, thread_index());
            if (rows.gamma && !(rows.flags & LAMPREY_ROW_EARLY_GAMMA)) {
                load_gamma(rows.gamma, thread_index(), ahead.gamma);
            }
        }
        lane.prepare_addresses();
        if (exchanges()) {
            if (thread_index() == 0) {
                left[0] = 0;
                left[1] = 0;
            }
            cluster_arrive();
        }
        lane.slot = state.word[0];
        dirty = state.word[1];
        round = (uint64_t)state.word[3] << 32 | state.word[2];
        for (unsigned i = 0; token < rows.tokens; i++, token += clusters) {
            const bool last = token + clusters >= rows.tokens;
            if (in_registers && has_vector && rows.residual) {
                ahead.residual = load_row(rows.residual, token, thread_index());
            }
            if (!dead) {
                if constexpr (in_registers) {
                    if (i > 0) {
                        begin_round();
                        own = has_vector ? load_row(p.lane.send, token, thread_index()) : own;
                    }
                    reduce_single(packet::clean(own), last);
                } else {
                    reduce_share(token, i == 0, last);
                }
            }
            finish_row(token, i, ahead);
        }
    }
};

/* A lane whose cluster lost another lane's data has left its protocol, but goes through the rows
 * with it: the cluster's barriers need every CTA. */
template <int ALGORITHM, int ELEMENT, int RANKS, int FORM>
LAMPREY_DEVICE void all_reduce_rows(const typename row_params_for<RANKS>::type &p)
{
    row_work<ALGORITHM, ELEMENT, RANKS, FORM>(p).run();
}

} // namespace lamprey

#endif
