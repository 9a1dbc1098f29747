// SPDX-License-Identifier: Apache-2.0
// What is looked at before hwloc reads a file; each of the first three made hwloc 2.9 crash.
#include "topology/xml.h"

#include <gtest/gtest.h>

#include <cerrno>
#include <cstdio>
#include <regex>
#include <string>

#include "tests/fixtures/topology_fixture.h"

namespace {

using lamprey::fixture_path;
using lamprey::read_file;
using lamprey::Reason;

constexpr char kMachine[] = "hgx-h200-vm-2";

/* "" when the content is taken. */
std::string check(const std::string &content)
{
    std::string path = testing::TempDir() + "topology_xml.xml";
    std::ofstream(path, std::ios::binary) << content;
    Reason reason;
    int result = lamprey_xml_check(path.c_str(), reason);
    remove(path.c_str());
    EXPECT_EQ(reason.text().empty() ? 0 : EIO, result);
    return std::regex_replace(reason.text(), std::regex(path), "FILE");
}

std::string changed(const std::string &what, const std::string &with, bool everywhere = false)
{
    std::string whole = read_file(fixture_path(kMachine));
    std::string result = std::regex_replace(whole, std::regex(what), with,
                                            everywhere ? std::regex_constants::format_default
                                                       : std::regex_constants::format_first_only);
    EXPECT_NE(whole, result) << what;
    return result;
}

TEST(XmlTest, TakesWhatHwlocWrites)
{
    for (const char *name : {kMachine, "gb200-tray-a", "hwloc-3-vm-2", "wide-domain-2", "no-gpu"}) {
        EXPECT_EQ("", check(read_file(fixture_path(name)))) << name;
    }
    EXPECT_EQ("", check(changed("<info ", "<!-- a <comment> --><info ")));
}

TEST(XmlTest, RefusesAnObjectWithoutItsSets)
{
    const std::string want = ": an object without its sets of processors and memory";
    for (const char *set : {"cpuset", "complete_cpuset", "nodeset", "complete_nodeset"}) {
        for (const char *type : {"Machine", "Package", "NUMANode", "Core", "PU"}) {
            std::string object = std::string("(type=\"") + type + "\"[^>]* )" + set + "(=)";
            EXPECT_NE(std::string::npos, check(changed(object, "$1other$2")).find(want)) << object;
        }
    }
}

TEST(XmlTest, RefusesSetsThatMakeNoSense)
{
    for (const char *set : {"0xf...f,0x00000001", "0x1,,0x00000001", "0x0", ",0x1"}) {
        EXPECT_EQ("", check(changed("( cpuset=)\"0x0000000f\"", std::string("$1\"") + set + "\"")));
    }
    for (const char *set : {"", "0x000000010", "0x0/000001", "f", "0x1 0x1", "0xg", "0x1,f"}) {
        EXPECT_EQ("FILE is damaged at line 4: a set of processors or memory that makes no sense",
                  check(changed("( cpuset=)\"0x0000000f\"", std::string("$1\"") + set + "\"")))
            << set;
    }
}

TEST(XmlTest, RefusesProcessorsWithoutANumber)
{
    const std::string want = "a processor or memory without a number";
    for (const char *type : {"PU", "NUMANode"}) {
        std::string object = std::string("(type=\"") + type + "\") os_index=\"0\"";
        for (const char *with : {"$1", "$1 os_index=\"-1\"", "$1 os_index=\"\"",
                                 "$1 os_index=\"100000\"", "$1 os_index=\"0x1\""}) {
            EXPECT_NE(std::string::npos, check(changed(object, with)).find(want)) << with;
        }
    }
}

TEST(XmlTest, RefusesAnotherRoot)
{
    const std::string want = "one Machine must hold all other objects";
    EXPECT_NE(std::string::npos, check(changed("\"Machine\"", "\"NUMANode\"")).find(want));
    EXPECT_NE(std::string::npos, check(changed("\"Package\"", "\"Machine\"")).find(want));
    EXPECT_NE(
        std::string::npos,
        check(changed("\n </object>\n", "\n </object>\n <object type=\"Machine\"/>\n")).find(want));
}

TEST(XmlTest, RefusesObjectsInsideDevices)
{
    std::string pu = "<object type=\"PU\" cpuset=\"0x1\" complete_cpuset=\"0x1\" nodeset=\"0x1\" "
                     "complete_nodeset=\"0x1\"/>";
    EXPECT_NE(std::string::npos, check(changed("(type=\"PCIDev\"[^>]*>)", "$1" + pu))
                                     .find("processors or memory inside a device"));
    EXPECT_NE(std::string::npos, check(changed("type=\"PCIDev\"", "type=\"PCIDev\" cpuset=\"0x1\""))
                                     .find("a device with a set of processors or memory"));
}

TEST(XmlTest, RefusesATopologyOfNothing)
{
    EXPECT_EQ("FILE is no topology: it has no PU",
              check(changed("type=\"PU\"", "type=\"Core\"", true)));
    EXPECT_EQ("FILE is no topology: it has no NUMANode",
              check(changed("type=\"NUMANode\"", "type=\"Core\"", true)));
    EXPECT_EQ("FILE is no topology: it has no Machine", check("<topology></topology>"));
    EXPECT_EQ("FILE is no topology: it has no Machine", check(""));
    EXPECT_EQ("FILE is no topology: it is no text",
              check(std::string("<topology>\0</topology>", 22)));
}

TEST(XmlTest, RefusesWhatIsNoXml)
{
    const struct {
        const char *content;
        const char *reason;
    } cases[] = {
        {"<topology", "line 1: an element that makes no sense"},
        {"<topology version=2>", "line 1: an element that makes no sense"},
        {"<topology version=\"2>\n", "line 1: an element that makes no sense"},
        {"<topology a=\"1\"b=\"2\">", "line 1: an element that makes no sense"},
        {"<topology =\"1\">", "line 1: an element that makes no sense"},
        {"<>", "line 1: an element that makes no sense"},
        {"<!-- <topology/>", "line 1: an element that makes no sense"},
        {"<topology>\n<info name=\"a\" value=\"b\">\n", "line 3: it breaks off"},
        {"<topology>\n</object>", "line 2: an end without a beginning"},
        {"</topology>", "line 1: an end without a beginning"},
        {"<object type=\"Machine\"/>", "line 1: a topology must hold all other elements"},
        {"<info/>", "line 1: a topology must hold all other elements"},
        {"<topology><topology/></topology>", "line 1: a topology must hold all other elements"},
        {"<topology><object/></topology>", "line 1: an object without a type"},
        {"<topology><object type=\"\"/></topology>", "line 1: an object without a type"},
        {"<topology><object type=\"a type that no hwloc has ever had\"/></topology>",
         "line 1: an object without a type"},
    };
    for (const auto &c : cases) {
        EXPECT_NE(std::string::npos, check(c.content).find(c.reason))
            << c.content << " " << check(c.content);
    }
}

TEST(XmlTest, RefusesWhatNoMachineIs)
{
    std::string deep = "<topology>";
    for (int i = 0; i < 100; i++) {
        deep += "<page>";
    }
    EXPECT_EQ("FILE is damaged at line 1: too many elements inside each other", check(deep));
    EXPECT_EQ("FILE is no topology: it is too large", check(std::string(64 << 20, ' ')));
    Reason reason;
    EXPECT_EQ(EIO, lamprey_xml_check("tests/fixtures/missing.xml", reason));
    EXPECT_EQ("cannot read tests/fixtures/missing.xml: No such file or directory", reason.text());
    EXPECT_EQ(EIO, lamprey_xml_check("tests", reason));
}

} // namespace
