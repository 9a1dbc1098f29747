// SPDX-License-Identifier: Apache-2.0
// What ranks on the machines of tests/fixtures decide, and that every reason there is has such a
// case.
#include <fnmatch.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cctype>
#include <cstring>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "tests/fixtures/machine_tables.h"
#include "topology/domain.h"

namespace {

using lamprey::Decision;
using Records = std::vector<lamprey_domain_record>;

void apply(const std::string &claim, lamprey_domain_record *record)
{
    if (claim == "off") {
        record->fabric_off = 1;
    } else if (claim == "lost") {
        memset(record->host_id, 0, sizeof(record->host_id));
    } else if (claim == "mad") {
        record->links.kind = 99;
    } else {
        EXPECT_EQ("", claim);
    }
}

Records records_of(const Decision &decision)
{
    static std::map<std::string, lamprey::Machine> machines;
    Records records;
    uint16_t host = 1;
    for (const std::string &word : decision.hosts) {
        for (const lamprey::Seat &seat : lamprey::seats_of(word, &host)) {
            auto at = machines.find(seat.machine);
            if (at == machines.end()) {
                at = machines.emplace(seat.machine, lamprey::load_fixture(seat.machine)).first;
            }
            if (at->second == nullptr || seat.gpu >= at->second->ngpus) {
                ADD_FAILURE() << word << " has no GPU " << seat.gpu;
                continue;
            }
            records.push_back(lamprey::record_of(*at->second, seat.gpu, seat.host));
            apply(seat.claim, &records.back());
        }
    }
    EXPECT_EQ(decision.hosts.empty(), records.empty()) << decision.line;
    return records;
}

std::string domain_of(const Records &records, std::string *reason)
{
    char text[320] = "x";
    const char *name = lamprey_domain_name(
        lamprey_domain_decide(records.data(), records.size(), text, sizeof(text)));
    *reason = text;
    return name;
}

class DecisionTest : public testing::TestWithParam<Decision> {};

TEST_P(DecisionTest, Decides)
{
    const Decision &want = GetParam();
    std::string reason;
    EXPECT_EQ(want.domain, domain_of(records_of(want), &reason)) << reason;
    EXPECT_NE(std::string::npos, reason.find(want.reason)) << reason;
    EXPECT_EQ(want.domain == "none", !reason.empty()) << reason;
    EXPECT_EQ(want.domain == "none", !want.reason.empty());
}

// Ranks may be given out to GPUs in any order: the same domain. And the records may come in any
// order: they are looked at in that of the ranks, to the last byte of the reason.
TEST_P(DecisionTest, DependsOnNoOrder)
{
    const Records records = records_of(GetParam());
    std::string want;
    domain_of(records, &want);
    for (unsigned seed = 1; seed <= 3; seed++) {
        std::mt19937 random(seed);
        std::vector<size_t> order(records.size());
        Records arrived(records.size());
        Records shuffled;
        std::string reason;
        for (size_t i = 0; i < order.size(); i++) {
            order[i] = i;
        }
        std::shuffle(order.begin(), order.end(), random);
        for (size_t rank : order) {
            arrived[rank] = records[rank];
            shuffled.push_back(records[rank]);
        }
        EXPECT_EQ(GetParam().domain, domain_of(arrived, &reason));
        EXPECT_EQ(want, reason);
        EXPECT_EQ(GetParam().domain, domain_of(shuffled, &reason)) << reason;
    }
}

INSTANTIATE_TEST_SUITE_P(Fixtures, DecisionTest, testing::ValuesIn(lamprey::decisions()),
                         [](const testing::TestParamInfo<Decision> &info) {
                             std::string name = std::to_string(info.index) + "_";
                             for (char c : info.param.hosts.empty() ? "" : info.param.hosts[0]) {
                                 name += isalnum(static_cast<unsigned char>(c)) ? c : '_';
                             }
                             return name;
                         });

// What a source file passes to refuse(), as patterns of fnmatch: "rank *'s GPU has no NVLink".
std::vector<std::string> reasons_in(const std::string &path)
{
    const std::string source = lamprey::read_file(path);
    std::vector<std::string> patterns;
    for (size_t at = 0; (at = source.find("refuse(", at)) != std::string::npos; at++) {
        size_t next = source.find_first_of("\",;", at + strlen("refuse("));
        next = source.find_first_not_of(", \n", next);
        std::string pattern;
        while (source[next] == '"') { // literals that follow each other are one
            const size_t end = source.find('"', next + 1);
            for (size_t i = next + 1; i < end; i++) {
                if (source[i] == '%') {
                    pattern += '*';
                    i = source.find_first_of("cdsux", i);
                } else {
                    pattern += source[i];
                }
            }
            next = source.find_first_not_of(" \n", end + 1);
        }
        if (!pattern.empty()) { // not the definition
            patterns.push_back(pattern);
        }
    }
    return patterns;
}

TEST(ReasonsTest, EveryReasonHasAFixtureThatGivesIt)
{
    std::vector<std::string> given;
    for (const Decision &decision : lamprey::decisions()) {
        std::string reason;
        domain_of(records_of(decision), &reason);
        for (size_t semicolon; (semicolon = reason.find("; ")) != std::string::npos;) {
            given.push_back(reason.substr(0, semicolon));
            reason.erase(0, semicolon + 2);
        }
        given.push_back(reason);
    }
    const std::vector<std::string> patterns = reasons_in("topology/domain.c");
    EXPECT_GE(patterns.size(), 20u);
    for (const std::string &pattern : patterns) {
        if (pattern == "*; *" || pattern == "*") {
            continue; // puts others together
        }
        EXPECT_TRUE(std::any_of(given.begin(), given.end(),
                                [&](const std::string &reason) {
                                    return fnmatch(pattern.c_str(), reason.c_str(), 0) == 0;
                                }))
            << "no line of decisions.txt gives \"" << pattern << "\"";
    }
}

} // namespace
