// SPDX-License-Identifier: Apache-2.0
#include "plugin/image.h"

#include <dlfcn.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <set>
#include <string>

namespace {

const char *const kFixture = "tests/libhook_fixture.so";

std::string CopyFixture(const char *name)
{
    const char *folder = getenv("TEST_TMPDIR");
    std::string path = std::string(folder != nullptr ? folder : "/tmp") + "/" + name + "." +
                       std::to_string(getpid()) + ".so";
    std::ifstream from(kFixture, std::ios::binary);
    std::ofstream to(path, std::ios::binary | std::ios::trunc);
    to << from.rdbuf();
    return path;
}

class Image : public ::testing::Test {
  protected:
    void SetUp() override
    {
        handle_ = dlopen(kFixture, RTLD_NOW | RTLD_LOCAL);
        ASSERT_NE(handle_, nullptr) << dlerror();
        ASSERT_EQ(lamprey_image_of(dlsym(handle_, "ncclAllReduce"), &image_), LAMPREY_OK);
    }

    void *handle_ = nullptr;
    lamprey_image image_;
};

TEST_F(Image, FindsWhatTheLoaderFinds)
{
    for (const char *name : {"ncclAllReduce", "ncclGetVersion", "fixture_outer", "fixture_frame_0",
                             "fixture_constant_60"}) {
        EXPECT_EQ(lamprey_image_function(&image_, name), dlsym(handle_, name)) << name;
        EXPECT_NE(lamprey_image_function(&image_, name), nullptr) << name;
    }
    EXPECT_NE(std::string(image_.path).find("libhook_fixture.so"), std::string::npos);
    EXPECT_NE(image_.handle, nullptr);
}

TEST_F(Image, LeavesOutWhatIsNoFunctionOfItsOwn)
{
    // Data, an indirect function, a hidden one, an import, and names that nobody has.
    ASSERT_NE(dlsym(handle_, "fixture_data"), nullptr);
    ASSERT_NE(dlsym(handle_, "fixture_indirect"), nullptr);
    ASSERT_NE(dlsym(handle_, "getpid"), nullptr);
    for (const char *name : {"fixture_data", "fixture_indirect", "fixture_hidden", "getpid",
                             "__cxa_finalize", "ncclAllReduc", "ncclAllReduceX", ""}) {
        EXPECT_EQ(lamprey_image_function(&image_, name), nullptr) << name;
    }
    EXPECT_EQ(lamprey_image_function(&image_, nullptr), nullptr);
}

TEST_F(Image, ReadsSysvHashTablesToo)
{
    ASSERT_NE(image_.gnu_hash, nullptr);
    ASSERT_NE(image_.sysv_hash, nullptr) << "the fixture is linked with --hash-style=both";
    lamprey_image sysv = image_;
    sysv.gnu_hash = nullptr;
    for (const char *name : {"ncclAllReduce", "fixture_outer", "fixture_saved_4"}) {
        EXPECT_EQ(lamprey_image_function(&sysv, name), dlsym(handle_, name)) << name;
    }
    EXPECT_EQ(lamprey_image_function(&sysv, "fixture_nothing"), nullptr);
    sysv.sysv_hash = nullptr;
    EXPECT_EQ(lamprey_image_function(&sysv, "ncclAllReduce"), nullptr);
}

TEST_F(Image, KnowsSizes)
{
    size_t size = 0;
    EXPECT_NE(lamprey_image_symbol(&image_, "fixture_frame_0", &size), nullptr);
#ifdef __x86_64__
    EXPECT_EQ(size, 10u);
#else
    EXPECT_EQ(size, 20u);
#endif
}

TEST_F(Image, RefusesAddressesOutsideAnyObject)
{
    lamprey_image image;
    int on_stack = 0;
    void *on_heap = malloc(16);
    EXPECT_EQ(lamprey_image_of(nullptr, &image), LAMPREY_ERROR_INVALID);
    EXPECT_EQ(lamprey_image_of(&on_stack, &image), LAMPREY_ERROR_INVALID);
    EXPECT_EQ(lamprey_image_of(on_heap, &image), LAMPREY_ERROR_INVALID);
    free(on_heap);
}

TEST_F(Image, FindsTheMainProgram)
{
    lamprey_image image;
    char path[512] = "";
    ASSERT_GT(readlink("/proc/self/exe", path, sizeof(path) - 1), 0);
    ASSERT_EQ(lamprey_image_of(reinterpret_cast<void *>(&CopyFixture), &image), LAMPREY_OK);
    EXPECT_STREQ(image.path, path);
}

TEST_F(Image, StaysMappedOnceHeld)
{
    const std::string path = CopyFixture("held");
    void *copy = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    ASSERT_NE(copy, nullptr) << dlerror();
    auto function = reinterpret_cast<long (*)(long)>(dlsym(copy, "ncclAllReduce"));
    lamprey_image image;
    ASSERT_EQ(lamprey_image_of(reinterpret_cast<void *>(function), &image), LAMPREY_OK);
    dlclose(copy);
    EXPECT_EQ(function(1), 101);
    unlink(path.c_str());
}

TEST_F(Image, IsNotHeldByFind)
{
    const std::string path = CopyFixture("found");
    void *copy = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    ASSERT_NE(copy, nullptr) << dlerror();
    void *function = dlsym(copy, "ncclAllReduce");
    lamprey_image image;
    ASSERT_EQ(lamprey_image_find(function, &image), LAMPREY_OK);
    EXPECT_EQ(image.handle, nullptr);
    dlclose(copy);
    EXPECT_EQ(lamprey_image_find(function, &image), LAMPREY_ERROR_INVALID);
    unlink(path.c_str());
}

TEST_F(Image, IsFoundInAnotherNamespace)
{
#ifdef __SANITIZE_ADDRESS__
    GTEST_SKIP() << "AddressSanitizer allows no second namespace";
#endif
    void *other = dlmopen(LM_ID_NEWLM, kFixture, RTLD_NOW | RTLD_LOCAL);
    if (other == nullptr) {
        GTEST_SKIP() << "dlmopen: " << dlerror();
    }
    lamprey_image image;
    void *function = dlsym(other, "ncclAllReduce");
    ASSERT_NE(function, dlsym(handle_, "ncclAllReduce"));
    ASSERT_EQ(lamprey_image_of(function, &image), LAMPREY_OK);
    EXPECT_NE(image.base, image_.base);
    EXPECT_EQ(lamprey_image_function(&image, "ncclAllReduce"), function);
    // The loader can only reopen the namesake of this namespace, which is another object.
    EXPECT_EQ(image.handle, nullptr);
}

int Collect(const lamprey_image *image, void *context)
{
    static_cast<std::multiset<std::string> *>(context)->insert(image->path);
    return 0;
}

int StopAtOnce(const lamprey_image *, void *context)
{
    ++*static_cast<int *>(context);
    return 1;
}

TEST_F(Image, EveryNcclIsVisitedOnce)
{
    const std::string path = CopyFixture("second");
    void *copy = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    ASSERT_NE(copy, nullptr) << dlerror();
    std::multiset<std::string> seen;
    lamprey_image_each_nccl(Collect, &seen);
    EXPECT_EQ(seen.count(image_.path), 1u);
    EXPECT_EQ(seen.count(path), 1u);
    for (const std::string &name : seen) {
        EXPECT_EQ(name.find("libc.so"), std::string::npos);
        EXPECT_EQ(name.find("image_test"), std::string::npos);
    }
    int calls = 0;
    lamprey_image_each_nccl(StopAtOnce, &calls);
    EXPECT_EQ(calls, 1);
    unlink(path.c_str());
}

} // namespace
