// SPDX-License-Identifier: Apache-2.0
// lamprey.h is plain C of every standard, and C++: that this builds is most of the test.
#include "tests/header_standard.h"

#include <gtest/gtest.h>

#include <vector>

namespace {

using Sizes = std::vector<size_t>;

Sizes sizes_of(void (*standard)(size_t *))
{
    Sizes sizes(LAMPREY_HEADER_STRUCTS);
    standard(sizes.data());
    return sizes;
}

// What bindings have compiled in, with pointers of 64 bits. A struct may only grow.
TEST(Header, HasTheSameStructsInEveryStandard)
{
    const Sizes sizes = sizes_of(lamprey_header_c17);
    EXPECT_EQ(sizes, (Sizes{104, 40, 152, 40, 56, 32}));
    EXPECT_EQ(sizes_of(lamprey_header_c99), sizes);
    EXPECT_EQ(sizes_of(lamprey_header_c11), sizes);
    EXPECT_EQ(sizes_of(lamprey_header_cxx11), sizes);
    EXPECT_EQ(sizes_of(lamprey_header_cxx17), sizes);
    EXPECT_EQ(sizes_of(lamprey_header_cxx20), sizes);
}

} // namespace
