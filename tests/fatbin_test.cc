// SPDX-License-Identifier: Apache-2.0
// The kernels in the library are those that were built last.
#include <gtest/gtest.h>

#include <cstring>
#include <fstream>
#include <iterator>
#include <vector>

extern "C" const unsigned char lamprey_fatbin[];

static const char *path;

TEST(Fatbin, IsTheOneBuiltLast)
{
    std::ifstream file(path, std::ios::binary);
    const std::vector<char> built((std::istreambuf_iterator<char>(file)), {});
    ASSERT_GT(built.size(), 1000u);
    EXPECT_EQ(0, memcmp(lamprey_fatbin, built.data(), built.size()));
}

int main(int argc, char **argv)
{
    testing::InitGoogleTest(&argc, argv);
    path = argc > 1 ? argv[1] : "";
    return RUN_ALL_TESTS();
}
