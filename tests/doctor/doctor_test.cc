// SPDX-License-Identifier: Apache-2.0
// What lamprey doctor says where all is well, and where each thing is not.
#include <pwd.h>

#include "tests/doctor/doctor_fixture.h"
#include "tools/doctor/gpu.h"

namespace {

TEST_F(DoctorTest, FindsNothingWrong)
{
    examine();
    expect_fine();
    expect_line("ok", "install", "Lamprey [0-9.]+ in " + prefix_);
    expect_line("ok", "driver", "CUDA 13\\.0 \\(Lamprey was built with [0-9.]+\\)");
    expect_line("ok", "gpus", "4 GPUs visible, the first .* \\(sm 9\\.0\\)");
    expect_line("ok", "kernels", "they load on all 4 GPUs");
    expect_line("ok", "nvml", "driver 1\\.2\\.3");
    expect_line("ok", "hwloc", "the topology of .*/emulator-8\\.xml is read");
    expect_line("ok", "nvlink", "all 4 GPUs reach each other \\(GPU 0: 18 links\\)");
    expect_line("ok", "p2p", "1 MiB arrives over each of 12 ways between GPUs");
    expect_line("ok", "shm", root_ + "/dev/shm has [0-9]+ MiB free");
    expect_line("ok", "nccl",
                "a program gets NCCL 2\\.28\\.9, " + libraries_ + "/libnccl\\.so\\.2");
    expect_line("ok", "switch", "lamprey run leads to " + prefix_ + "/lib/libnccl-tuner\\.so");
    expect_line("ok", "settings", "nothing asks Lamprey to stand aside");
    expect_line("note", "switch", "nothing in this environment switches Lamprey on");
    EXPECT_NE(std::string::npos, output_.find("\n0 wrong, 1 note\n"));
    EXPECT_EQ(std::string::npos, output_.find("imex"));
}

TEST_F(DoctorTest, RefusesBadArguments)
{
    for (const char *arguments : {"word", "--", "--nonsense", "word -- true"}) {
        examine(arguments);
        EXPECT_EQ(2, status_) << arguments;
        EXPECT_EQ(0u, output_.find("usage: lamprey doctor")) << output_;
    }
}

TEST_F(DoctorTest, MissesFilesOfTheInstallation)
{
    for (const char *file : {"liblamprey.so", "liblamprey-topology.so", "libnccl-env.so",
                             "lamprey/libhwloc.so.15", "../bin/lamprey-topo"}) {
        std::string path = prefix_ + "/lib/" + file;
        ASSERT_EQ(0, rename(path.c_str(), (path + ".away").c_str()));
        examine();
        expect_wrong("install", path + " is missing", "install again");
        ASSERT_EQ(0, rename((path + ".away").c_str(), path.c_str()));
    }
    std::string door = prefix_ + "/lib/libnccl-env-lamprey.so";
    unlink(door.c_str());
    examine();
    expect_wrong("install", door + " does not lead to liblamprey\\.so", "install again");
}

TEST_F(DoctorTest, NotesAnInstallationWithoutTuner)
{
    unlink((prefix_ + "/lib/libnccl-tuner.so").c_str());
    examine();
    expect_note("install",
                ".*libnccl-tuner\\.so is left out: NCCL_PLUGIN works with NCCL 2\\.28\\.7.*",
                "LD_PRELOAD");
    expect_line("ok", "switch", "lamprey run leads to " + prefix_ + "/lib/libnccl-env\\.so");
}

TEST_F(DoctorTest, KnowsALibraryThatCannotBeLoaded)
{
    write_file(prefix_ + "/lib/liblamprey.so", "no library");
    examine();
    expect_wrong("install", "liblamprey\\.so can't be loaded: .*liblamprey\\.so: .*",
                 "a build for this machine");
}

TEST_F(DoctorTest, KnowsMixedReleases)
{
    copy("tests/doctor/libfake-lamprey.so", prefix_ + "/lib/liblamprey.so");
    variables_["LAMPREY_TEST_VERSION"] = "77";
    examine();
    expect_wrong("install", ".* has version code 77, this doctor is of [0-9]+: .*",
                 "install again");
}

TEST_F(DoctorTest, MissesTheDriver)
{
    write_file(libraries_ + "/libcuda.so.1", "no library");
    examine();
    expect_wrong("driver", "no CUDA driver: .*libcuda\\.so\\.1: .*", "install NVIDIA's driver");
    expect_line("WRONG", "driver", "Lamprey stands aside: no CUDA driver .*");
    copy("tests/doctor/libfake-nccl.so", libraries_ + "/libcuda.so.1");
    examine();
    expect_wrong("driver", "no CUDA driver: libcuda\\.so\\.1 lacks cuInit", "install");
}

TEST_F(DoctorTest, OutlivesADriverThatCrashes)
{
    copy("tests/doctor/libfake-nccl.so", libraries_ + "/libcuda.so.1");
    variables_["LAMPREY_TEST_CRASH"] = "1";
    examine();
    expect_wrong("machine", "looking at it ended by signal 6", "the driver of this check");
    EXPECT_TRUE(std::regex_search(output_, std::regex("\n[0-9]+ wrong, [0-9]+ notes?\n$")))
        << output_;
}

TEST_F(DoctorTest, KnowsADriverThatDoesNotStart)
{
    variables_["LAMPREY_EMULATOR_FAIL"] = "cuInit:0:999";
    examine();
    expect_wrong("driver", "no CUDA driver: cuInit gives CUDA_ERROR_UNKNOWN", "install");
}

TEST_F(DoctorTest, KnowsAnOldDriver)
{
    variables_["LAMPREY_EMULATOR_DRIVER_VERSION"] = "12020";
    examine();
    expect_wrong("driver", "the driver knows CUDA 12\\.2, this Lamprey was built with .*",
                 "update the driver");
}

TEST_F(DoctorTest, WantsTwoGpus)
{
    variables_["LAMPREY_EMULATOR_GPUS"] = "1";
    examine();
    expect_wrong("gpus", "1 GPU visible \\(CUDA_VISIBLE_DEVICES is not set\\)", "two GPUs or more");
    variables_["LAMPREY_EMULATOR_GPUS"] = "0";
    variables_["CUDA_VISIBLE_DEVICES"] = "7";
    examine();
    expect_wrong("driver", "the driver shows no GPU: cuInit gives CUDA_ERROR_NO_DEVICE",
                 "CUDA_VISIBLE_DEVICES");
}

TEST_F(DoctorTest, KnowsGpusThatDoNotAnswer)
{
    variables_["LAMPREY_EMULATOR_FAIL"] = "cuDeviceGetName:2:999";
    examine();
    expect_wrong("gpus", "the GPUs can't be asked: cuDeviceGetName gives CUDA_ERROR_UNKNOWN",
                 "Xid");
}

TEST_F(DoctorTest, KnowsGpusWithoutKernels)
{
    variables_["LAMPREY_EMULATOR_FAIL"] = "cuLibraryLoadData:1:209";
    examine();
    expect_wrong("kernels", "GPU 0, .* \\(sm 9\\.0\\): the driver can't load the kernels",
                 "sm 8\\.0 is the oldest");
}

TEST_F(DoctorTest, MissesNvml)
{
    write_file(libraries_ + "/libnvidia-ml.so.1", "no library");
    examine();
    expect_note("nvml", "no NVML: .*libnvidia-ml\\.so\\.1: .*", "NVIDIA_DRIVER_CAPABILITIES");
    variables_.erase("LAMPREY_TOPOLOGY");
    examine();
    expect_wrong("nvml", "no NVML: .*", "NVIDIA_DRIVER_CAPABILITIES");
}

TEST_F(DoctorTest, KnowsAnNvmlThatDoesNotStart)
{
    variables_.erase("LAMPREY_TOPOLOGY");
    variables_["LAMPREY_TEST_NVML_INIT"] = "18";
    examine();
    expect_wrong("nvml", "NVML does not start \\(nvmlInit_v2 gives 18\\)", "libnvidia-ml");
}

TEST_F(DoctorTest, MissesHwloc)
{
    write_file(prefix_ + "/lib/lamprey/libhwloc.so.15", "no library");
    examine();
    expect_wrong("hwloc", "the topology library can't be loaded: .*libhwloc\\.so\\.15: .*",
                 "lib/lamprey holds");
}

TEST_F(DoctorTest, KnowsGpusThatTheTopologyLacks)
{
    variables_["LAMPREY_TOPOLOGY"] = scratch_ + "/missing.xml";
    examine();
    expect_wrong("hwloc", "GPU 0 has no place in the topology: cannot read .*missing\\.xml.*",
                 "LAMPREY_TOPOLOGY");
    /* This machine has none of the emulator's GPUs. */
    variables_.erase("LAMPREY_TOPOLOGY");
    examine();
    expect_wrong("hwloc", "GPU 0 has no place in the topology: no GPU 0000:10:00\\.0 among .*",
                 "lamprey topo");
}

TEST_F(DoctorTest, NotesUnknownLinks)
{
    variables_["LAMPREY_TOPOLOGY"] = scratch_ + "/bare.xml";
    write_file(scratch_ + "/bare.xml",
               replace(read_file("tests/fixtures/emulator-8.xml"), "NVLinkActive", "Other"));
    examine();
    EXPECT_EQ(1, status_);
    expect_line("note", "hwloc", "the NVLinks of GPU 0000:10:00\\.0 are unknown: .*");
    expect_line("WRONG", "nvlink", "no two GPUs are joined: nothing is known of the NVLinks .*");
}

TEST_F(DoctorTest, KnowsGpusWithoutLinks)
{
    change_topology("GPUMIGMode\" value=\"0", "GPUMIGMode\" value=\"1");
    examine();
    expect_wrong("nvlink", "no two GPUs are joined: rank 0's GPU is in MIG mode.*", "MIG's state");
    EXPECT_EQ(std::string::npos, output_.find(" p2p ")) << output_;
    change_topology("GPUMIGMode\" value=\"0", "GPUMIGMode\" value=\"1", false);
    examine();
    expect_note("nvlink", "3 of 6 pairs of GPUs are joined; all together: rank 0's GPU is in MIG.*",
                "lamprey topo");
    expect_line("ok", "p2p", "1 MiB arrives over each of 6 ways between GPUs");
}

TEST_F(DoctorTest, KnowsGpusThatCannotCopy)
{
    for (const char *call : {"cuMemCreate", "cuMemAddressReserve", "cuMemMap", "cuMemSetAccess"}) {
        variables_["LAMPREY_EMULATOR_FAIL"] = std::string(call) + ":1:999";
        examine();
        expect_wrong(
            "p2p", std::string("GPU 0 can't write to GPU 1: ") + call + " gives CUDA_ERROR_UNKNOWN",
            "IOMMU");
        EXPECT_EQ(std::string::npos, output_.find("ways between GPUs")) << output_;
    }
}

TEST_F(DoctorTest, LooksForImexWhereGpusAreOfACluster)
{
    const std::string channels = root_ + "/dev/nvidia-caps-imex-channels";
    change_topology("GPUFabricClusterUUID\" value=\"0", "GPUFabricClusterUUID\" value=\"c");
    examine();
    expect_note("imex", ".*/proc/devices does not list nvidia-caps-imex-channels: .*", "driver");
    ASSERT_EQ(0, shell("mkdir -p " + root_ + "/proc " + channels));
    write_file(root_ + "/proc/devices", "195 nvidia\n234 nvidia-caps-imex-channels\n");
    examine();
    expect_note("imex", "no channel in " + channels + " can be opened: .*", "channel 0");
    write_file(channels + "/channel0", "");
    examine();
    expect_note("imex", channels + "/channel0 can be opened, but the driver makes no memory .*",
                "start nvidia-imex");
    variables_["LAMPREY_EMULATOR_IMEX"] = "0";
    examine();
    expect_fine();
    expect_line("ok", "imex", "memory that other hosts can map is made and mapped");
    variables_["LAMPREY_EMULATOR_FAIL"] = "cuMemImportFromShareableHandle:0:800";
    examine();
    expect_note("imex", ".* makes no memory for other hosts \\(not permitted\\): .*",
                "nvidia-imex-ctl");
}

TEST_F(DoctorTest, MissesSharedMemory)
{
    ASSERT_EQ(0, rmdir((root_ + "/dev/shm").c_str()));
    examine();
    expect_wrong("shm", "NCCL can't write to " + root_ + "/dev/shm: No such file or directory",
                 "shm-size");
}

TEST_F(DoctorTest, JudgesTheLoadersNccl)
{
    copy("tests/doctor/libfake-nccl.so", libraries_ + "/libnccl.so.2");
    variables_["LAMPREY_TEST_VERSION"] = "22104";
    examine();
    expect_wrong("nccl", "a program gets NCCL 2\\.21\\.4, .*", "2\\.21\\.5 is the oldest");
    variables_["LAMPREY_TEST_VERSION"] = "22105";
    examine();
    expect_fine();
    expect_line("ok", "nccl", "a program gets NCCL 2\\.21\\.5, .*");
    variables_.erase("LAMPREY_TEST_VERSION");
    examine();
    expect_wrong("nccl", "a program gets an NCCL that can't be used: it does not tell its version",
                 "install NCCL");
    write_file(libraries_ + "/libnccl.so.2", "no library");
    examine();
    expect_wrong("nccl", "a program gets an NCCL that can't be used: .*libnccl\\.so\\.2: .*",
                 "install NCCL");
    copy("tests/doctor/libfake-nccl.so", libraries_ + "/libnccl.so.2");
    variables_["LAMPREY_TEST_CRASH"] = "1";
    examine();
    expect_wrong("nccl", ".*: loading libnccl\\.so\\.2 ends the program", "install NCCL");
}

TEST_F(DoctorTest, NotesAMissingNccl)
{
    unlink((libraries_ + "/libnccl.so.2").c_str());
    examine();
    if (output_.find("a program gets NCCL") != std::string::npos) {
        GTEST_SKIP() << "the loader finds an NCCL of this machine";
    }
    expect_note("nccl", "neither the loader nor python3 finds a libnccl\\.so\\.2", "hold NCCL");
}

TEST_F(DoctorTest, JudgesPythonsNccl)
{
    copy("tests/doctor/libfake-nccl.so", scratch_ + "/wheel.so");
    variables_["LAMPREY_TEST_VERSION"] = "22104";
    write_program("python3", "echo " + scratch_ + "/wheel.so");
    examine();
    expect_wrong("nccl", "python3 gets NCCL 2\\.21\\.4, " + scratch_ + "/wheel\\.so",
                 "update NCCL");
    expect_line("ok", "nccl", "any program but Python's gets NCCL 2\\.28\\.9, .*");
    write_program("python3.99", "echo " + scratch_ + "/wheel.so");
    write_program("python3", "exit 1");
    examine("-- python3.99");
    expect_line("WRONG", "nccl", "python3\\.99 gets NCCL 2\\.21\\.4, .*");
}

TEST_F(DoctorTest, FollowsEveryVariableThatSwitchesItOn)
{
    const std::string lib = prefix_ + "/lib";
    const std::map<std::string, std::string> cases[] = {
        {{"NCCL_PLUGIN", "lamprey"}},
        {{"NCCL_PLUGIN", "other, lamprey"}},
        {{"NCCL_PLUGIN", lib + "/liblamprey.so"}},
        {{"NCCL_TUNER_PLUGIN", "lamprey"}},
        {{"NCCL_TUNER_PLUGIN", "libnccl-tuner-lamprey.so"}},
        {{"NCCL_TUNER_PLUGIN", lib + "/liblamprey.so"}},
        {{"NCCL_ENV_PLUGIN", "lamprey"}},
        {{"NCCL_PROFILER_PLUGIN", "lamprey"}},
        {{"NCCL_NET_PLUGIN", "lamprey"}},
        {{"NCCL_PLUGIN", "lamprey"}, {"NCCL_TUNER_PLUGIN", "lamprey"}},
        {{"LD_PRELOAD", lib + "/liblamprey.so"}},
    };
    const auto plain = variables_;
    for (const auto &c : cases) {
        variables_ = plain;
        variables_["LD_LIBRARY_PATH"] += ":" + lib;
        variables_.insert(c.begin(), c.end());
        examine();
        expect_fine();
        expect_line("ok", "switch",
                    "NCCL_[A-Z_]*=.* \\(the environment\\) leads to " + lib +
                        "/.*|ok     switch    LD_PRELOAD=.*leads to " + lib + "/liblamprey\\.so");
        EXPECT_EQ(std::string::npos, output_.find("nothing in this environment")) << output_;
    }
}

TEST_F(DoctorTest, ReadsTheConfigurationFiles)
{
    const char *home = nullptr;
    if (const passwd *user = getpwuid(getuid())) {
        home = user->pw_dir;
    }
    ASSERT_NE(nullptr, home);
    const std::string machine = root_ + "/etc/nccl.conf";
    const std::string own = root_ + home + "/.nccl.conf";
    variables_["LD_LIBRARY_PATH"] += ":" + prefix_ + "/lib";
    write_file(machine, "# a comment\nNCCL_PLUGIN=lamprey\nNCCL_P2P_DISABLE=1\n");
    examine();
    expect_wrong("settings", "Lamprey stands aside: NCCL_P2P_DISABLE is set", "unset it");
    expect_line("ok", "switch", "NCCL_PLUGIN=lamprey \\(" + machine + "\\) leads to .*");
    ASSERT_EQ(0, shell("mkdir -p " + root_ + home));
    write_file(own, "NCCL_PLUGIN=other\nNCCL_P2P_DISABLE=0\n");
    examine();
    expect_line("note", "switch", "nothing in this environment switches Lamprey on");
    expect_fine();
    write_file(scratch_ + "/named.conf", "NCCL_TUNER_PLUGIN=lamprey\nNCCL_P2P_DISABLE=0\n");
    variables_["NCCL_CONF_FILE"] = scratch_ + "/named.conf";
    examine();
    expect_fine();
    expect_line("ok", "switch", "NCCL_TUNER_PLUGIN=lamprey \\(" + scratch_ + "/named\\.conf\\) .*");
}

TEST_F(DoctorTest, MissesTheFolderOnTheLoadersPath)
{
    variables_["NCCL_PLUGIN"] = "lamprey";
    examine();
    expect_wrong("switch",
                 "NCCL_PLUGIN=lamprey \\(the environment\\): libnccl-tuner\\.so is not found .*; "
                 "libnccl-env\\.so is not found .*",
                 "LD_LIBRARY_PATH, as lamprey env does");
    variables_.erase("NCCL_PLUGIN");
    variables_["NCCL_TUNER_PLUGIN"] = "lamprey";
    examine();
    expect_wrong("switch",
                 "NCCL_TUNER_PLUGIN=lamprey \\(the environment\\): libnccl-tuner-lamprey.*",
                 "LD_LIBRARY_PATH, or give the file's full path");
}

TEST_F(DoctorTest, KnowsAnotherTunerThatComesFirst)
{
    copy("tests/doctor/libfake-nccl.so", libraries_ + "/libnccl-tuner.so");
    variables_["LD_LIBRARY_PATH"] += ":" + prefix_ + "/lib";
    variables_["NCCL_PLUGIN"] = "lamprey";
    examine();
    expect_fine();
    expect_line("ok", "switch", "NCCL_PLUGIN=lamprey .* leads to .*/libnccl-env\\.so");
    copy("tests/doctor/libfake-nccl.so", libraries_ + "/libnccl.so.2");
    variables_["LAMPREY_TEST_VERSION"] = "22806";
    examine();
    expect_wrong(
        "switch",
        ".*another libnccl-tuner\\.so is found first: " + libraries_ +
            "/libnccl-tuner\\.so; .*libnccl-env\\.so, which NCCL 2\\.28\\.7 and newer opens",
        "LAMPREY_TUNER_PLUGIN");
}

TEST_F(DoctorTest, KnowsPluginsThatTakeItsPlaces)
{
    variables_["LD_LIBRARY_PATH"] += ":" + prefix_ + "/lib";
    variables_["NCCL_PLUGIN"] = "lamprey";
    variables_["NCCL_TUNER_PLUGIN"] = "mine";
    examine();
    expect_fine();
    variables_["NCCL_ENV_PLUGIN"] = "mine";
    examine();
    expect_wrong("switch",
                 "NCCL_PLUGIN=lamprey .*: NCCL_TUNER_PLUGIN=mine \\(the environment\\) takes the "
                 "place of libnccl-tuner\\.so; NCCL_ENV_PLUGIN=mine .*",
                 "LAMPREY_TUNER_PLUGIN");
}

TEST_F(DoctorTest, KnowsWhatAnNcclIsTooOldFor)
{
    copy("tests/doctor/libfake-nccl.so", libraries_ + "/libnccl.so.2");
    variables_["LD_LIBRARY_PATH"] += ":" + prefix_ + "/lib";
    variables_["LAMPREY_TEST_VERSION"] = "22507";
    variables_["NCCL_ENV_PLUGIN"] = "lamprey";
    examine();
    expect_wrong("switch", "NCCL_ENV_PLUGIN=lamprey .* needs NCCL 2\\.28\\.7 or newer",
                 "NCCL_PLUGIN");
    variables_.erase("NCCL_ENV_PLUGIN");
    variables_["LAMPREY_TEST_VERSION"] = "22703";
    variables_["NCCL_TUNER_PLUGIN"] = prefix_ + "/lib/liblamprey.so";
    examine();
    expect_wrong("switch", "NCCL_TUNER_PLUGIN=.*: NCCL 2\\.27\\.3 spoils paths",
                 "the name lamprey");
}

TEST_F(DoctorTest, NotesAnotherLamprey)
{
    variables_["LD_LIBRARY_PATH"] += ":" + shared_ + "/prefix/lib:" + prefix_ + "/lib";
    variables_["NCCL_PLUGIN"] = "lamprey";
    examine();
    expect_note("switch", "another installation of Lamprey comes first: " + shared_ + "/prefix/.*",
                "one Lamprey");
}

TEST_F(DoctorTest, JudgesSettings)
{
    const auto plain = variables_;
    const struct {
        const char *name;
        const char *value;
        const char *reason;
    } cases[] = {
        {"LAMPREY_DISABLE", "1", "LAMPREY_DISABLE is set"},
        {"NCCL_P2P_DISABLE", "1", "NCCL_P2P_DISABLE is set"},
        {"NCCL_P2P_LEVEL", "LOC", "NCCL_P2P_LEVEL=LOC"},
        {"NCCL_CHECK_POINTERS", "1", "NCCL_CHECK_POINTERS is set"},
        {"NCCL_LAUNCH_ORDER_IMPLICIT", "1", "NCCL_LAUNCH_ORDER_IMPLICIT is set"},
        {"NCCL_COMM_BLOCKING", "0", "this process makes non-blocking communicators"},
    };
    for (const auto &c : cases) {
        variables_ = plain;
        variables_[c.name] = c.value;
        examine();
        expect_wrong("settings", std::string("Lamprey stands aside: ") + c.reason, "unset it");
    }
    variables_ = plain;
    variables_["LAMPREY_MAX_BYTES"] = "much";
    variables_["LAMPREY_NONSENSE"] = "1";
    examine();
    expect_note("settings", "2 of Lamprey's settings make no sense \\(named above\\): not used",
                "lamprey settings");
    EXPECT_NE(std::string::npos, output_.find("LAMPREY_MAX_BYTES=much makes no sense")) << output_;
}

CUresult lose(CUdeviceptr, CUdeviceptr, size_t)
{
    return CUDA_SUCCESS;
}

TEST(DoctorGpuTest, NoticesWhatDoesNotArrive)
{
    doctor_driver driver;
    doctor_gpu gpus[DOCTOR_MAX_GPUS];
    size_t count = 0;
    char reason[256] = "";
    ASSERT_TRUE(doctor_driver_load(&driver, reason, sizeof(reason))) << reason;
    ASSERT_TRUE(doctor_gpus_list(&driver, gpus, &count, reason, sizeof(reason))) << reason;
    ASSERT_EQ(2u, count);
    EXPECT_TRUE(doctor_copy(&driver, gpus[0].device, gpus[1].device, reason, sizeof(reason)))
        << reason;
    driver.MemcpyDtoD = lose;
    EXPECT_FALSE(doctor_copy(&driver, gpus[0].device, gpus[1].device, reason, sizeof(reason)));
    EXPECT_STREQ("of 1 MiB, byte 0 and what follows did not arrive", reason);
}

} // namespace
