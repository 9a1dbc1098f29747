// SPDX-License-Identifier: Apache-2.0
// lamprey doctor -- PROGRAM: what became of its calls.
#include "tests/doctor/doctor_fixture.h"

namespace {

TEST_F(DoctorTest, RunsAProgramAndCounts)
{
    const std::string demo =
        "-- " + here_ + "/tests/programs/all_reduce_demo --no-times --exact --max-bytes=4096";
    examine(demo);
    expect_fine();
    expect_line("ok", "run",
                "[1-9][0-9]* all-reduces served in 4 processes, [1-9][0-9]* of them captured");
    expect_line("ok", "run",
                "Lamprey came in through the NCCL_PLUGIN door, on NCCL 2\\.28\\.9 at " +
                    libraries_ + "/libnccl\\.so\\.2 .*");
    EXPECT_NE(std::string::npos, output_.find("result\t")) << output_;
    EXPECT_EQ(std::string::npos, output_.find("lamprey stats")) << output_;
    EXPECT_EQ(std::string::npos, output_.find("INFO")) << output_;
    EXPECT_EQ(std::string::npos, output_.find("nothing in this environment")) << output_;

    variables_["LAMPREY_MAX_BYTES"] = "1K";
    examine(demo);
    expect_fine();
    expect_line("ok", "run",
                "[1-9][0-9]* left to NCCL: larger than the limit \\(LAMPREY_MAX_BYTES\\)");

    variables_["NCCL_P2P_LEVEL"] = "LOC";
    examine(demo);
    expect_wrong("run", "0 all-reduces served in 4 processes, 0 of them captured", "why");
    expect_line("ok", "run", "[1-9][0-9]* left to NCCL: on communicators that aren't served");
    expect_line("note", "run", "a communicator is left to NCCL: rank 0: NCCL_P2P_LEVEL=LOC");
}

TEST_F(DoctorTest, RunsAProgramByTheDoorThatIsOpen)
{
    const std::string demo =
        "-- " + here_ + "/tests/programs/all_reduce_demo --no-times --max-bytes=4096";
    variables_["NCCL_TUNER_PLUGIN"] = prefix_ + "/lib/liblamprey.so";
    examine(demo);
    expect_fine();
    expect_line("ok", "switch", "NCCL_TUNER_PLUGIN=.* leads to .*");
    /* Here NCCL lends its log: reasons are read from there. */
    variables_["NCCL_CHECK_POINTERS"] = "1";
    examine(demo);
    expect_line("note", "run",
                "a communicator is left to NCCL: rank 0: NCCL_CHECK_POINTERS is set");
    /* A log of the user's own is left alone, and stays where it goes. */
    variables_["NCCL_DEBUG"] = "INFO";
    variables_["NCCL_DEBUG_FILE"] = scratch_ + "/log.%p";
    examine(demo);
    EXPECT_EQ(0, shell("grep -q 'is left to NCCL' " + scratch_ + "/log.*"));
}

TEST_F(DoctorTest, JudgesHowAProgramEnds)
{
    examine("-- true");
    expect_wrong("run", "no process of the program loaded Lamprey.*", "does it use NCCL");
    examine("-- sh -c 'echo to the user >&2; exit 7'");
    expect_wrong("run", "sh ended with status 7", "without Lamprey");
    EXPECT_NE(std::string::npos, output_.find("\nto the user\n")) << output_;
    examine("-- sh -c 'kill -9 $$'");
    expect_wrong("run", "sh ended by signal 9", "without Lamprey");
    examine("-- /nonexistent/program");
    expect_wrong("run", "/nonexistent/program ended with status 127", "without Lamprey");
    examine("-- sh -c 'echo lamprey stats: pid=1 served=3 served_captured=1 fallback_type=2 "
            "failed=4 >&2'");
    expect_wrong("run", "4 calls failed after they had started", "report");
    expect_line("ok", "run", "3 all-reduces served in 1 process, 1 of them captured");
    expect_line("ok", "run", "2 left to NCCL: of data types that aren't served");
}

/* What a program leaves behind doesn't keep the doctor waiting. */
TEST_F(DoctorTest, WaitsForNoDaemon)
{
    examine("-- sh -c 'sleep 30 >/dev/null & echo lamprey stats: pid=1 served=1 >&2'");
    expect_fine();
    expect_line("ok", "run", "1 all-reduce served in 1 process, 0 of them captured");
}

} // namespace
