/* SPDX-License-Identifier: Apache-2.0 */
/* A driver that was used can't be used after a fork, and reads its settings once: so each test body
 * runs in a child of its own, with a deadline. */
#ifndef LAMPREY_TESTS_EMULATOR_CHILD_H
#define LAMPREY_TESTS_EMULATOR_CHILD_H

#include <stdio.h>

#include <functional>
#include <vector>

#include <cuda.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

namespace emulator {

inline pid_t start_child(const std::function<void()> &body, unsigned seconds = 60)
{
    fflush(stdout);
    fflush(stderr);
    pid_t child = fork();
    if (child == 0) {
        alarm(seconds);
        body();
        fflush(stdout);
        fflush(stderr);
        _exit(testing::Test::HasFailure() ? 1 : 0);
    }
    return child;
}

/* The exit status; minus the signal that ended the child. */
inline int reap(pid_t child)
{
    int status = -1;
    if (child < 0 || waitpid(child, &status, 0) != child) {
        return -1;
    }
    return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

inline int in_child(const std::function<void()> &body, unsigned seconds = 60)
{
    return reap(start_child(body, seconds));
}

/* All at once, since they wait for each other; 0 if every one of them succeeded. */
inline int in_children(int count, const std::function<void(int)> &body, unsigned seconds = 60)
{
    std::vector<pid_t> children;
    for (int i = 0; i < count; i++) {
        children.push_back(start_child([&] { body(i); }, seconds));
    }
    int worst = 0;
    for (pid_t child : children) {
        int status = reap(child);
        worst = status != 0 ? status : worst;
    }
    return worst;
}

/* Initialises the driver and makes the primary context of a device current. */
inline CUcontext use_device(int device)
{
    CUcontext context = nullptr;
    EXPECT_EQ(CUDA_SUCCESS, cuInit(0));
    EXPECT_EQ(CUDA_SUCCESS, cuDevicePrimaryCtxRetain(&context, device));
    EXPECT_EQ(CUDA_SUCCESS, cuCtxSetCurrent(context));
    return context;
}

} // namespace emulator

#define CU_OK(call) ASSERT_EQ(CUDA_SUCCESS, call)

#endif
