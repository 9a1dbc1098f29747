// SPDX-License-Identifier: Apache-2.0
// lamprey-topo as a user runs it.
#include <gtest/gtest.h>
#include <sys/wait.h>

#include <cstdio>
#include <string>

namespace {

struct Outcome {
    int status;
    std::string output;
};

/* With both streams unless told otherwise. */
Outcome topo(const std::string &arguments, const std::string &errors = "2>&1") {
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

void expect_line(const Outcome &run, const std::string &line) {
    EXPECT_NE(std::string::npos, ("\n" + run.output).find("\n" + line + "\n")) << run.output;
}

TEST(TopoTest, PrintsAMachine) {
    Outcome run = topo("--xml tests/fixtures/gb200-tray-a.xml");
    EXPECT_EQ(0, run.status);
    expect_line(run, "NVLink information: nvml 580.159.04");
    expect_line(run, "2    0018:01:00.0   NVIDIA GB200             10.0  1     off  "
                     "18 x 53125, switch   c56b1f5e.. clique 4026, health 0xaa");
    expect_line(run, "1      956250s         -   956250s   956250s");
    expect_line(run, "One rank on each of the 4 GPUs: NVLink domain: host");
}

TEST(TopoTest, PrintsDirectLinksAndTheReason) {
    Outcome run = topo("--xml tests/fixtures/h100-nvl-bridge-4.xml");
    EXPECT_EQ(0, run.status);
    expect_line(run, "0    0000:17:00.0   NVIDIA H100 NVL          9.0   0     off  "
                     "12 x 26562, 1 peers  -");
    expect_line(run, "0            -   318744d        no        no");
    expect_line(run, "One rank on each of the 4 GPUs: NVLink domain: none: no NVLink between rank "
                     "0's GPU 0000:17:00.0 and rank 2's GPU 0000:99:00.0");
}

TEST(TopoTest, PrintsWhatIsUnknown) {
    Outcome run = topo("--xml tests/fixtures/not-annotated-8.xml");
    EXPECT_EQ(0, run.status);
    expect_line(run, "NVLink information: none: the topology carries no annotation");
    run = topo("--xml tests/fixtures/no-gpu.xml");
    EXPECT_EQ(0, run.status);
    expect_line(run, "No NVIDIA GPU.");
}

TEST(TopoTest, PrintsAndExportsThisMachine) {
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

TEST(TopoTest, RefusesBadInput) {
    EXPECT_EQ(2, topo("--nonsense").status);
    EXPECT_EQ(2, topo("word").status);
    EXPECT_EQ(2, topo("--xml a --export b").status);
    EXPECT_EQ(2, topo("--xml").status);
    EXPECT_EQ(0, topo("--help").status);
    Outcome run = topo("--xml tests/fixtures/malformed-uuid.xml");
    EXPECT_EQ(1, run.status);
    EXPECT_EQ("lamprey-topo: GPU 0000:07:00.0: GPUFabricClusterUUID makes no sense "
              "(\"0000000000000000000000000000000x\")\n",
              run.output);
    run = topo("--export /nonexistent/file.xml");
    EXPECT_EQ(1, run.status);
    EXPECT_NE(std::string::npos, run.output.find("cannot write /nonexistent/file.xml"));
}

} // namespace
