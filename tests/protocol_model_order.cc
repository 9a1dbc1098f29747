// SPDX-License-Identifier: Apache-2.0
// The order check. It makes one run and notes for each access which others come before it in every
// run: those that program order, a fence, a barrier, or an await puts there. If any two accesses of
// a word, one of them a store, are ordered so, then every run has the same accesses in the same
// order, by induction: whatever can happen next after a part of this run happens next in it too.
// That holds for an await only if the word was surely cleared when the thread came to it; else it
// could go on with what lay there.
#include <algorithm>

#include "tests/protocol_model.h"

namespace lamprey_model {

namespace {

class Set { // of accesses
  public:
    void insert(size_t i)
    {
        if (bits_.size() <= i / 64) {
            bits_.resize(i / 64 + 1);
        }
        bits_[i / 64] |= 1ull << i % 64;
    }

    bool contains(size_t i) const
    {
        return i / 64 < bits_.size() && (bits_[i / 64] >> i % 64 & 1);
    }

    void add(const Set &other)
    {
        bits_.resize(std::max(bits_.size(), other.bits_.size()));
        for (size_t i = 0; i < other.bits_.size(); i++) {
            bits_[i] |= other.bits_[i];
        }
    }

  private:
    std::vector<uint64_t> bits_;
};

struct Word {
    std::vector<size_t> accesses; // since its last store, that one included
    size_t store = 0;             // the last; 0: none yet
    size_t overwritten = 0;       // the one before it
    bool was_cleared = true;      // by that one
};

class OneRun {
  public:
    explicit OneRun(const Programs &programs)
        : programs_(programs), memory_(programs.memory), words_(programs.memory.size()),
          next_(programs.threads.size()), past_(programs.threads.size()),
          issued_(programs.threads.size())
    {
        before_.emplace_back(); // access 0 stands for the start
        for (Set &past : past_) {
            past.insert(0);
        }
    }

    std::string run()
    {
        bool moved = true;
        while (moved && error_.empty()) {
            moved = false;
            for (size_t t = 0; t < next_.size(); t++) {
                while (error_.empty() && next(t) && step(t, *next(t))) {
                    moved = true;
                }
            }
        }
        for (size_t t = 0; t < next_.size() && error_.empty(); t++) {
            error_ = next(t) ? where(t) + " is stuck" : "";
        }
        return error_;
    }

  private:
    const Operation *next(size_t t) const
    {
        const std::vector<Operation> &operations = programs_.threads[t].operations;
        return next_[t] < operations.size() ? &operations[next_[t]] : nullptr;
    }

    std::string where(size_t t) const
    {
        return "rank " + std::to_string(programs_.threads[t].rank) + " thread " +
               std::to_string(programs_.threads[t].index) + " round " +
               std::to_string(next(t)->round);
    }

    bool step(size_t t, const Operation &of)
    {
        switch (of.kind) {
        case Kind::store:
            store(t, of);
            break;
        case Kind::await:
            if (!arrived(of)) {
                return false;
            }
            read(t, of);
            break;
        case Kind::load:
            read(t, of);
            break;
        case Kind::fence:
            for (size_t access : issued_[t]) {
                past_[t].add(before_[access]);
                past_[t].insert(access);
            }
            issued_[t].clear();
            break;
        case Kind::barrier:
            return meet(t, of);
        }
        next_[t]++;
        return true;
    }

    bool meet(size_t t, const Operation &barrier)
    {
        std::vector<size_t> met;
        Set past;
        for (size_t u = 0; u < next_.size(); u++) {
            if (programs_.threads[u].rank == programs_.threads[t].rank &&
                programs_.threads[u].index < barrier.threads) {
                const Operation *of = next(u);
                if (!of || of->kind != Kind::barrier || of->phase != barrier.phase) {
                    return false;
                }
                met.push_back(u);
                past.add(past_[u]);
            }
        }
        for (size_t u : met) {
            past_[u] = past;
            next_[u]++;
        }
        return true;
    }

    // Performed at once here; what comes later knows of it by a fence or by having read it.
    void store(size_t t, const Operation &of)
    {
        const size_t self = before_.size();
        Set before = past_[t];
        for (size_t access : issued_[t]) {
            if (overlap(access, of)) { // stores of one thread to one place stay in order
                before.add(before_[access]);
                before.insert(access);
            }
        }
        before_.push_back(before);
        places_.push_back({of.word, of.width});
        issued_[t].push_back(self);
        for (int w = 0; w < of.width; w++) {
            Word &word = words_[of.word + (size_t)w];
            for (size_t access : word.accesses) {
                if (!before.contains(access)) {
                    error_ = where(t) + " stores over what may still be in use";
                }
            }
            word.accesses = {self};
            word.overwritten = word.store;
            word.was_cleared = memory_[of.word + (size_t)w] == kOnes;
            word.store = self;
            memory_[of.word + (size_t)w] = of.value[w];
        }
    }

    bool overlap(size_t access, const Operation &of) const
    {
        const Place &place = places_[access - 1];
        return place.word < of.word + of.width && of.word < place.word + place.width;
    }

    bool arrived(const Operation &of) const
    {
        bool any = false;
        for (int w = 0; w < of.width; w++) {
            any = any || memory_[of.word + (size_t)w] != kOnes;
        }
        return of.ready == Ready::flag ? memory_[of.word + of.width - 1u] == kFlag : any;
    }

    void read(size_t t, const Operation &of)
    {
        Set past = past_[t];
        for (int w = 0; w < of.width; w++) {
            const Word &word = words_[of.word + (size_t)w];
            if (memory_[of.word + (size_t)w] != of.value[w]) {
                error_ = where(t) + " reads what is not of it";
            }
            if (word.store && of.kind == Kind::load && !past.contains(word.store)) {
                error_ = where(t) + " may read too early";
            }
            if (of.kind == Kind::await) {
                if (!word.was_cleared || !past_[t].contains(word.overwritten)) {
                    error_ = where(t) + " may read what lay there before";
                }
                if (word.store != words_[of.word].store) {
                    error_ = where(t) + " may read half of what comes";
                }
                past.add(before_[word.store]);
                past.insert(word.store);
            }
        }
        const size_t self = before_.size();
        before_.push_back(past);
        places_.push_back({of.word, of.width});
        past.insert(self);
        past_[t] = past;
        for (int w = 0; w < of.width; w++) {
            words_[of.word + (size_t)w].accesses.push_back(self);
        }
    }

    struct Place {
        int word;
        int width;
    };

    const Programs &programs_;
    std::vector<uint8_t> memory_;
    std::vector<Word> words_;
    std::vector<size_t> next_;
    std::vector<Set> past_; // of each thread's next operation
    std::vector<std::vector<size_t>> issued_;
    std::vector<Set> before_; // of each access
    std::vector<Place> places_;
    std::string error_;
};

} // namespace

std::string unordered(const Programs &programs)
{
    return OneRun(programs).run();
}

} // namespace lamprey_model
