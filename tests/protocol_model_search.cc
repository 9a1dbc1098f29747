// SPDX-License-Identifier: Apache-2.0
// The explicit-state search.
//
// Most orders need no look, since they lead to the same states:
//   - issuing a store, a fence and a barrier touch nothing that others see: done at once.
//   - an access is done at once, and alone, if no other thread can access its words before it in a
//     way that matters, whatever happens: if all that others have left to do there are loads, for a
//     load; if it stands behind an await that this very store must end, for a store.
// Programs have no loops, so nothing is put off for ever. The tests hold this against all orders.
#include <string.h>

#include <algorithm>
#include <unordered_set>

#include "tests/protocol_model.h"

namespace lamprey_model {

namespace {

constexpr size_t kWords = 192;
constexpr size_t kThreads = 6;
constexpr size_t kPending = 48;

struct Progress {
    uint16_t next = 0; // operation
    uint16_t pending = 0;
    uint16_t issued[kPending] = {}; // stores, not yet performed; in program order
};

struct State {
    uint8_t memory[kWords];
    Progress threads[kThreads];
};

class Search {
  public:
    Search(const Programs &programs, Orders orders, size_t most)
        : programs_(programs), orders_(orders), most_(most)
    {
        accesses_.resize(programs.memory.size());
        for (size_t t = 0; t < programs.threads.size(); t++) {
            const std::vector<Operation> &operations = programs.threads[t].operations;
            for (size_t i = 0; i < operations.size(); i++) {
                for (int w = 0; w < operations[i].width; w++) {
                    accesses_[operations[i].word + (size_t)w].push_back({t, i});
                }
            }
        }
    }

    Found run()
    {
        if (programs_.memory.size() > kWords || programs_.threads.size() > kThreads) {
            return {"too many words or threads", true, 0};
        }
        State start = {};
        memcpy(start.memory, programs_.memory.data(), programs_.memory.size());
        visit(start);
        while (!todo_.empty() && error_.empty()) {
            const State state = todo_.back();
            todo_.pop_back();
            if (!expand(state) && error_.empty()) {
                error_ = finished(state) ? "" : stuck(state);
            }
        }
        return {error_, too_large_, seen_.size()};
    }

  private:
    struct Access {
        size_t thread;
        size_t index;
    };

    const Operation &operation(size_t thread, size_t index) const
    {
        return programs_.threads[thread].operations[index];
    }

    const Operation *next(const State &state, size_t thread) const
    {
        const size_t index = state.threads[thread].next;
        return index < programs_.threads[thread].operations.size() ? &operation(thread, index)
                                                                   : nullptr;
    }

    bool finished(const State &state) const
    {
        for (size_t t = 0; t < programs_.threads.size(); t++) {
            if (next(state, t) || state.threads[t].pending) {
                return false;
            }
        }
        return true;
    }

    std::string where(size_t thread, const Operation &of) const
    {
        return "rank " + std::to_string(programs_.threads[thread].rank) + " thread " +
               std::to_string(programs_.threads[thread].index) + " round " +
               std::to_string(of.round);
    }

    std::string stuck(const State &state) const
    {
        std::string text = "stuck:";
        for (size_t t = 0; t < programs_.threads.size(); t++) {
            if (const Operation *of = next(state, t)) {
                text += " " + where(t, *of);
            }
        }
        return text;
    }

    void too_large(const char *what)
    {
        error_ = std::string("too many ") + what;
        too_large_ = true;
    }

    // Takes what can be taken at once, and keeps the state if it is new.
    void visit(State state)
    {
        while (error_.empty() && settle(state)) {
        }
        if (!error_.empty()) {
            return;
        }
        std::string key((const char *)state.memory, programs_.memory.size());
        for (size_t t = 0; t < programs_.threads.size(); t++) {
            const Progress &thread = state.threads[t];
            key.append((const char *)&thread.next, sizeof thread.next);
            key += (char)thread.pending;
            key.append((const char *)thread.issued, thread.pending * sizeof thread.issued[0]);
        }
        if (seen_.insert(std::move(key)).second) {
            if (seen_.size() > most_) {
                too_large("states");
            }
            todo_.push_back(state);
        }
    }

    // One step that needs no alternative; false if there is none.
    bool settle(State &state)
    {
        for (size_t t = 0; t < programs_.threads.size(); t++) {
            Progress &thread = state.threads[t];
            const Operation *of = next(state, t);
            if (of && of->kind == Kind::store) {
                if (thread.pending == kPending) {
                    too_large("stores at once");
                    return false;
                }
                thread.issued[thread.pending++] = thread.next++;
                return true;
            }
            if (of && of->kind == Kind::fence && thread.pending == 0) {
                thread.next++;
                return true;
            }
            if (of && of->kind == Kind::barrier && all_at(state, t, *of)) {
                for (size_t u = 0; u < programs_.threads.size(); u++) {
                    if (programs_.threads[u].rank == programs_.threads[t].rank &&
                        programs_.threads[u].index < of->threads) {
                        state.threads[u].next++;
                    }
                }
                return true;
            }
            if (of && can_read(state, t, *of) && alone(state, t, thread.next)) {
                read(state, t, *of);
                return error_.empty();
            }
            for (size_t i = 0; i < thread.pending; i++) {
                if (first_to_its_place(t, thread, i) && alone(state, t, thread.issued[i])) {
                    perform(state, t, i);
                    return true;
                }
            }
        }
        return false;
    }

