// SPDX-License-Identifier: Apache-2.0
// lamprey-topo as a user runs it.
#include <gtest/gtest.h>
#include <sys/wait.h>

#include <cstdio>
#include <fstream>
#include <iterator>
#include <regex>
#include <string>
#include <utility>
#include <vector>

namespace {

struct Outcome {
    int status;
    std::string output;
};

/* With both streams unless told otherwise. */
Outcome topo(const std::string &arguments, const std::string &errors = "2>&1")
{
    std::string command = "topology/lamprey-topo " + arguments + " " + errors;
    FILE *pipe = popen(command.c_str(), "r");
    if (pipe == nullptr) {
        ADD_FAILURE() << command;
        return {-1, ""};
    }
    Outcome run = {};
    char buffer[4096];
    for (size_t n; (n = fread(buffer, 1, sizeof(buffer), pipe)) > 0;) {
        run.output.append(buffer, n);
    }
    int status = pclose(pipe);
    run.status = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
    return run;
}

/* The limits of the messages are the plugin's matter: any number is N here. */
void expect_line(const Outcome &run, const std::string &line)
{
    static const std::regex limit("(up to |\"max_bytes\": )[1-9][0-9]*");
    std::string output = "\n" + std::regex_replace(run.output, limit, "$1N");
    EXPECT_NE(std::string::npos, output.find("\n" + line + "\n")) << run.output;
}

TEST(TopoTest, PrintsAMachine)
{
    Outcome run = topo("--xml tests/fixtures/gb200-tray-a.xml");
    EXPECT_EQ(0, run.status);
    expect_line(run, "NVLink information: nvml 580.159.04");
    expect_line(run, "2    0018:01:00.0   NVIDIA GB200             10.0  1     off  "
                     "18 x 53125, switch   c56b1f5e.. clique 4026, health 0xaa");
    expect_line(run, "1      956250s         -   956250s   956250s");
    expect_line(run, "One rank on each of the 4 GPUs: NVLink domain: host");
    expect_line(run, "Served: yes, messages up to N KiB");
}

TEST(TopoTest, PrintsTheMeasuredMachine)
{
    Outcome run = topo("--xml tests/fixtures/hgx-h200-vm-2.xml");
    expect_line(run, "0    0000:00:06.0   NVIDIA H200              9.0   0     off  "
                     "18 x 26562, switch   this host");
    expect_line(run, "0            -   478116s");
    expect_line(run, "Served: yes, messages up to N KiB");
}

TEST(TopoTest, PrintsDirectLinksAndTheReason)
{
    Outcome run = topo("--xml tests/fixtures/h100-nvl-bridge-4.xml");
    EXPECT_EQ(0, run.status);
    expect_line(run, "0    0000:17:00.0   NVIDIA H100 NVL          9.0   0     off  "
                     "12 x 26562, 1 peers  -");
    expect_line(run, "0            -   318744d        no        no");
    expect_line(run, "One rank on each of the 4 GPUs: NVLink domain: none: no NVLink between rank "
                     "0's GPU 0000:17:00.0 and rank 2's GPU 0000:99:00.0");
    expect_line(run, "Served: no");
}

TEST(TopoTest, KnowsWhatTheKernelsAreFor)
{
    Outcome run = topo("--xml tests/fixtures/dgx-2-16.xml");
    expect_line(run, "One rank on each of the 16 GPUs: NVLink domain: host");
    expect_line(run, "Served: no: rank 0: there are no kernels for sm_70");
    run = topo("--xml tests/fixtures/container-2-of-8.xml");
    expect_line(run, "One rank on each of the 8 GPUs: NVLink domain: none: nothing is known of the "
                     "NVLinks of rank 0's GPU");
    expect_line(run, "Served: no");
}

TEST(TopoTest, PrintsWhatIsUnknown)
{
    Outcome run = topo("--xml tests/fixtures/not-annotated-8.xml");
    EXPECT_EQ(0, run.status);
    expect_line(run, "NVLink information: none: the topology carries no annotation");
    run = topo("--xml tests/fixtures/no-gpu.xml");
    EXPECT_EQ(0, run.status);
    expect_line(run, "No NVIDIA GPU.");
}

TEST(TopoTest, PrintsAndExportsThisMachine)
{
    EXPECT_EQ(0, topo("").status);
    std::string path = testing::TempDir() + "topology_topo.xml";
    EXPECT_EQ(0, topo("--export " + path).status);
    /* Where /sys lacks processors hwloc says so on stderr, for the live machine only. */
    Outcome live = topo("", "2>/dev/null");
    Outcome again = topo("--xml " + path, "2>/dev/null");
    EXPECT_EQ(0u, live.output.find("NVLink information: ")) << live.output;
    EXPECT_EQ(0u, again.output.find("NVLink information: ")) << again.output;
    EXPECT_EQ(0, again.status);
    /* The first line may differ: it says why NVML can't be asked. */
    EXPECT_EQ(live.output.substr(live.output.find('\n')),
              again.output.substr(again.output.find('\n')));
    remove(path.c_str());
}

TEST(TopoTest, RefusesBadInput)
{
    EXPECT_EQ(2, topo("--nonsense").status);
    EXPECT_EQ(2, topo("word").status);
    EXPECT_EQ(2, topo("--xml a --ranks b").status);
    EXPECT_EQ(2, topo("--svg a --ranks b").status);
    EXPECT_EQ(2, topo("--export a --ranks b").status);
    for (const char *option : {"--xml", "--export", "--svg", "--ranks"}) {
        EXPECT_EQ(2, topo(option).status) << option;
    }
    EXPECT_EQ(0, topo("--help").status);
    Outcome run = topo("--xml tests/fixtures/malformed-uuid.xml");
    EXPECT_EQ(1, run.status);
    EXPECT_EQ("lamprey-topo: GPU 0000:07:00.0: GPUFabricClusterUUID makes no sense "
              "(\"0000000000000000000000000000000x\")\n",
              run.output);
    run = topo("--export /nonexistent/file.xml");
    EXPECT_EQ(1, run.status);
    EXPECT_NE(std::string::npos, run.output.find("cannot write /nonexistent/file.xml"));
    run = topo("--xml tests/fixtures/no-gpu.xml --svg /nonexistent/file.svg");
    EXPECT_EQ(1, run.status);
    EXPECT_NE(std::string::npos, run.output.find("cannot write /nonexistent/file.svg"));
    run = topo("--xml tests/fixtures/no-gpu.xml --json >/dev/full");
    EXPECT_EQ(1, run.status);
    run = topo("--ranks tests/fixtures/missing.ranks");
    EXPECT_EQ(1, run.status);
    EXPECT_EQ("lamprey-topo: cannot read tests/fixtures/missing.ranks: No such file or directory\n",
              run.output);
}

TEST(TopoTest, ReadsAndWritesAMachine)
{
    std::string path = testing::TempDir() + "topology_topo_copy.xml";
    for (const char *name : {"hgx-h100-8", "gb200-tray-a", "v100-cube-mesh-8", "no-gpu"}) {
        std::string xml = std::string("--xml tests/fixtures/") + name + ".xml";
        Outcome written = topo(xml + " --export " + path);
        EXPECT_EQ(0, written.status);
        EXPECT_EQ("", written.output);
        EXPECT_EQ(topo(xml + " --json").output, topo("--xml " + path + " --json").output);
    }
    remove(path.c_str());
}

/* A value of JSON at the position; moves behind it. */
bool skip_json(const std::string &text, size_t &at)
{
    auto space = [&] { at = std::min(text.find_first_not_of(" \n", at), text.size()); };
    auto is = [&](char c) { return at < text.size() && text[at] == c; };
    space();
    if (is('{') || is('[')) {
        const bool object = text[at++] == '{';
        const char end = object ? '}' : ']';
        for (space(); !is(end); space()) {
            if (object && (!is('"') || !skip_json(text, at) || (space(), !is(':')))) {
                return false;
            }
            at += object;
            if (!skip_json(text, at)) {
                return false;
            }
            space();
            if (is(',')) {
                at++;
                space();
                if (is(end)) {
                    return false;
                }
            } else if (!is(end)) {
                return false;
            }
        }
        at++;
        return true;
    }
    static const std::regex scalar(
        R"re("([^"\\\x00-\x1f]|\\(["\\]|u[0-9a-f]{4}))*"|[0-9]+|true|false|null)re");
    std::smatch match;
    if (!std::regex_search(text.begin() + at, text.end(), match, scalar,
                           std::regex_constants::match_continuous)) {
        return false;
    }
    at += match.length();
    return true;
}

