// SPDX-License-Identifier: Apache-2.0
#include "tests/doors/process.h"

#include <poll.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <sstream>
#include <stdexcept>

#include <gtest/gtest.h>
#include <nccl.h>

const std::string kLibrary = "plugin/liblamprey.so";
const std::string kFake = "tests/doors/libnccl.so.2";
const std::string kUser = "tests/doors/libuser.so";

std::string absolute(const std::string &path)
{
    char *resolved = realpath(path.c_str(), nullptr);
    std::string result = resolved != nullptr ? resolved : "";
    free(resolved);
    return result;
}

std::string read_file(const std::string &path)
{
    std::ifstream file(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
}

std::string Outcome::value(const std::string &name) const
{
    auto found = values.find(name);
    return found != values.end() ? found->second : "(none)";
}

std::vector<std::string> Outcome::all(const std::string &name) const
{
    std::vector<std::string> found;
    for (auto [first, last] = values.equal_range(name); first != last; ++first) {
        found.push_back(first->second);
    }
    return found;
}

std::ostream &operator<<(std::ostream &stream, const Outcome &outcome)
{
    stream << "status " << outcome.status << "\n";
    for (const auto &[name, value] : outcome.values) {
        stream << name << "=" << value << "\n";
    }
    return stream << outcome.log;
}

Outcome run(const std::vector<std::string> &arguments, const Environment &environment)
{
    constexpr auto kDeadline = std::chrono::seconds(60);
    std::vector<std::string> strings = {absolute("tests/doors/caller")};
    strings.insert(strings.end(), arguments.begin(), arguments.end());
    std::vector<char *> argv;
    for (std::string &string : strings) {
        argv.push_back(&string[0]);
    }
    argv.push_back(nullptr);
    std::vector<std::string> settings;
    for (const auto &[name, value] : environment) {
        settings.push_back(name + "=" + value);
    }
    std::vector<char *> envp;
    for (std::string &setting : settings) {
        envp.push_back(&setting[0]);
    }
    envp.push_back(nullptr);

    int pipes[2][2];
    if (pipe(pipes[0]) != 0 || pipe(pipes[1]) != 0) {
        ADD_FAILURE() << "pipe: " << strerror(errno);
        return {};
    }
    pid_t child = fork();
    if (child == 0) {
        dup2(pipes[0][1], STDOUT_FILENO);
        dup2(pipes[1][1], STDERR_FILENO);
        execve(argv[0], argv.data(), envp.data());
        _exit(127);
    }
    std::string texts[2];
    pollfd polls[2];
    for (int i = 0; i < 2; i++) {
        close(pipes[i][1]);
        polls[i] = {pipes[i][0], POLLIN, 0};
    }
    auto end = std::chrono::steady_clock::now() + kDeadline;
    bool late = false;
    while ((polls[0].fd >= 0 || polls[1].fd >= 0) && !late) {
        late = std::chrono::steady_clock::now() >= end;
        if (poll(polls, 2, 200) <= 0) {
            continue;
        }
        for (int i = 0; i < 2; i++) {
            char buffer[4096];
            ssize_t got = polls[i].revents != 0 ? read(polls[i].fd, buffer, sizeof(buffer)) : -1;
            if (got > 0) {
                texts[i].append(buffer, static_cast<size_t>(got));
            } else if (polls[i].revents != 0) {
                polls[i].fd = -1;
            }
        }
    }
    if (late) {
        kill(child, SIGKILL);
    }
    int status = 0;
    waitpid(child, &status, 0);
    close(pipes[0][0]);
    close(pipes[1][0]);

    Outcome outcome;
    outcome.status = WIFEXITED(status) && !late ? WEXITSTATUS(status) : -1;
    outcome.log = texts[1];
    std::istringstream lines(texts[0]);
    for (std::string line; std::getline(lines, line);) {
        size_t equals = line.find('=');
        outcome.values.emplace(line.substr(0, equals),
                               equals != std::string::npos ? line.substr(equals + 1) : "");
    }
    return outcome;
}

void expect_redirected(const Outcome &outcome)
{
    EXPECT_EQ(outcome.status, 0) << outcome;
    EXPECT_EQ(outcome.value("redirected"), "all") << outcome;
    EXPECT_EQ(outcome.value("copies"), "1") << outcome;
    EXPECT_EQ(outcome.value("stats_of_nothing"), std::to_string(ncclInvalidArgument)) << outcome;
}

void expect_nothing(const Outcome &outcome)
{
    EXPECT_EQ(outcome.status, 0) << outcome;
    EXPECT_EQ(outcome.value("redirected"), "none") << outcome;
    EXPECT_EQ(outcome.value("copies"), "0") << outcome;
    EXPECT_EQ(outcome.log, "");
}

Installed::Installed()
{
    char pattern[] = "/tmp/lamprey-doors-XXXXXX";
    const char *made = mkdtemp(pattern);
    if (made == nullptr) {
        throw std::runtime_error(std::string(pattern) + ": " + strerror(errno));
    }
    path_ = made;
    copy(kLibrary, "liblamprey.so");
    for (const char *kind : {"tuner", "env", "profiler", "net"}) {
        std::string name = path_ + "/libnccl-" + kind + "-lamprey.so";
        EXPECT_EQ(symlink("liblamprey.so", name.c_str()), 0);
        names_.push_back(name);
    }
}

Installed::~Installed()
{
    for (const std::string &name : names_) {
        unlink(name.c_str());
    }
    rmdir(path_.c_str());
}

std::string Installed::copy(const std::string &from, const std::string &name)
{
    return write(name, read_file(from));
}

std::string Installed::write(const std::string &name, const std::string &content)
{
    std::string to = path_ + "/" + name;
    std::ofstream(to, std::ios::binary) << content;
    names_.push_back(to);
    return to;
}

void Installed::remove(const std::string &name)
{
    unlink((path_ + "/" + name).c_str());
}

void Installed::add_default_doors()
{
    copy("plugin/libnccl-env.so", "libnccl-env.so");
    copy("plugin/libnccl-tuner.so", "libnccl-tuner.so");
}

const std::string &Installed::path() const
{
    return path_;
}

std::string Installed::library() const
{
    return path_ + "/liblamprey.so";
}
