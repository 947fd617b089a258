// What a layout tells besides mappings, from one reading to the next.
#include "source-agent/collect/layout.h"

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>

#include "tests/support/forked_child.h"

namespace godwit {
namespace {

// The last scan of the running tree is never sent: what it found must be in the next.
TEST(LayoutReader, NewFilesAreToldUntilALayoutWithThemWasSent) {
    constexpr size_t page = 4096;
    char name[] = "/tmp/godwit-layout-XXXXXX";
    const int fd = ::mkstemp(name);
    ASSERT_EQ(::ftruncate(fd, page), 0);
    const test::ForkedChild child([&](test::Told&) { return ::mmap(nullptr, page, PROT_READ, MAP_PRIVATE, fd, 0) == MAP_FAILED ? 1 : 0; });
    auto reader = LayoutReader::make(child.pid(), child.pid(), {});
    ASSERT_TRUE(reader) << reader.error().what;
    const auto names_it = [&](const Result<image::Layout>& layout) {
        EXPECT_TRUE(layout) << layout.error().what;
        return std::any_of(layout->new_files().begin(), layout->new_files().end(), [&](const auto& file) { return file.path() == name; });
    };
    EXPECT_TRUE(names_it(reader->read_running()));
    const auto second = reader->read_stopped();
    EXPECT_TRUE(names_it(second));
    reader->told(*second);
    EXPECT_FALSE(names_it(reader->read_stopped()));
    ::unlink(name);
    ::close(fd);
}

}  // namespace
}  // namespace godwit