bool is_json(const std::string &text)
{
    size_t at = 0;
    return skip_json(text, at) && text.find_first_not_of(" \n", at) == std::string::npos;
}

/* Elements closed in order, attributes quoted, nothing that must be escaped. */
bool is_xml(const std::string &text)
{
    static const std::regex tag(R"(<(/?)([a-z]+)((?: [a-zA-Z0-9:-]+="[^<"&]*")*)(/?)>)");
    static const std::regex words(R"(([^<>&]|&(amp|lt|gt|quot);)*)");
    const std::string head = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n";
    if (text.compare(0, head.size(), head) != 0) {
        return false;
    }
    std::vector<std::string> open;
    auto at = text.begin() + static_cast<long>(head.size());
    size_t elements = 0;
    for (std::sregex_iterator i(at, text.end(), tag), end; i != end; ++i) {
        const std::smatch &match = *i;
        if (!std::regex_match(at, match[0].first, words) || (open.empty() && elements > 0)) {
            return false;
        }
        if (match[1].length() > 0) {
            if (open.back() != match[2] || match[3].length() > 0 || match[4].length() > 0) {
                return false;
            }
            open.pop_back();
        } else if (match[4].length() == 0) {
            open.push_back(match[2]);
        }
        elements++;
        at = match[0].second;
    }
    return open.empty() && elements > 0 && std::string(at, text.end()) == "\n";
}

