/* SPDX-License-Identifier: Apache-2.0 */
/* Several calls of one kernel in one launch. On the wire and in the lanes' states they are what
 * separate launches would be, so that ranks may put other calls together: each message has the plan
 * of its own call, and a lane takes part in one after the other. */
#ifndef LAMPREY_KERNELS_FUSED_CUH
#define LAMPREY_KERNELS_FUSED_CUH

#include "kernels/all_reduce.cuh"

namespace lamprey {

template <int RANKS> struct fused_params_for {
    using type = lamprey_near_fused_params;
};
template <> struct fused_params_for<0> {
    using type = lamprey_fused_params;
};

/* What lane_work sees as the parameters of one message's call. References: copies would take
 * registers that there aren't. */
struct message_params {
    const void *const &send;
    void *const &recv;
    const uint64_t &count;
    const uint64_t &vectors;
    lamprey_lane *const &lanes;
    uint32_t *const &alarm;
    const uint32_t &rank;
    const uint32_t &nranks;
    const uint32_t &lane_vectors;
    const uint32_t &slot_cells;
    const uint32_t *const row_cells;
    const uint32_t &flags;
    const uint32_t &op;
    const uint32_t &timeout_ms;
    const uint32_t &ctas;
    unsigned char *const *const staging;

    template <class COMMON>
    LAMPREY_INLINE message_params(const lamprey_message &message, const COMMON &common)
        : send(message.send), recv(message.recv), count(message.count), vectors(message.vectors),
          lanes(common.lanes), alarm(common.alarm), rank(common.rank), nranks(common.nranks),
          lane_vectors(message.lane_vectors), slot_cells(common.slot_cells),
          row_cells(common.row_cells), flags(message.flags), op(message.op),
          timeout_ms(common.timeout_ms), ctas(message.ctas), staging(common.staging)
    {
    }
};

LAMPREY_DEVICE unsigned ctas_of(const message_params &p)
{
    return p.ctas;
}

template <int ALGORITHM, int ELEMENT, int OPERATORS, int RANKS>
LAMPREY_DEVICE void fused_all_reduce(const typename fused_params_for<RANKS>::type &p)
{
    using work_type = lane_work<ELEMENT, OPERATORS, RANKS, false, message_params, true>;
    wait_for_dependencies();
    if (p.common.flags & LAMPREY_FLAG_SIGNAL) {
        launch_dependents();
    }
    lamprey_lane *const own = p.common.lanes + block_index();
    const vector state = load(reinterpret_cast<const vector *>(own));
    if (load(&own->dead)) {
        return;
    }
    unsigned slot = state.word[0];
    unsigned dirty = state.word[1];
    uint64_t round = (uint64_t)state.word[3] << 32 | state.word[2];
    bool aborted = false;
    bool first = true;
    const unsigned count = (unsigned)p.message_count;
#pragma unroll 1
    for (unsigned i = 0; i < count; i++) {
        const message_params message(p.messages[i], p.common);
        if (block_index() >= message.ctas) {
            continue;
        }
        if (!first) {
            between_rounds();
        }
        first = false;
        work_type work(message);
        work.slot = slot;
        work.aborted = aborted;
        work.template rounds_of_message<ALGORITHM>(dirty, round);
        slot = work.slot;
        aborted = work.aborted;
    }
}

} // namespace lamprey

#endif
