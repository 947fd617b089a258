// Shared memory at the destination: one object however many mappings, written by offset.
#include "dest-agent/made_objects.h"

#include <fcntl.h>
#include <sys/stat.h>

#include "tests/support/skeletons.h"

namespace godwit {
namespace {

using namespace hand_made;

image::SharedObject& add_object(image::Layout& layout, uint64_t id, image::ObjectKind kind, uint64_t size) {
    image::SharedObject& object = *layout.add_objects();
    object.set_id(id);
    object.set_kind(kind);
    object.set_size(size);
    object.set_mode(0777);
    object.set_name(kind == image::OBJECT_MEMFD ? "made" : "");
    return object;
}

Result<void> write_to(MadeObjects& objects, uint64_t id, uint64_t at, const std::string& content) {
    const PageRange range{at, content.size()};
    return objects.find(id)->write({&range, 1}, reinterpret_cast<const std::byte*>(content.data()));
}

std::string content_of(MadeObjects& objects, uint64_t id) {
    const auto fd = objects.open(id, O_RDONLY);
    struct stat info {};
    if (!fd || ::fstat(fd->get(), &info) != 0) return "unreadable";
    std::string out(static_cast<size_t>(info.st_size), 'x');
    return ::pread(fd->get(), out.data(), out.size(), 0) == info.st_size ? out : "unreadable";
}

TEST(MadeObjects, ContentLandsByOffsetAndEndsWithTheObject) {
    MadeObjects objects;
    image::Layout layout;
    add_object(layout, 7, image::OBJECT_MEMFD, 2 * page + 5);
    ASSERT_OK(objects.take(layout));
    ASSERT_OK(write_to(objects, 7, page, pages_of('b', 2)));
    EXPECT_TRUE(content_of(objects, 7) == pages_of('\0', 1) + pages_of('b', 1) + "bbbbb");
    EXPECT_FALSE(write_to(objects, 7, 2 * page, pages_of('c', 2))) << "beyond it";
    EXPECT_FALSE(write_to(objects, 7, 100, pages_of('c', 1))) << "between pages";
    EXPECT_EQ(objects.find(8), nullptr);
    const PageRange zeroed{page, page, true};
    ASSERT_OK(objects.find(7)->zero({&zeroed, 1}));
    EXPECT_TRUE(content_of(objects, 7) == pages_of('\0', 2) + "bbbbb");
}

TEST(MadeObjects, LaterRoundsCutGrowAndPunch) {
    MadeObjects objects;
    image::Layout layout;
    image::SharedObject& object = add_object(layout, 7, image::OBJECT_MEMFD, 4 * page);
    add_object(layout, 8, image::OBJECT_ANONYMOUS, 2 * page);
    ASSERT_OK(objects.take(layout));
    ASSERT_OK(write_to(objects, 7, 0, pages_of('a', 4)));
    ASSERT_OK(write_to(objects, 8, 0, pages_of('s', 2)));
    object.set_size(2 * page);
    ASSERT_OK(objects.take(layout));
    object.set_size(3 * page);
    image::PageSpan& dropped = *object.add_dropped();
    dropped.set_start(0);
    dropped.set_length(page);
    ASSERT_OK(objects.take(layout));
    EXPECT_TRUE(content_of(objects, 7) == pages_of('\0', 1) + pages_of('a', 1) + pages_of('\0', 1));
    EXPECT_TRUE(content_of(objects, 8) == pages_of('s', 2));
    layout.mutable_objects()->DeleteSubrange(0, 1);
    ASSERT_OK(objects.take(layout));
    EXPECT_EQ(objects.find(7), nullptr);
    EXPECT_NE(objects.find(8), nullptr);
}

TEST(MadeObjects, OwnerModeAndSealsComeLast) {
    if (::geteuid() != 0) GTEST_SKIP() << "needs root";
    MadeObjects objects;
    image::Layout layout;
    image::SharedObject& object = add_object(layout, 7, image::OBJECT_MEMFD, page);
    object.set_seals(F_SEAL_WRITE | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL);
    object.set_mode(0600);
    object.set_uid(12);
    object.set_gid(13);
    ASSERT_OK(objects.take(layout));
    ASSERT_OK(write_to(objects, 7, 0, pages_of('a', 1)));
    const auto fd = objects.open(7, O_RDWR);
    ASSERT_OK(fd);
    ASSERT_OK(objects.finish());
    EXPECT_EQ(::fcntl(fd->get(), F_GET_SEALS), static_cast<int>(object.seals()));
    struct stat info {};
    ASSERT_EQ(::fstat(fd->get(), &info), 0);
    EXPECT_EQ(info.st_mode & 07777, 0600u);
    EXPECT_EQ(info.st_uid, 12u);
    EXPECT_EQ(info.st_gid, 13u);
    EXPECT_TRUE(content_of(objects, 7) == pages_of('a', 1));
}

TEST(MadeObjects, WhatNoSourceSendsIsRefused) {
    const struct {
        const char* what;
        std::function<void(image::Layout&)> change;
    } cases[] = {
        {"no id", [](auto& l) { l.mutable_objects(0)->set_id(0); }},
        {"the same id twice", [](auto& l) { *l.add_objects() = l.objects(0); }},
        {"no kind", [](auto& l) { l.mutable_objects(0)->set_kind(image::OBJECT_UNKNOWN); }},
        {"a size beyond all", [](auto& l) { l.mutable_objects(0)->set_size(uint64_t{1} << 63); }},
        {"a name with an end in it", [](auto& l) { l.mutable_objects(0)->set_name(std::string("a\0b", 3)); }},
        {"seals that nobody knows", [](auto& l) { l.mutable_objects(0)->set_seals(1u << 20); }},
        {"something dropped at first", [](auto& l) { l.mutable_objects(0)->add_dropped()->set_length(page); }},
        {"anonymous memory of no size", [](auto& l) { add_object(l, 8, image::OBJECT_ANONYMOUS, 0); }},
        {"anonymous memory larger than any",
         [](auto& l) { add_object(l, 8, image::OBJECT_ANONYMOUS, uint64_t{1} << 50); }},
    };
    for (const auto& wrong : cases) {
        MadeObjects objects;
        image::Layout layout;
        add_object(layout, 7, image::OBJECT_MEMFD, page);
        wrong.change(layout);
        const auto taken = objects.take(layout);
        ASSERT_FALSE(taken) << wrong.what;
        EXPECT_EQ(taken.error().code, ExitCode::peer) << wrong.what << ": " << taken.error().what;
    }
}

TEST(MadeObjects, AnObjectDoesNotBecomeAnother) {
    MadeObjects objects;
    image::Layout layout;
    add_object(layout, 7, image::OBJECT_MEMFD, page);
    ASSERT_OK(objects.take(layout));
    layout.mutable_objects(0)->set_kind(image::OBJECT_ANONYMOUS);
    EXPECT_FALSE(objects.take(layout));
}

class MadeFiles : public testing::Test {
  protected:
    void TearDown() override { ::unlink(path.c_str()); }
    image::Layout layout() const {
        image::Layout out;
        add_object(out, 7, image::OBJECT_TMPFS, page).set_name(path);
        return out;
    }
    bool there() const { return ::access(path.c_str(), F_OK) == 0; }
    const std::string path = fmt::format("/dev/shm/godwit-test-{}", ::getpid());
};

TEST_F(MadeFiles, AFileThatWasNotAgreedOnIsNotMade) {
    MadeObjects objects;
    objects.may_make({path + "-other"});
    const auto taken = objects.take(layout());
    ASSERT_FALSE(taken);
    EXPECT_EQ(taken.error().code, ExitCode::peer);
    EXPECT_FALSE(there());
}

TEST_F(MadeFiles, AFileGoesAgainUnlessTheTreeIsOurs) {
    for (const bool released : {false, true}) {
        {
            MadeObjects objects;
            objects.may_make({path});
            ASSERT_OK(objects.take(layout()));
            EXPECT_TRUE(there());
            if (released) objects.release();
        }
        EXPECT_EQ(there(), released);
    }
}

TEST_F(MadeFiles, AFileThatIsThereIsLeftAlone) {
    ASSERT_TRUE(replace_file(path, "another's"));
    {
        MadeObjects objects;
        objects.may_make({path});
        EXPECT_FALSE(objects.take(layout()));
    }
    EXPECT_EQ(*read_file(path), "another's");
}

TEST_F(MadeFiles, AFileThatTookTheNameMeanwhileIsLeftAlone) {
    {
        MadeObjects objects;
        objects.may_make({path});
        ASSERT_OK(objects.take(layout()));
        ASSERT_TRUE(replace_file(path, "another's"));
    }
    EXPECT_EQ(*read_file(path), "another's");
}

class MappedObjectsTest : public SkeletonTest {
  protected:
    // Anonymous memory mapped twice, a memfd mapped for reading and privately.
    static image::Layout layout() {
        image::Layout out = small_layout();
        add_object(out, 77, image::OBJECT_ANONYMOUS, 4 * page);
        add_object(out, 78, image::OBJECT_MEMFD, 3 * page);
        add(out, first, 4, image::MAPPING_OBJECT_SHARED, PROT_READ | PROT_WRITE).set_shared_object(77);
        MappingRange& part = add(out, second, 2, image::MAPPING_OBJECT_SHARED, PROT_READ);
        part.set_shared_object(77);
        part.set_offset(2 * page);
        add(out, third, 3, image::MAPPING_OBJECT_SHARED, PROT_READ).set_shared_object(78);
        add(out, third + 8 * page, 3, image::MAPPING_OBJECT_PRIVATE, PROT_READ | PROT_WRITE).set_shared_object(78);
        for (MappingRange& range : *out.mutable_mappings())
            if (range.shared_object() != 0 && range.start() != third) range.set_may_write(true);
        std::sort(out.mutable_mappings()->begin(), out.mutable_mappings()->end(),
                  [](const auto& a, const auto& b) { return a.start() < b.start(); });
        return out;
    }
    static constexpr uint64_t first = 0x30000000, second = 0x31000000, third = 0x32000000;
};

TEST_F(MappedObjectsTest, AllMappingsAreOfOneObject) {
    const image::Layout wanted = layout();
    MadeObjects objects;
    ASSERT_OK(objects.take(wanted));
    Spawner helper = *spawner();
    auto skeleton = Skeleton::build(helper, wanted, &objects);
    ASSERT_OK(skeleton);
    ASSERT_OK(write_to(objects, 77, 0, pages_of('1', 2) + pages_of('2', 2)));
    ASSERT_OK(write_to(objects, 78, 0, pages_of('m', 3)));
    ASSERT_OK(write(*skeleton, third + 9 * page, pages_of('p', 1)));
    ASSERT_FALSE(write(*skeleton, first, pages_of('x', 1))) << "by address";
    ASSERT_OK(skeleton->finish_memory());
    EXPECT_EQ(lines_of(*skeleton), expected_lines(wanted));
    EXPECT_TRUE(read_back(skeleton->pid(), second, 2 * page) == pages_of('2', 2));
    EXPECT_TRUE(read_back(skeleton->pid(), third, 3 * page) == pages_of('m', 3));
    EXPECT_TRUE(read_back(skeleton->pid(), third + 8 * page, 3 * page) ==
                pages_of('m', 1) + pages_of('p', 1) + pages_of('m', 1));
    const auto memory = ProcessMemory::open(skeleton->pid());
    ASSERT_OK(memory->write(RemotePtr(first + 2 * page), "new", 3));
    EXPECT_EQ(read_back(skeleton->pid(), second, 3), "new");
    const auto maps = read_smaps(skeleton->pid());
    ASSERT_OK(maps);
    for (const Vma& vma : *maps) {
        if (vma.start == first || vma.start == second) {
            EXPECT_EQ(vma.path, "/dev/zero (deleted)");
        }
        if (vma.start == third) {
            EXPECT_EQ(vma.path, "/memfd:made (deleted)");
            EXPECT_FALSE(vma.has("mw")) << "mapped for reading only, for ever";
        }
    }
    EXPECT_TRUE(read_fd_numbers(skeleton->pid())->size() <= 1) << "descriptors stayed in it";
}

TEST_F(MappedObjectsTest, ASealedMemfdThatIsMappedForReadingCanBeSealed) {
    image::Layout wanted = layout();
    wanted.mutable_objects(1)->set_seals(F_SEAL_WRITE);
    MadeObjects objects;
    ASSERT_OK(objects.take(wanted));
    Spawner helper = *spawner();
    auto skeleton = Skeleton::build(helper, wanted, &objects);
    ASSERT_OK(skeleton);
    ASSERT_OK(objects.finish());
}

TEST_F(MappedObjectsTest, AnObjectThatDidNotComeIsSaidSo) {
    image::Layout wanted = layout();
    wanted.clear_objects();
    MadeObjects objects;
    Spawner helper = *spawner();
    const auto skeleton = Skeleton::build(helper, wanted, &objects);
    ASSERT_FALSE(skeleton);
    EXPECT_NE(skeleton.error().what.find("did not come"), std::string::npos) << skeleton.error().what;
}

}  // namespace
}  // namespace godwit
