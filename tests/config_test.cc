// SPDX-License-Identifier: Apache-2.0
#include "plugin/config.h"
#include "plugin/limits.h"

#include <gtest/gtest.h>

#include <string>

namespace {

lamprey_config parse(std::initializer_list<const char *> lines, int expected_warnings = 0)
{
    std::vector<const char *> environment(lines);
    environment.push_back(nullptr);
    lamprey_config config;
    EXPECT_EQ(lamprey_config_parse(environment.data(), &config), expected_warnings);
    return config;
}

TEST(Config, HasDefaults)
{
    const lamprey_config config = parse({"PATH=/bin", "NCCL_DEBUG=INFO"});
    EXPECT_EQ(config.disable, 0);
    EXPECT_EQ(config.max_bytes, -1);
    EXPECT_EQ(config.max_ctas, 128);
    EXPECT_EQ(config.pdl, LAMPREY_PDL_WAIT);
    EXPECT_EQ(config.hook, LAMPREY_HOOK_CHOICE_AUTO);
    EXPECT_EQ(config.topology, nullptr);
}

TEST(Config, ReadsEveryKind)
{
    const lamprey_config config =
        parse({"LAMPREY_DISABLE=1", "LAMPREY_MAX_BYTES=64K", "LAMPREY_MAX_CTAS=32",
               "LAMPREY_PDL=Signal", "LAMPREY_ALGORITHM=two_shot", "LAMPREY_HOOK=got", "LAMPREY_TOPOLOGY=/a/b.xml"});
    EXPECT_EQ(config.disable, 1);
    EXPECT_EQ(config.max_bytes, 65536);
    EXPECT_EQ(config.max_ctas, 32);
    EXPECT_EQ(config.pdl, LAMPREY_PDL_SIGNAL);
    EXPECT_EQ(config.algorithm, LAMPREY_ALGORITHM_TWO_SHOT);
    EXPECT_EQ(config.hook, LAMPREY_HOOK_CHOICE_GOT);
    EXPECT_STREQ(config.topology, "/a/b.xml");
}

TEST(Config, WarnsOnceAndKeepsTheDefault)
{
    for (const char *bad : {"LAMPREY_MAX_BYTES=", "LAMPREY_MAX_BYTES=12x", "LAMPREY_MAX_BYTES=1G",
                            "LAMPREY_MAX_BYTES=99999999999999999999", "LAMPREY_MAX_BYTES=65M",
                            "LAMPREY_MAX_BYTES=-2", "LAMPREY_MAX_BYTES=9223372036854775807K"}) {
        EXPECT_EQ(parse({bad}, 1).max_bytes, -1) << bad;
    }
    EXPECT_EQ(parse({"LAMPREY_MAX_CTAS=0"}, 1).max_ctas, 128);
    EXPECT_EQ(parse({"LAMPREY_PDL=on"}, 1).pdl, LAMPREY_PDL_WAIT);
    EXPECT_EQ(parse({"LAMPREY_DISABLE=yes"}, 1).disable, 0);
}

TEST(Config, WarnsOfUnknownNamesOnly)
{
    parse({"LAMPREY_NO_SUCH_THING=1"}, 1);
    parse({"LAMPREY_EMULATOR_GPUS=4", "LAMPREY_TEST_NCCL=/x", "LAMPREYX=1"}, 0);
}

TEST(Config, DocumentsEveryRow)
{
    size_t rows = 0;
    while (const lamprey_setting *row = lamprey_config_row(rows)) {
        EXPECT_EQ(std::string(row->name).rfind("LAMPREY_", 0), 0u);
        EXPECT_GT(std::string(row->help).size(), 20u);
        rows++;
    }
    EXPECT_EQ(rows, 13u);
    EXPECT_EQ(lamprey_config_row(1000), nullptr);
}

} // namespace
