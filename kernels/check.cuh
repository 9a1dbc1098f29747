/* SPDX-License-Identifier: Apache-2.0 */
/* The check of kernels/check.h: one thread, since what counts here is that it is right. */
#ifndef LAMPREY_KERNELS_CHECK_CUH
#define LAMPREY_KERNELS_CHECK_CUH

#include "kernels/check.h"
#include "kernels/primitives.cuh"

namespace lamprey {

struct call_check {
    const lamprey_check_params &p;
    uint64_t number = 0;

    LAMPREY_INLINE explicit call_check(const lamprey_check_params &given) : p(given)
    {
    }

    /* In the memory of owner: what sender says. */
    LAMPREY_INLINE vector *cells(unsigned owner, unsigned sender) const
    {
        const unsigned slot = (unsigned)(number % LAMPREY_CHECK_SLOTS);
        return reinterpret_cast<vector *>(p.cells[owner]) +
               (slot * p.nranks + sender) * LAMPREY_CHECK_CELLS;
    }

    LAMPREY_INLINE void send(unsigned peer) const
    {
        vector *const to = cells(peer, p.rank);
        const uint32_t mark = (uint32_t)number;
        const uint32_t count = (uint32_t)p.own.count;
        const uint32_t count_high = (uint32_t)(p.own.count >> 32);
        store_relaxed_sys_pairs(to, {{count, mark, count_high, mark}});
        store_relaxed_sys_pairs(to + 1, {{p.own.kind, mark, p.own.hidden, mark}});
    }

    /* False: not all there yet. */
    LAMPREY_INLINE bool receive(unsigned peer, lamprey_signature *other) const
    {
        const vector first = load_relaxed_sys_pairs(cells(p.rank, peer));
        const vector second = load_relaxed_sys_pairs(cells(p.rank, peer) + 1);
        const uint32_t mark = (uint32_t)number;
        other->count = (uint64_t)first.word[2] << 32 | first.word[0];
        other->kind = second.word[0];
        other->hidden = second.word[2];
        return first.word[1] == mark && first.word[3] == mark && second.word[1] == mark &&
               second.word[3] == mark;
    }

    /* Neither this check nor the lanes do anything from now on. */
    LAMPREY_INLINE void leave() const
    {
        store_relaxed_sys(&p.state->dead, 1);
        for (unsigned lane = 0; lane < p.nlanes; lane++) {
            store_relaxed_sys(&p.lanes[lane].dead, 1);
        }
    }

    LAMPREY_INLINE void tell(int word, const lamprey_signature &signature) const
    {
        store_relaxed_sys(p.alarm + word, (uint32_t)signature.count);
        store_relaxed_sys(p.alarm + word + 1, (uint32_t)(signature.count >> 32));
        store_relaxed_sys(p.alarm + word + 2, signature.kind);
        store_relaxed_sys(p.alarm + word + 3, signature.hidden);
    }

    LAMPREY_INLINE void report(unsigned peer, const lamprey_signature &other) const
    {
        store_relaxed_sys(p.alarm + LAMPREY_ALARM_NUMBER, (uint32_t)number);
        store_relaxed_sys(p.alarm + LAMPREY_ALARM_NUMBER + 1, (uint32_t)(number >> 32));
        tell(LAMPREY_ALARM_OWN, p.own);
        tell(LAMPREY_ALARM_OTHER, other);
        fence_sys();
        store_relaxed_sys(p.alarm + LAMPREY_ALARM_MISMATCH, peer + 1);
    }

    /* False: aborted, or the time is up. since: when this wait was first looked at; 0 before. */
    LAMPREY_INLINE bool go_on(unsigned polls, uint64_t *since) const
    {
        give_way();
        if (polls % polls_per_look != 0) {
            return true;
        }
        if (load_relaxed_sys(p.alarm + LAMPREY_ALARM_ABORT) != 0) {
            return false;
        }
        const uint64_t now = nanoseconds();
        *since = *since == 0 ? now : *since;
        if (p.timeout_ms != 0 && now - *since > p.timeout_ms * (uint64_t)1000000) {
            store_relaxed_sys(p.alarm + LAMPREY_ALARM_TIMED_OUT, 1);
            return false;
        }
        return true;
    }

    /* False: peer has called otherwise, or was not waited for. */
    LAMPREY_INLINE bool agrees(unsigned peer) const
    {
        lamprey_signature other;
        uint64_t since = 0;
        for (unsigned polls = 1; !receive(peer, &other); polls++) {
            if (!go_on(polls, &since)) {
                return false;
            }
        }
        if (other.count != p.own.count || other.kind != p.own.kind ||
            other.hidden != p.own.hidden) {
            report(peer, other);
            return false;
        }
        return true;
    }

    LAMPREY_INLINE void run()
    {
        const vector state = load(reinterpret_cast<const vector *>(p.state));
        if (state.word[2] != 0) {
            return;
        }
        number = ((uint64_t)state.word[1] << 32 | state.word[0]) + 1;
        for (unsigned peer = 0; peer < p.nranks; peer++) {
            if (peer != p.rank) {
                send(peer);
            }
        }
        for (unsigned peer = 0; peer < p.nranks; peer++) {
            if (peer != p.rank && !agrees(peer)) {
                leave();
                return;
            }
        }
        store(reinterpret_cast<vector *>(p.state),
              {{(uint32_t)number, (uint32_t)(number >> 32), 0, 0}});
    }
};

LAMPREY_DEVICE void check(const lamprey_check_params &p)
{
    wait_for_dependencies();
    call_check(p).run();
}

} // namespace lamprey

#endif
