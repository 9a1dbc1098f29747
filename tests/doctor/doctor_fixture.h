/* SPDX-License-Identifier: Apache-2.0 */
/* lamprey doctor as a user runs it, from an installation of its own in surroundings of its own. */
#ifndef LAMPREY_TESTS_DOCTOR_DOCTOR_FIXTURE_H
#define LAMPREY_TESTS_DOCTOR_DOCTOR_FIXTURE_H

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <map>
#include <regex>
#include <string>

inline int shell(const std::string &command)
{
    return system(command.c_str());
}

inline std::string read_file(const std::string &path)
{
    std::ifstream in(path, std::ios::binary);
    EXPECT_TRUE(in.good()) << path;
    return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
}

inline void write_file(const std::string &path, const std::string &text)
{
    unlink(path.c_str());
    std::ofstream(path, std::ios::binary) << text;
}

inline std::string replace(const std::string &text, const std::string &what,
                           const std::string &with)
{
    return std::regex_replace(text, std::regex(what), with);
}

class DoctorTest : public testing::Test {
  protected:
    static void SetUpTestSuite()
    {
        shared_ = testing::TempDir() + "doctor";
        ASSERT_EQ(0, shell("rm -rf " + shared_ + " && mkdir -p " + shared_));
        ASSERT_EQ(0, shell("tools/install --from . " + shared_ + "/prefix"));
    }

    void SetUp() override
    {
        here_ = getenv("PWD");
        scratch_ = shared_ + "/" + testing::UnitTest::GetInstance()->current_test_info()->name();
        prefix_ = scratch_ + "/prefix";
        root_ = scratch_ + "/root";
        libraries_ = scratch_ + "/libraries";
        ASSERT_EQ(0, shell("mkdir -p " + root_ + "/dev/shm " + root_ + "/etc " + libraries_ + " " +
                           scratch_ + "/bin && cp -a " + shared_ + "/prefix " + prefix_));
        /* Found before the machine's. */
        for (const char *name : {"libcuda.so.1", "libnccl.so.2"}) {
            copy(std::string("tests/emulator/") + name, libraries_ + "/" + name);
        }
        copy("tests/libfake_nvml.so", libraries_ + "/libnvidia-ml.so.1");
        write_program("python3", "exit 1");
        variables_["PATH"] = scratch_ + "/bin:/usr/bin:/bin";
        variables_["LD_LIBRARY_PATH"] = libraries_;
        variables_["LAMPREY_TEST_ROOT"] = root_;
        variables_["LAMPREY_TOPOLOGY"] = here_ + "/tests/fixtures/emulator-8.xml";
        variables_["LAMPREY_EMULATOR_GPUS"] = "4";
    }

    void TearDown() override
    {
        shell("rm -rf " + scratch_);
    }

    static void copy(const std::string &from, const std::string &to)
    {
        ASSERT_EQ(0, shell("cp -Lf " + from + " " + to + " && chmod u+w " + to)) << from;
    }

    void write_program(const std::string &name, const std::string &script)
    {
        std::string path = scratch_ + "/bin/" + name;
        write_file(path, "#!/bin/sh\n" + script + "\n");
        chmod(path.c_str(), 0755);
    }

    /* The topology of the emulator with a change, for all of its GPUs or the first. */
    void change_topology(const std::string &what, const std::string &with, bool everywhere = true)
    {
        std::string xml = read_file("tests/fixtures/emulator-8.xml");
        auto flags = everywhere ? std::regex_constants::format_default
                                : std::regex_constants::format_first_only;
        std::string changed = std::regex_replace(xml, std::regex(what), with, flags);
        ASSERT_NE(xml, changed);
        write_file(scratch_ + "/topology.xml", changed);
        variables_["LAMPREY_TOPOLOGY"] = scratch_ + "/topology.xml";
    }

    /* What the doctor prints, and its exit status. */
    void examine(const std::string &arguments = "")
    {
        std::string command = "env -i";
        for (const auto &variable : variables_) {
            command += " '" + variable.first + "=" + variable.second + "'";
        }
        command += " " + prefix_ + "/bin/lamprey doctor " + arguments + " 2>&1";
        FILE *pipe = popen(command.c_str(), "r");
        ASSERT_NE(nullptr, pipe);
        output_.clear();
        char buffer[4096];
        for (size_t n; (n = fread(buffer, 1, sizeof(buffer), pipe)) > 0;) {
            output_.append(buffer, n);
        }
        int status = pclose(pipe);
        status_ = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
    }

    /* pattern: a whole line, as a regular expression. */
    void expect_line(const std::string &grade, const std::string &check, const std::string &pattern)
    {
        std::string line = grade + std::string(7 - grade.size(), ' ') + check +
                           std::string(10 - check.size(), ' ') + pattern;
        EXPECT_TRUE(std::regex_search("\n" + output_, std::regex("\n" + line + "\n")))
            << line << "\n"
            << output_;
    }

    void expect_remedy(const std::string &pattern)
    {
        EXPECT_TRUE(std::regex_search(output_, std::regex("\n {17}-> .*" + pattern))) << output_;
    }

    void expect_fine()
    {
        EXPECT_EQ(0, status_) << output_;
        EXPECT_EQ(std::string::npos, output_.find("WRONG")) << output_;
    }

    void expect_wrong(const std::string &check, const std::string &pattern,
                      const std::string &remedy)
    {
        EXPECT_EQ(1, status_) << output_;
        expect_line("WRONG", check, pattern);
        expect_remedy(remedy);
    }

    void expect_note(const std::string &check, const std::string &pattern,
                     const std::string &remedy)
    {
        EXPECT_EQ(0, status_) << output_;
        expect_line("note", check, pattern);
        expect_remedy(remedy);
    }

    inline static std::string shared_;
    std::string here_;
    std::string scratch_;
    std::string prefix_;
    std::string root_;
    std::string libraries_;
    std::map<std::string, std::string> variables_;
    std::string output_;
    int status_ = -1;
};

#endif
