// SPDX-License-Identifier: Apache-2.0
#include "plugin/mailbox.h"

#include <dirent.h>
#include <fcntl.h>
#include <gtest/gtest.h>
#include <stddef.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <string>
#include <thread>

namespace {

int open_descriptors()
{
    int count = 0;
    DIR *directory = opendir("/proc/self/fd");
    while (readdir(directory)) {
        count++;
    }
    closedir(directory);
    return count;
}

class Mailbox : public ::testing::Test {
  protected:
    void SetUp() override
    {
        before_ = open_descriptors();
        ASSERT_EQ(lamprey_mailbox_open(&mailbox_, 8), LAMPREY_OK);
    }

    void TearDown() override
    {
        lamprey_mailbox_close(&mailbox_);
        lamprey_mailbox_close(&mailbox_);
        EXPECT_EQ(open_descriptors(), before_) << "descriptors leak";
    }

    // A raw connection to the mailbox, as a stranger would make it.
    int connect_raw()
    {
        sockaddr_un address = {};
        address.sun_family = AF_UNIX;
        std::string name = "lamprey-";
        for (uint8_t byte : mailbox_.token) {
            char hex[3];
            snprintf(hex, sizeof hex, "%02x", byte);
            name += hex;
        }
        memcpy(address.sun_path + 1, name.data(), name.size());
        int channel = socket(AF_UNIX, SOCK_SEQPACKET, 0);
        EXPECT_EQ(connect(channel, (sockaddr *)&address,
                          (socklen_t)(offsetof(sockaddr_un, sun_path) + 1 + name.size())),
                  0);
        return channel;
    }

    lamprey_mailbox mailbox_;
    std::atomic_bool aborted_{false};
    int before_ = 0;
};

TEST_F(Mailbox, PassesADescriptorToAnotherProcess)
{
    pid_t child = fork();
    if (child == 0) {
        int memory = memfd_create("test", 0);
        _exit(ftruncate(memory, 12345) != 0 ||
              lamprey_mailbox_send(mailbox_.token, 3, memory) != LAMPREY_OK);
    }
    uint32_t rank = 0;
    int descriptor = -1;
    ASSERT_EQ(lamprey_mailbox_receive(&mailbox_, 5000, &aborted_, &rank, &descriptor), LAMPREY_OK);
    EXPECT_EQ(rank, 3u);
    EXPECT_EQ(lseek(descriptor, 0, SEEK_END), 12345);
    EXPECT_EQ(fcntl(descriptor, F_GETFD), FD_CLOEXEC);
    close(descriptor);
    int status = 0;
    waitpid(child, &status, 0);
    EXPECT_EQ(status, 0);
}

TEST_F(Mailbox, HoldsAWholeCommunicatorBeforeAnybodyReads)
{
    for (uint32_t i = 0; i < 8; i++) {
        ASSERT_EQ(lamprey_mailbox_send(mailbox_.token, i, 0), LAMPREY_OK);
    }
    uint32_t seen = 0;
    for (int i = 0; i < 8; i++) {
        uint32_t rank = 0;
        int descriptor = -1;
        ASSERT_EQ(lamprey_mailbox_receive(&mailbox_, 1000, &aborted_, &rank, &descriptor),
                  LAMPREY_OK);
        close(descriptor);
        seen |= 1u << rank;
    }
    EXPECT_EQ(seen, 0xffu);
}

TEST_F(Mailbox, DropsMalformedMessages)
{
    int empty = connect_raw();
    close(empty);
    int wrong = connect_raw();
    ASSERT_EQ(send(wrong, "hello", 5, 0), 5);
    const uint32_t whole[] = {0x4c4d5059, 4}; // but without a descriptor
    int bare = connect_raw();
    ASSERT_EQ(send(bare, whole, sizeof whole, 0), (ssize_t)sizeof whole);
    ASSERT_EQ(lamprey_mailbox_send(mailbox_.token, 5, 0), LAMPREY_OK);
    uint32_t rank = 0;
    int descriptor = -1;
    ASSERT_EQ(lamprey_mailbox_receive(&mailbox_, 2000, &aborted_, &rank, &descriptor), LAMPREY_OK);
    EXPECT_EQ(rank, 5u);
    close(descriptor);
    close(wrong);
    close(bare);
}

TEST_F(Mailbox, TimesOut)
{
    uint32_t rank = 0;
    int descriptor = -1;
    EXPECT_EQ(lamprey_mailbox_receive(&mailbox_, 60, &aborted_, &rank, &descriptor),
              LAMPREY_ERROR_TIMEOUT);
    EXPECT_EQ(descriptor, -1);
}

TEST_F(Mailbox, EndsItsWaitWhenAborted)
{
    std::thread aborter([this] {
        usleep(50000);
        aborted_ = true;
    });
    uint32_t rank = 0;
    int descriptor = -1;
    EXPECT_EQ(lamprey_mailbox_receive(&mailbox_, 60000, &aborted_, &rank, &descriptor),
              LAMPREY_ERROR_ABORTED);
    aborter.join();
}

TEST_F(Mailbox, CannotBeReachedWithAnotherToken)
{
    uint8_t token[16];
    memcpy(token, mailbox_.token, sizeof token);
    token[7] ^= 1;
    EXPECT_EQ(lamprey_mailbox_send(token, 0, 0), LAMPREY_ERROR_SYSTEM);
}

} // namespace