std::string read_file(const std::string &path)
{
    std::ifstream in(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
}

std::string picture_of(const std::string &xml)
{
    std::string path = testing::TempDir() + "topology_topo.svg";
    Outcome run = topo("--xml " + xml + " --svg " + path);
    EXPECT_EQ(0, run.status) << run.output;
    EXPECT_EQ("", run.output);
    std::string picture = read_file(path);
    remove(path.c_str());
    return picture;
}

size_t count(const std::string &text, const std::string &part)
{
    size_t n = 0;
    for (size_t at = 0; (at = text.find(part, at)) != std::string::npos; at += part.size()) {
        n++;
    }
    return n;
}

TEST(TopoTest, CheckersOfThisTestRefuse)
{
    EXPECT_TRUE(is_json("{\"a\": [1, null, {}], \"b\": \"\\u000a\"}\n"));
    for (const char *text :
         {"", "{\"a\": }", "[1,]", "[1 2]", "{1: 2}", "[\"\n\"]", "[1]]", "[1"}) {
        EXPECT_FALSE(is_json(text)) << text;
    }
    const std::string head = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n";
    EXPECT_TRUE(is_xml(head + "<a b=\"c\"><d/>&amp;</a>\n"));
    for (const char *text : {"", "<a>\n", "<a></b>\n", "<a b=c/>\n", "<a>&</a>\n", "<a/><b/>\n",
                             "<a><</a>\n", "<a/>"}) {
        EXPECT_FALSE(is_xml(head + text)) << text;
    }
}

/* How often each part is in the picture of a fixture. */
void expect_drawn(const std::string &name,
                  const std::vector<std::pair<size_t, const char *>> &parts)
{
    const std::string picture = picture_of("tests/fixtures/" + name + ".xml");
    EXPECT_TRUE(is_xml(picture)) << picture;
    for (const auto &part : parts) {
        EXPECT_EQ(part.first, count(picture, part.second)) << name << ": " << part.second;
    }
}

TEST(TopoTest, DrawsSwitches)
{
    expect_drawn("hgx-h100-8", {{8, ">GPU "},
                                {1, ">NVSwitch<"},
                                {8, "<line "},
                                {8, ">478.1 GB/s<"},
                                {8, ">18 x 26.6 GB/s<"},
                                {1, ">served by Lamprey<"}});
    expect_drawn("gb200-tray-a", {{1, ">fabric: c56b1f5e.. clique 4026, health 0xaa<"}});
}

TEST(TopoTest, DrawsDirectLinks)
{
    expect_drawn("v100-cube-mesh-8", {{0, "NVSwitch"},
                                      {16, "<line "},
                                      {8, ">25.0 GB/s<"},
                                      {8, ">50.0 GB/s<"},
                                      {1, ">8 GPUs, NVLink domain: none<"}});
    expect_drawn("h100-nvl-bridge-4", {{1, ">left to NCCL: no NVLink between "}});
}

TEST(TopoTest, DrawsMachinesWithoutLinks)
{
    for (const char *name : {"l40s-8", "not-annotated-8", "one-gpu", "no-gpu"}) {
        expect_drawn(name, {{0, "<line "}});
    }
}

/* Whatever a file calls its GPU. */
TEST(TopoTest, EscapesWhatItShows)
{
    std::string xml = read_file("tests/fixtures/one-gpu.xml");
    const std::regex model("(name=\"GPUModel\" value=\")[^\"]*");
    xml = std::regex_replace(xml, model, "$1&lt;a href='\\x'&gt; &amp;&quot;&#10;\xc3\xa9");
    std::string path = testing::TempDir() + "topology_topo_model.xml";
    std::ofstream(path, std::ios::binary) << xml;
    std::string picture = picture_of(path);
    EXPECT_TRUE(is_xml(picture)) << picture;
    EXPECT_NE(std::string::npos, picture.find("&lt;a href='\\x'&gt; &amp;&quot;"));
    Outcome run = topo("--json --xml " + path);
    EXPECT_EQ(0, run.status);
    EXPECT_TRUE(is_json(run.output)) << run.output;
    EXPECT_NE(std::string::npos, run.output.find("<a href='\\\\x'> &\\\"\\u000a\xc3\xa9"))
        << run.output;
    remove(path.c_str());
}

TEST(TopoTest, PrintsJson)
{
    for (const char *name : {"hgx-h200-vm-2", "v100-cube-mesh-8", "no-gpu", "one-gpu"}) {
        Outcome run = topo(std::string("--json --xml tests/fixtures/") + name + ".xml");
        EXPECT_EQ(0, run.status);
        EXPECT_TRUE(is_json(run.output)) << run.output;
    }
    Outcome run = topo("--json --xml tests/fixtures/hgx-h200-vm-2.xml");
    EXPECT_NE(std::string::npos,
              run.output.find("\"nvlink\": {\"kind\": \"switch\", \"active\": 18, "
                              "\"link_mbps\": 26562, \"peers\": []}"));
    expect_line(
        run, "    [{\"kind\": \"switch\", \"mbps\": 478116}, {\"kind\": \"self\", \"mbps\": 0}]");
    expect_line(run,
                "  \"decision\": {\"ranks\": 2, \"domain\": \"host\", \"domain_reason\": null, "
                "\"served\": true, \"max_bytes\": N, \"reason\": null}");
}

/* The list as a file, so that paths in it are relative to the fixtures. */
Outcome explain(const std::string &list, const std::string &options = "")
{
    std::string path = testing::TempDir() + "topology_topo.ranks";
    std::ofstream(path) << std::regex_replace(list, std::regex("@"),
                                              std::string(getenv("PWD")) + "/tests/fixtures/");
    Outcome run = topo(options + " --ranks " + path);
    remove(path.c_str());
    run.output = std::regex_replace(run.output, std::regex(path), "LIST");
    return run;
}

TEST(TopoTest, ExplainsTheDecisionForMachines)
{
    Outcome run = explain("# two trays\nmachine @gb200-tray-a.xml gpus=1\n\n"
                          "machine @gb200-tray-b.xml gpus=2,0 # two of four\n");
    EXPECT_EQ(0, run.status) << run.output;
    expect_line(run, "2     gb200-tray-b             0008:01:00.0   10.0  18 x 53125, switch   "
                     "c56b1f5e.. clique 4026, health 0xaa");
    expect_line(run, "3 ranks: NVLink domain: fabric");
    expect_line(run, "Served: yes, messages up to N KiB, where all hosts have one IMEX channel");
    run = explain("machine @gb200-tray-a.xml times=18\n");
    expect_line(run, "71    gb200-tray-a#18          0019:01:00.0   10.0  18 x 53125, switch   "
                     "c56b1f5e.. clique 4026, health 0xaa");
    expect_line(run, "72 ranks: NVLink domain: fabric");
    run = explain(
        "machine @hgx-h200-vm-2.xml gpus=0 host=a\nmachine @hgx-h200-vm-2.xml gpus=1 host=a\n");
    expect_line(run, "2 ranks: NVLink domain: host");
    expect_line(run, "Served: yes, messages up to N KiB");
    run = topo(
        "--ranks tests/fixtures/gb200-tray-a.xml --ranks tests/fixtures/gb200-other-clique.xml");
    expect_line(run, "8 ranks: NVLink domain: none: ranks 0 and 4 are on different hosts; "
                     "ranks 0 and 4 are in different cliques (4026, 4027)");
    expect_line(run, "Served: no");
}

TEST(TopoTest, ExplainsTheDecisionForRecords)
{
    const std::string one =
        "rank pci=0000:18:00.0 kind=switch links=18 mbps=26562 sm=9.0 state=3\n";
    Outcome run =
        explain(one + "rank pci=0000:2a:00.0 kind=switch links=18 mbps=26562 sm=9.0 state=3\n");
    expect_line(run, "2 ranks: NVLink domain: host");
    expect_line(run, "Served: yes, messages up to N KiB");
    run = explain(one + "rank pci=0000:2a:00.0 kind=switch links=18 sm=10.0 state=3\n");
    expect_line(run, "Served: no: ranks 0 and 1 have different GPUs (sm_90 and sm_100)");
    run = explain(one + "rank pci=0000:18:00.0 kind=switch state=3 sm=9.0\n");
    EXPECT_NE(std::string::npos, run.output.find("use the same GPU 0000:18:00.0")) << run.output;
    run =
        explain(one + "rank pci=0000:2a:00.0 kind=direct peers=0000:3a:00.0,0000:18:00.0 sm=9.0\n");
    expect_line(run, "2 ranks: NVLink domain: host");
    run = explain(
        "rank pci=8:1:0.0 state=3 cluster=c56b1f5e7d0a4c3e9b2f60718293a4b5 clique=7 host=a\n"
        "rank pci=8:1:0.0 state=3 cluster=c56b1f5e7d0a4c3e9b2f60718293a4b5 clique=8 host=b\n");
    EXPECT_NE(std::string::npos, run.output.find("in different cliques (7, 8)")) << run.output;
    run = explain("machine @gb200-tray-a.xml\nrank pci=8:1:0.0 host=b kind=switch sm=10.0 state=3 "
                  "cluster=c56b1f5e7d0a4c3e9b2f60718293a4b5 clique=4026 off=1\n");
    EXPECT_NE(std::string::npos,
              run.output.find("; rank 4 keeps to its host (NCCL_MNNVL_ENABLE=0)"))
        << run.output;
    run = explain(one, "--json");
    EXPECT_TRUE(is_json(run.output)) << run.output;
    EXPECT_NE(std::string::npos, run.output.find("\"reason\": \"1 ranks; 2 to ")) << run.output;
}

TEST(TopoTest, SaysWhichLineOfAListIsWrong)
{
    const struct {
        const char *list;
        const char *error;
    } cases[] = {
        {"\nnode a.xml\n", "LIST, line 2: \"node\" is neither machine nor rank"},
        {"machine\n", "LIST, line 1: machine needs an XML file"},
        {"machine @no-gpu.xml gpus=0\n", "LIST, line 1: gpus=0: there is no GPU \"0\" among 0"},
        {"machine @no-gpu.xml times=0\n",
         "LIST, line 1: \"times=0\" is none of gpus=I,J, times=1..4096, host=NAME"},
        {"machine @one-gpu.xml times=2 host=a\n",
         "LIST, line 1: times=2 hosts can't have one name, a"},
        {"machine @one-gpu.xml host=\n",
         "LIST, line 1: host=: a name of 1 to 63 characters is needed"},
        {"rank kind=switch\n", "LIST, line 1: the rank has no pci="},
        {"rank pci=1\n", "LIST, line 1: \"pci=1\" makes no sense for a rank"},
        {"rank kind=hub\n", "LIST, line 1: \"kind=hub\" makes no sense for a rank"},
        {"rank links=-1\n", "LIST, line 1: \"links=-1\" makes no sense for a rank"},
        {"rank links=4294967296\n", "LIST, line 1: \"links=4294967296\" makes no sense for a rank"},
        {"rank cluster=12\n", "LIST, line 1: \"cluster=12\" makes no sense for a rank"},
        {"rank peers=a\n", "LIST, line 1: \"peers=a\" makes no sense for a rank"},
        {"rank sm=9.0a\n", "LIST, line 1: \"sm=9.0a\" makes no sense for a rank"},
        {"# nothing\n", "the files name no rank"},
    };
    for (const auto &c : cases) {
        Outcome run = explain(c.list);
        EXPECT_EQ(1, run.status) << c.list;
        EXPECT_EQ(std::string("lamprey-topo: ") + c.error + "\n", run.output);
    }
}

} // namespace
