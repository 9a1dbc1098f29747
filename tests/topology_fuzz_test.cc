// SPDX-License-Identifier: Apache-2.0
// Damaged topology files: whatever they hold, they are refused with a reason or read as tables that
// make sense, and everything that takes such tables survives them.
//
// Seeded: a failure names the number of its file; LAMPREY_TEST_SEED and LAMPREY_TEST_SECONDS
// (through --test_env) ask for others. With -DLAMPREY_LIBFUZZER and clang's -fsanitize=fuzzer the
// same check is libFuzzer's target.
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <vector>

#include "topology/load.h"
#include "topology/show.h"

#ifndef LAMPREY_LIBFUZZER
#include <gtest/gtest.h>
#endif

/* Both of hwloc's parsers lose memory where a damaged file breaks off; that ours lose none is
 * topology_read_test's matter. */
extern "C" int __lsan_is_turned_off();
extern "C" int __lsan_is_turned_off()
{
    return 1;
}

namespace {

/* "" or what is wrong with the tables. */
std::string fault_of(const lamprey_machine &machine)
{
    const size_t n = machine.ngpus;
    for (size_t i = 0; i < n; i++) {
        const lamprey_machine_gpu &gpu = machine.gpus[i];
        if (gpu.links.kind > LAMPREY_NVLINK_SWITCH) {
            return "a kind that there isn't";
        }
        if (gpu.links.peer_count > LAMPREY_TOPOLOGY_MAX_PEERS) {
            return "more peers than fit";
        }
        if (gpu.links.kind == LAMPREY_NVLINK_NONE && gpu.links.links_active != 0) {
            return "links where there are none";
        }
        if (strnlen(gpu.uuid, sizeof(gpu.uuid)) == sizeof(gpu.uuid) ||
            strnlen(gpu.model, sizeof(gpu.model)) == sizeof(gpu.model) ||
            strnlen(gpu.sm, sizeof(gpu.sm)) == sizeof(gpu.sm)) {
            return "text without an end";
        }
    }
    for (size_t i = 0; i < n * n; i++) {
        const lamprey_machine_pair &pair = machine.pairs[i];
        const lamprey_machine_pair &back = machine.pairs[i % n * n + i / n];
        if (pair.mbps != back.mbps || pair.kind != back.kind) {
            return "pairs that differ by direction";
        }
        if ((pair.kind == LAMPREY_PAIR_SELF) != (i / n == i % n)) {
            return "a pair of one";
        }
        if ((pair.mbps != 0) !=
            (pair.kind == LAMPREY_PAIR_DIRECT || pair.kind == LAMPREY_PAIR_SWITCH)) {
            return "bandwidth without a way, or the other way round";
        }
    }
    return "";
}

std::string shown(const lamprey_machine &machine)
{
    char *text = nullptr;
    size_t size = 0;
    lamprey_verdict verdict;
    FILE *out = open_memstream(&text, &size);
    if (out == nullptr || lamprey_verdict_of_machine(&machine, &verdict) != 0) {
        return "out of memory";
    }
    lamprey_show_machine_text(out, &machine, "", &verdict);
    lamprey_show_machine_json(out, &machine, "", &verdict);
    lamprey_show_machine_svg(out, &machine, &verdict);
    fclose(out);
    std::string fault = size == 0 ? "nothing is shown" : "";
    if (machine.ngpus > 0 &&
        (verdict.domain == LAMPREY_DOMAIN_NONE) != (verdict.domain_reason[0] != '\0')) {
        fault = "no reason";
    }
    free(text);
    return fault;
}

/* Reads a file with that content; "" or what went wrong. *read: whether it was taken. */
std::string check(const std::string &content, bool *read)
{
    int file = memfd_create("topology", MFD_CLOEXEC);
    if (file < 0 ||
        write(file, content.data(), content.size()) != static_cast<ssize_t>(content.size())) {
        return "no memory file";
    }
    char reason_text[512] = "";
    const lamprey_reason reason = {reason_text, sizeof(reason_text)};
    lamprey_machine *machine = nullptr;
    std::string path = "/proc/self/fd/" + std::to_string(file);
    int result = lamprey_load_file(path.c_str(), &machine, &reason);
    close(file);
    *read = result == 0;
    std::string fault;
    if (result == 0) {
        fault = reason_text[0] != '\0' ? "a reason for success" : fault_of(*machine);
        fault = fault.empty() ? shown(*machine) : fault;
    } else if (result != EIO) {
        fault = "error " + std::to_string(result);
    } else if (reason_text[0] == '\0' || machine != nullptr) {
        fault = "no reason, or a machine all the same";
    }
    lamprey_machine_destroy(machine);
    return fault;
}

} // namespace

#ifdef LAMPREY_LIBFUZZER

extern "C" int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
extern "C" int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    bool read = false;
    std::string fault = check({reinterpret_cast<const char *>(data), size}, &read);
    if (!fault.empty()) {
        fprintf(stderr, "%s\n", fault.c_str());
        abort();
    }
    return 0;
}

#else

