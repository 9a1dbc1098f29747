/* SPDX-License-Identifier: Apache-2.0 */
/* How the emulated NCCL finds, orders and drops plugins, told by a plugin that writes a log. */
#include <stdlib.h>
#include <string.h>

#include <fstream>
#include <string>

#include <nccl.h>

#include "tests/emulator/child.h"

#define NC_OK(call) ASSERT_EQ(ncclSuccess, call) << ncclGetLastError(nullptr)

namespace {

using emulator::in_child;
using emulator::use_device;

std::string temporary(const std::string &name)
{
    return testing::TempDir() + "/" + name + "." + std::to_string(getpid());
}

std::string read_file(const std::string &path)
{
    std::ifstream file(path);
    return std::string(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
}

ncclComm_t make_comm(const char *name = nullptr)
{
    ncclUniqueId id;
    ncclComm_t comm = nullptr;
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.commName = name;
    EXPECT_EQ(ncclSuccess, ncclGetUniqueId(&id));
    EXPECT_EQ(ncclSuccess, ncclCommInitRankConfig(&comm, 1, id, 0, &config));
    return comm;
}

/* The log of a process that runs body with PLUGIN_DIR on its search path. */
std::string log_of(const std::function<void()> &body)
{
    std::string path = temporary("probe");
    unlink(path.c_str());
    EXPECT_EQ(0, in_child([&] {
                  setenv("PROBE_LOG", path.c_str(), 1);
                  setenv("HOME", "/nonexistent", 1);
                  body();
                  fflush(stdout);
                  if (!testing::Test::HasFailure()) {
                      exit(0); /* runs what the emulator registered with atexit */
                  }
              }));
    std::string text = read_file(path);
    unlink(path.c_str());
    return text;
}

TEST(EmulatedPlugins, AllKindsLoadInNcclsOrder)
{
    EXPECT_EQ("open all\n"
              "env init 2.28.9\n"
              "net init traffic class -1 logger 1 profiler 1\n"
              "profiler init name training nodes 1 rank 0/1\n"
              "tuner init v5 comm known ranks 1 nodes 1 domains 1\n"
              "tuner finalize v5\n"
              "profiler finalize context\n"
              "env finalize\n"
              "close all\n",
              log_of([] {
                  for (const char *variable : {"NCCL_ENV_PLUGIN", "NCCL_TUNER_PLUGIN",
                                               "NCCL_PROFILER_PLUGIN", "NCCL_NET_PLUGIN"}) {
                      setenv(variable, "libprobe-all.so", 1);
                  }
                  use_device(0);
                  NC_OK(ncclCommDestroy(make_comm("training")));
              }));
}

TEST(EmulatedPlugins, ABareNameIsMangledPerKind)
{
    EXPECT_EQ("open tuner4\ntuner init v4 ranks 1 nodes 1\ntuner finalize v4\nclose tuner4\n",
              log_of([] {
                  setenv("NCCL_TUNER_PLUGIN", "probe", 1);
                  use_device(0);
                  NC_OK(ncclCommDestroy(make_comm()));
              }));
}

TEST(EmulatedPlugins, ATunerIsClosedOnlyIfOneCommunicatorUsedIt)
{
    EXPECT_EQ("open tuner4\n"
              "tuner init v4 ranks 1 nodes 1\n"
              "tuner init v4 ranks 1 nodes 1\n"
              "tuner finalize v4\n"
              "tuner finalize v4\n"
              "the end\n"
              "close tuner4\n",
              log_of([] {
                  setenv("NCCL_TUNER_PLUGIN", "probe", 1);
                  use_device(0);
                  ncclComm_t first = make_comm();
                  ncclComm_t second = make_comm();
                  NC_OK(ncclCommDestroy(first));
                  NC_OK(ncclCommDestroy(second));
                  std::ofstream(getenv("PROBE_LOG"), std::ios::app) << "the end\n";
              }));
}

TEST(EmulatedPlugins, NoneAndMissingFilesAreNoError)
{
    EXPECT_EQ("", log_of([] {
                  setenv("NCCL_TUNER_PLUGIN", "none", 1);
                  setenv("NCCL_NET_PLUGIN", "nowhere,none,libprobe-tuner.so.missing", 1);
                  setenv("NCCL_PROFILER_PLUGIN", "/nonexistent/libprofiler.so", 1);
                  use_device(0);
                  NC_OK(ncclCommDestroy(make_comm()));
              }));
}

TEST(EmulatedPlugins, AConfFileSetsVariablesUnlessTheEnvironmentDoes)
{
    std::string conf = temporary("conf");
    std::ofstream(conf) << "# a comment=1\nNCCL_TUNER_PLUGIN=probe\nPROBE_OTHER=conf\n";
    EXPECT_EQ("open tuner4\ntuner init v4 ranks 1 nodes 1\ntuner finalize v4\nclose tuner4\n",
              log_of([&] {
                  setenv("NCCL_CONF_FILE", conf.c_str(), 1);
                  setenv("PROBE_OTHER", "environment", 1);
                  use_device(0);
                  NC_OK(ncclCommDestroy(make_comm()));
                  EXPECT_STREQ("environment", getenv("PROBE_OTHER"));
              }));
    unlink(conf.c_str());
}

TEST(EmulatedPlugins, TheEnvPluginIsWhereVariablesComeFrom)
{
    std::string log = log_of([] {
        setenv("NCCL_ENV_PLUGIN", "libprobe-all.so", 1);
        setenv("PROBE_TUNER", "probe", 1);
        use_device(0);
        NC_OK(ncclCommDestroy(make_comm()));
    });
    EXPECT_NE(std::string::npos, log.find("tuner init v4")) << log;
    EXPECT_EQ(std::string::npos, log.find("tuner init v5")) << log;
}

TEST(EmulatedPlugins, TheTunerIsAskedForCollectivesOfSeveralRanks)
{
    std::string log = log_of([] {
        setenv("NCCL_TUNER_PLUGIN", "libprobe-all.so", 1);
        ncclComm_t comms[2];
        float *data[2];
        NC_OK(ncclCommInitAll(comms, 2, nullptr));
        NC_OK(ncclGroupStart());
        for (int i = 0; i < 2; i++) {
            use_device(i);
            CUdeviceptr pointer = 0;
            CU_OK(cuMemAlloc(&pointer, 400));
            data[i] = reinterpret_cast<float *>(pointer);
            NC_OK(ncclAllReduce(data[i], data[i], 100, ncclFloat32, ncclSum, comms[i], nullptr));
        }
        NC_OK(ncclGroupEnd());
        for (ncclComm_t comm : comms) {
            NC_OK(ncclCommDestroy(comm));
        }
    });
    EXPECT_NE(std::string::npos,
              log.find("tuner choose v5 function 4 bytes 400 table 7x3 registered 0"))
        << log;
}

TEST(EmulatedPlugins, TheLoggerObeysNcclDebug)
{
    for (const char *level : {"INFO", "WARN"}) {
        std::string file = temporary("debug");
        log_of([&] {
            setenv("NCCL_TUNER_PLUGIN", "libprobe-all.so", 1);
            setenv("NCCL_DEBUG", level, 1);
            setenv("NCCL_DEBUG_FILE", file.c_str(), 1);
            use_device(0);
            NC_OK(ncclCommDestroy(make_comm()));
        });
        bool found = read_file(file).find("NCCL INFO probe says hello") != std::string::npos;
        EXPECT_EQ(strcmp(level, "INFO") == 0, found) << level;
        unlink(file.c_str());
    }
}

} // namespace
