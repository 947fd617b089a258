// What a destination says of a plan and of the layouts that follow it.
#include "dest-agent/check_plan.h"

#include <gtest/gtest.h>

namespace godwit {
namespace {

image::FileIdentity identity(const char* path, uint64_t inode, bool writable) {
    image::FileIdentity out;
    out.set_path(path);
    out.set_device(7);
    out.set_inode(inode);
    out.set_writable(writable);
    return out;
}

image::Layout layout_of(const char* path, uint64_t inode, bool writable) {
    image::Layout out;
    image::MappedFile& file = *out.add_files();
    file.set_path(path);
    file.set_device(7);
    file.set_inode(inode);
    file.set_writable(writable);
    return out;
}

TEST(CheckedFiles, LayoutMapsOnlyWhatWasCompared) {
    CheckedFiles files;
    files.add(identity("/lib/read", 1, false));
    files.add(identity("/data/written", 2, true));
    EXPECT_TRUE(files.require({}));
    EXPECT_TRUE(files.require(layout_of("/lib/read", 1, false)));
    EXPECT_TRUE(files.require(layout_of("/data/written", 2, true)));
    EXPECT_TRUE(files.require(layout_of("/data/written", 2, false)));
    for (const image::Layout& layout : {layout_of("/lib/read", 1, true), layout_of("/lib/read", 3, false), layout_of("/etc/shadow", 1, false)}) {
        const auto required = files.require(layout);
        ASSERT_FALSE(required);
        EXPECT_EQ(required.error().code, ExitCode::peer);
        EXPECT_NE(required.error().what.find(layout.files(0).path()), std::string::npos);
    }
}

}  // namespace
}  // namespace godwit