    bool expand(const State &state)
    {
        bool any = false;
        for (size_t t = 0; t < programs_.threads.size(); t++) {
            const Progress &thread = state.threads[t];
            const Operation *of = next(state, t);
            if (of && can_read(state, t, *of)) {
                State after = state;
                read(after, t, *of);
                visit(after);
                any = true;
            }
            for (size_t i = 0; i < thread.pending; i++) {
                if (first_to_its_place(t, thread, i)) {
                    State after = state;
                    perform(after, t, i);
                    visit(after);
                    any = true;
                }
            }
        }
        return any;
    }

    bool all_at(const State &state, size_t t, const Operation &barrier) const
    {
        for (size_t u = 0; u < programs_.threads.size(); u++) {
            if (programs_.threads[u].rank == programs_.threads[t].rank &&
                programs_.threads[u].index < barrier.threads) {
                const Operation *of = next(state, u);
                if (!of || of->kind != Kind::barrier || of->phase != barrier.phase) {
                    return false;
                }
            }
        }
        return true;
    }

    static bool overlap(const Operation &a, const Operation &b)
    {
        return a.word < b.word + b.width && b.word < a.word + a.width;
    }

    static bool arrived(const State &state, const Operation &await)
    {
        if (await.ready == Ready::flag) {
            return state.memory[await.word + await.width - 1] == kFlag;
        }
        for (int i = 0; i < await.width; i++) {
            if (state.memory[await.word + i] != kOnes) {
                return true;
            }
        }
        return false;
    }

    bool can_read(const State &state, size_t t, const Operation &of) const
    {
        const bool there = of.kind == Kind::load || (of.kind == Kind::await && arrived(state, of));
        return there && !store_in_sight(state, t, of);
    }

    // A thread sees what was stored by itself, or by one of its rank that it met since, even if it
    // isn't performed; to wait until it is comes to the same. (With all fences in place there is no
    // such store.)
    bool store_in_sight(const State &state, size_t t, const Operation &load) const
    {
        for (size_t u = 0; u < programs_.threads.size(); u++) {
            for (size_t i = 0; i < state.threads[u].pending; i++) {
                const Operation &store = operation(u, state.threads[u].issued[i]);
                if (programs_.threads[u].rank == programs_.threads[t].rank &&
                    overlap(store, load) && (u == t || store.phase < load.phase)) {
                    return true;
                }
            }
        }
        return false;
    }

    void read(State &state, size_t t, const Operation &of)
    {
        if (memcmp(state.memory + of.word, of.value, of.width) != 0) {
            error_ = where(t, of) + " reads what is not of it";
        }
        state.threads[t].next++;
    }

    bool first_to_its_place(size_t t, const Progress &thread, size_t i) const
    {
        for (size_t j = 0; j < i; j++) {
            if (overlap(operation(t, thread.issued[j]), operation(t, thread.issued[i]))) {
                return false;
            }
        }
        return true;
    }

    void perform(State &state, size_t t, size_t i) const
    {
        Progress &thread = state.threads[t];
        const Operation &store = operation(t, thread.issued[i]);
        memcpy(state.memory + store.word, store.value, store.width);
        std::copy(thread.issued + i + 1, thread.issued + thread.pending, thread.issued + i);
        thread.issued[--thread.pending] = 0;
    }

    // Whether no other thread can access the words of an operation before it.
    bool alone(const State &state, size_t self, size_t index) const
    {
        if (orders_ == Orders::all) {
            return false;
        }
        const Operation &of = operation(self, index);
        for (int w = 0; w < of.width; w++) {
            size_t blocked = programs_.threads.size(); // a thread that waits for this operation
            for (const Access &access : accesses_[of.word + (size_t)w]) {
                if (access.thread == self || access.thread == blocked || done(state, access)) {
                    continue;
                }
                const Operation &other = operation(access.thread, access.index);
                if (of.kind == Kind::store && other.kind == Kind::await && !arrived(state, other) &&
                    !stored_by_others(state, self, other)) {
                    blocked = access.thread; // accesses are in program order
                    continue;
                }
                if (of.kind != Kind::store && other.kind != Kind::store) {
                    continue;
                }
                return false;
            }
        }
        return true;
    }

    bool done(const State &state, const Access &access) const
    {
        const Progress &thread = state.threads[access.thread];
        return access.index < thread.next &&
               std::find(thread.issued, thread.issued + thread.pending, access.index) ==
                   thread.issued + thread.pending;
    }

    // Whether another thread's store could make this await go on: one that isn't behind it.
    bool stored_by_others(const State &state, size_t self, const Operation &await) const
    {
        for (int w = 0; w < await.width; w++) {
            for (const Access &access : accesses_[await.word + (size_t)w]) {
                const Operation &other = operation(access.thread, access.index);
                if (access.thread != self && other.kind == Kind::store && !done(state, access) &&
                    !(other.value[0] == kOnes && other.width == 1)) {
                    return true;
                }
            }
        }
        return false;
    }

    const Programs &programs_;
    const Orders orders_;
    const size_t most_;
    std::vector<std::vector<Access>> accesses_; // of each word
    std::vector<State> todo_;
    std::unordered_set<std::string> seen_;
    std::string error_;
    bool too_large_ = false;
};

} // namespace

Found search(const Programs &programs, Orders orders, size_t most)
{
    return Search(programs, orders, most).run();
}

} // namespace lamprey_model
