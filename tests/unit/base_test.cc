#include <gtest/gtest.h>
#include <unistd.h>

#include "common/base/file.h"
#include "common/base/text.h"
#include "common/base/uuid.h"

namespace godwit {
namespace {

TEST(Uuid, FreshOnesDifferAndHaveTheForm) {
    const auto a = new_uuid();
    const auto b = new_uuid();
    ASSERT_TRUE(a && b);
    EXPECT_NE(*a, *b);
    EXPECT_TRUE(is_uuid(*a));
}

TEST(Uuid, APathIsNotOne) {
    EXPECT_FALSE(is_uuid("../../../../../etc/passwd"));
    EXPECT_FALSE(is_uuid(""));
}

TEST(Text, ControlCharactersAndForeignBytesAreEscaped) {
    EXPECT_EQ(printable("a\x1b[2J\xff"), "a\\x1b[2J\\xff");
    EXPECT_EQ(printable("abcdef", 3), "abc...");
}

TEST(File, ReplaceFileReplacesAndLeavesNothingBeside) {
    const std::string path = "/tmp/godwit-replace-" + std::to_string(::getpid());
    ASSERT_TRUE(replace_file(path, "one"));
    ASSERT_TRUE(replace_file(path, "two"));
    EXPECT_EQ(read_file(path).value(), "two");
    EXPECT_NE(::access((path + ".new").c_str(), F_OK), 0);
    ::unlink(path.c_str());
}

TEST(File, AMissingFileIsNamed) {
    const auto missing = read_file("/nowhere/at all");
    ASSERT_FALSE(missing);
    EXPECT_NE(missing.error().what.find("/nowhere/at all"), std::string::npos);
    EXPECT_EQ(missing.error().error, ENOENT);
}

}  // namespace
}  // namespace godwit