namespace {

class Damage {
  public:
    explicit Damage(unsigned seed) : random_(seed)
    {
        for (const auto &entry : std::filesystem::directory_iterator("tests/fixtures")) {
            if (entry.path().extension() == ".xml" && entry.path().stem() != "malformed-empty") {
                names_.push_back(entry.path());
            }
        }
        std::sort(names_.begin(), names_.end());
        for (const std::string &name : names_) {
            std::ifstream in(name, std::ios::binary);
            std::vector<std::string> lines;
            for (std::string line; std::getline(in, line);) {
                lines.push_back(line + "\n");
            }
            corpus_.push_back(lines);
        }
    }

    size_t files() const
    {
        return corpus_.size();
    }

    std::string next()
    {
        std::vector<std::string> lines = corpus_[below(corpus_.size())];
        for (size_t i = below(4) + 1; i > 0 && !lines.empty(); i--) {
            damage(&lines);
        }
        std::string text;
        for (const std::string &line : lines) {
            text += line;
        }
        if (below(16) == 0) {
            text.resize(below(text.size() + 1));
        }
        return text;
    }

  private:
    size_t below(size_t limit)
    {
        return random_() % limit;
    }

    /* The text between the n-th and the next quote, or a number: what our reader looks at. */
    void change_value(std::string *line)
    {
        static const char *const values[] = {
            "",
            "0",
            "1",
            "-1",
            "18",
            "4294967295",
            "4294967296",
            "99999999999999999999",
            "0x",
            "0xaa",
            "0xg",
            "1e9",
            " 1",
            "none",
            "gpu",
            "switch",
            "mixed",
            "nvml 1",
            "0000:06:00.0",
            "0000:06:00.0 0000:07:00.0",
            "ffffffff:ff:1f.7",
            "00000000000000000000000000000000",
            "&#0;",
            "&amp;",
            "%s%n",
            "\xff\xfe",
        };
        size_t open = line->find("value=\"");
        if (open == std::string::npos) {
            size_t digit = line->find_first_of("0123456789", below(line->size()));
            if (digit != std::string::npos) {
                (*line)[digit] = static_cast<char>('0' + below(10));
            }
            return;
        }
        open += 7;
        size_t close = line->find('"', open);
        if (close != std::string::npos) {
            bool is_long = below(24) == 0;
            line->replace(open, close - open,
                          is_long ? std::string(below(3000), 'a')
                                  : values[below(sizeof(values) / sizeof(*values))]);
        }
    }

    void damage(std::vector<std::string> *lines)
    {
        size_t at = below(lines->size());
        std::string &line = (*lines)[at];
        const std::vector<std::string> &other = corpus_[below(corpus_.size())];
        switch (below(14)) {
        case 0:
            lines->erase(lines->begin() + static_cast<long>(at));
            break;
        case 1:
            lines->insert(lines->begin() + static_cast<long>(at), (*lines)[below(lines->size())]);
            break;
        case 2:
            line = other.empty() ? "" : other[below(other.size())];
            break;
        case 3:
            if (!line.empty()) {
                line[below(line.size())] = static_cast<char>(below(256));
            }
            break;
        case 4:
            line.insert(below(line.size() + 1), 1, static_cast<char>(below(256)));
            break;
        case 5:
            std::swap(line, (*lines)[below(lines->size())]);
            break;
        default:
            if (!line.empty()) {
                change_value(&line);
            }
        }
    }

    std::mt19937 random_;
    std::vector<std::string> names_;
    std::vector<std::vector<std::string>> corpus_;
};

long setting(const char *name, long otherwise)
{
    const char *text = getenv(name);
    return text != nullptr && *text != '\0' ? atol(text) : otherwise;
}

TEST(FuzzTest, SurvivesDamagedFiles)
{
    const auto seed = static_cast<unsigned>(setting("LAMPREY_TEST_SEED", 1));
    const auto limit = std::chrono::seconds(setting("LAMPREY_TEST_SECONDS", 4));
    const auto start = std::chrono::steady_clock::now();
    Damage damage(seed);
    ASSERT_GT(damage.files(), 40u);
    size_t taken = 0;
    size_t refused = 0;
    const char *keep = getenv("TEST_UNDECLARED_OUTPUTS_DIR");
    while (std::chrono::steady_clock::now() - start < limit) {
        std::string content = damage.next();
        if (keep != nullptr) { /* a crash leaves the file that did it */
            std::ofstream(std::string(keep) + "/last.xml", std::ios::binary) << content;
        }
        bool read = false;
        std::string fault = check(content, &read);
        ASSERT_EQ("", fault) << "seed " << seed << ", file " << taken + refused << ":\n" << content;
        (read ? taken : refused)++;
    }
    /* Damage that is always or never noticed would test little. */
    EXPECT_GT(taken, (taken + refused) / 20);
    EXPECT_GT(refused, (taken + refused) / 20);
    RecordProperty("taken", static_cast<int>(taken));
    RecordProperty("refused", static_cast<int>(refused));
    printf("seed %u: %zu taken, %zu refused\n", seed, taken, refused);
}

} // namespace

#endif
