// Shared memory of every kind, under the oracle of memory.cc: in each region one writer bumps the first byte of each page, in
// order, over and over, so that at any moment there is one edge; a page that is stale, torn or lost shows as a second one. The
// writes go through the mappings, or by pwrite(2); what is read goes by another way than what is written.
//
// --size  the sizes of some change while it runs    --seal  some memfds are sealed: they change no more
// --file PATH  a file on tmpfs is mapped twice, at different offsets
// --readers  a memfd is mapped for reading, privately, and nameless parts of it by name
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include <algorithm>
#include <memory>
#include <vector>

#include "tests/victims/victim.h"

using namespace victim;

namespace {

constexpr size_t page = 4096;
constexpr size_t offsets[] = {1, 2047, 4095};

unsigned char pattern(size_t seed, size_t index, size_t offset) {
    return static_cast<unsigned char>(index * 131 + offset * 7 + seed * 31);
}

// One object; how its bytes are written and read differs.
class Region {
  public:
    Region(const char* name, size_t pages, int fd, unsigned char* to_write, unsigned char* to_read)
        : name_(name), pages_(pages), fd_(fd), to_write_(to_write), to_read_(to_read) {
        for (size_t i = 0; i < pages; ++i) fill(i, 0);
    }

    void bump(size_t count) {
        while (count-- != 0) {
            put(next_ * page, turn_);
            if (++next_ == pages_) next_ = 0, ++turn_;
        }
    }
    void look() const {
        for (size_t i = 0; i < pages_; ++i) {
            const unsigned char expected = static_cast<unsigned char>(i < next_ ? turn_ : turn_ - 1);
            if (get(i * page) != expected) harmed(i, "a second edge");
            for (const size_t offset : offsets)
                if (get(i * page + offset) != pattern(pages_, i, offset)) harmed(i, "pattern lost");
        }
    }
    // The last pages go and come again, empty at first.
    void cut_and_grow() {
        const size_t kept = pages_ - 3;
        CHECK(ftruncate(fd_, static_cast<off_t>(kept * page)) == 0 && ftruncate(fd_, static_cast<off_t>(pages_ * page)) == 0);
        for (size_t i = kept; i < pages_; ++i) {
            for (const size_t offset : offsets) CHECK(get(i * page + offset) == 0);
            fill(i, static_cast<unsigned char>(i < next_ ? turn_ : turn_ - 1));
        }
    }
    // A page in the middle becomes a hole and content again.
    void punch() {
        const size_t i = pages_ / 2;
        CHECK(fallocate(fd_, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, static_cast<off_t>(i * page), page) == 0);
        CHECK(get(i * page + 1) == 0);
        fill(i, static_cast<unsigned char>(i < next_ ? turn_ : turn_ - 1));
    }
    size_t pages() const { return pages_; }

  private:
    void fill(size_t i, unsigned char first) {
        put(i * page, first);
        for (const size_t offset : offsets) put(i * page + offset, pattern(pages_, i, offset));
    }
    void put(size_t at, unsigned char value) {
        if (to_write_ != nullptr)
            to_write_[at] = value;
        else
            CHECK(pwrite(fd_, &value, 1, static_cast<off_t>(at)) == 1);
    }
    unsigned char get(size_t at) const {
        if (to_read_ != nullptr) return to_read_[at];
        unsigned char value = 0;
        CHECK(pread(fd_, &value, 1, static_cast<off_t>(at)) == 1);
        return value;
    }
    void harmed(size_t index, const char* how) const {
        say("region %s page %zu: %s", name_, index, how);
        CHECK(!"memory harmed");
    }

    const char* name_;
    size_t pages_;
    int fd_;
    unsigned char* to_write_;
    unsigned char* to_read_;
    size_t next_ = 0;
    unsigned char turn_ = 1;
};

int memfd(const char* name, size_t pages, unsigned flags = 0) {
    const int fd = static_cast<int>(syscall(SYS_memfd_create, name, flags));
    CHECK(fd >= 0 && ftruncate(fd, static_cast<off_t>(pages * page)) == 0);
    return fd;
}

unsigned char* map(int fd, size_t pages, int protection = PROT_READ | PROT_WRITE, int flags = MAP_SHARED, size_t first = 0) {
    void* at = mmap(nullptr, pages * page, protection, flags, fd, static_cast<off_t>(first * page));
    CHECK(at != MAP_FAILED);
    return static_cast<unsigned char*>(at);
}

std::string link_of(int fd) {
    char path[256];
    const ssize_t size = readlink(("/proc/self/fd/" + std::to_string(fd)).c_str(), path, sizeof path);
    CHECK(size > 0);
    return std::string(path, static_cast<size_t>(size));
}

// What no byte shows: name, size, seals, position, permission bits.
struct Facts {
    int fd;
    std::string name = link_of(fd);
    struct stat status = look();
    int seals = fcntl(fd, F_GET_SEALS);
    off_t position = lseek(fd, 0, SEEK_CUR);
    int flags = fcntl(fd, F_GETFL);

    struct stat look() const {
        struct stat info {};
        CHECK(fstat(fd, &info) == 0);
        return info;
    }
    void check() const {
        const struct stat now = look();
        CHECK(now.st_size == status.st_size && now.st_mode == status.st_mode && now.st_uid == status.st_uid && now.st_gid == status.st_gid);
        CHECK(link_of(fd) == name && fcntl(fd, F_GET_SEALS) == seals && lseek(fd, 0, SEEK_CUR) == position && fcntl(fd, F_GETFL) == flags);
    }
};

// Sealed ones: what they held when they were sealed they hold for ever.
struct Sealed {
    static constexpr size_t pages = 16;
    int fd = memfd("sealed", pages, 2 /* MFD_ALLOW_SEALING */);
    int not_growing = memfd("not growing", 4, 2);
    unsigned char* seen = nullptr;
    unsigned char* own = nullptr;

    Sealed() {
        unsigned char* at = map(fd, pages);
        for (size_t i = 0; i < pages * page; ++i) at[i] = static_cast<unsigned char>(i / 100 + 1);
        CHECK(munmap(at, pages * page) == 0);
        const int reading = open(("/proc/self/fd/" + std::to_string(fd)).c_str(), O_RDONLY);
        CHECK(reading >= 0);
        seen = map(reading, pages - 2, PROT_READ, MAP_SHARED, 2);
        CHECK(close(reading) == 0);
        own = map(fd, pages, PROT_READ | PROT_WRITE, MAP_PRIVATE);
        own[5 * page] = 0xee;
        CHECK(fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) == 0);
        CHECK(fcntl(not_growing, F_ADD_SEALS, F_SEAL_GROW) == 0);
    }
    void check() const {
        for (size_t i = 2 * page; i < pages * page; i += 61) CHECK(seen[i - 2 * page] == static_cast<unsigned char>(i / 100 + 1));
        for (size_t i = 0; i < pages * page; i += 61)
            if (i != 5 * page) CHECK(own[i] == static_cast<unsigned char>(i / 100 + 1));
        CHECK(own[5 * page] == 0xee);
        CHECK(pwrite(fd, "x", 1, 0) < 0 && errno == EPERM);
        CHECK(ftruncate(not_growing, 5 * page) < 0 && errno == EPERM);
    }
};

// One memfd, mapped for reading only, privately, in parts at other offsets; its end is in the middle of a page.
struct Readers {
    static constexpr size_t pages = 12;
    static constexpr off_t size = 11 * page + 100;
    int fd = memfd("read \n only", pages, 1 /* MFD_CLOEXEC */);
    unsigned char* all = nullptr;
    unsigned char* end = nullptr;
    unsigned char* own = nullptr;

    Readers() {
        CHECK(ftruncate(fd, size) == 0 && fchmod(fd, 0640) == 0);
        for (off_t i = 0; i < size; i += 50) CHECK(pwrite(fd, "abc", 3, i) == 3);
        CHECK(lseek(fd, 777, SEEK_SET) == 777);
        const int reading = open(("/proc/self/fd/" + std::to_string(fd)).c_str(), O_RDONLY);
        CHECK(reading >= 0);
        all = map(reading, pages, PROT_READ);
        CHECK(close(reading) == 0);
        end = map(fd, 4, PROT_READ | PROT_WRITE, MAP_SHARED, 8);
        own = map(fd, 4, PROT_READ | PROT_WRITE, MAP_PRIVATE, 4);
        memset(own + page, 7, page);
        (void)prctl(0x53564d41 /* PR_SET_VMA */, 0, end, 4 * page, "the end");
    }
    void check() const {
        for (off_t i = 0; i + 3 < size; i += 50) CHECK(memcmp(all + i, "abc", 3) == 0);
        CHECK(memcmp(end + 50 * 656 - 8 * page, "abc", 3) == 0);
        CHECK(own[page] == 7 && own[2 * page - 1] == 7 && memcmp(own + 350 * 50 - 4 * page, "abc", 3) == 0);
    }
    // What is mapped is one object still.
    void check_one() const {
        end[3 * page + 50] = 'X';
        CHECK(all[11 * page + 50] == 'X');
        end[3 * page + 50] = 0;
        CHECK(mprotect(all, page, PROT_READ | PROT_WRITE) < 0 && errno == EACCES);
    }
};

}  // namespace

int main(int argc, char** argv) {
    Victim self(argc, argv);
    const bool sizes = self.flag("size");
    std::vector<Region> regions;

    unsigned char* anonymous = map(-1, 200, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS);
    unsigned char* twice = static_cast<unsigned char*>(mremap(anonymous, 0, 200 * page, MREMAP_MAYMOVE));
    CHECK(twice != MAP_FAILED);
    regions.emplace_back("anonymous", 200, -1, anonymous, twice);

    // The first half is not mapped: nobody sees it.
    unsigned char* half = map(-1, 64, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS);
    memset(half, 0x77, 32 * page);
    CHECK(munmap(half, 32 * page) == 0);
    memset(half + 32 * page, 0x78, 32 * page);

    const int mapped = memfd("mapped", 150);
    regions.emplace_back("mapped, read by pread", 150, mapped, map(mapped, 150), nullptr);
    const int written = memfd("written", 120);
    regions.emplace_back("written by pwrite, read in a mapping", 120, written, nullptr, map(written, 120, PROT_READ));
    const int alone = memfd("alone", 100);
    regions.emplace_back("only a descriptor", 100, alone, nullptr, nullptr);
    const int closed = memfd("closed", 80);
    regions.emplace_back("no descriptor", 80, -1, map(closed, 80), map(closed, 80));
    CHECK(close(closed) == 0);
    const int second = dup(alone);
    CHECK(second >= 0 && lseek(second, 12345, SEEK_SET) == 12345);
    const int empty = memfd("", 0);

    std::unique_ptr<Sealed> sealed;
    if (self.flag("seal")) sealed = std::make_unique<Sealed>();
    std::unique_ptr<Readers> readers;
    if (self.flag("readers")) readers = std::make_unique<Readers>();

    const std::string path = self.text("file", "");
    int file = -1;
    if (!path.empty()) {
        file = open(path.c_str(), O_RDWR | O_CREAT | O_EXCL, 0640);
        CHECK(file >= 0 && ftruncate(file, 90 * page) == 0);
        regions.emplace_back("file, mapped", 60, file, map(file, 60), nullptr);
        unsigned char* later = map(file, 30, PROT_READ | PROT_WRITE, MAP_SHARED, 60);
        regions.emplace_back("file, second part", 30, -1, later, map(file, 30, PROT_READ, MAP_SHARED, 60));
        const int closed_file = open((path + ".closed").c_str(), O_RDWR | O_CREAT | O_EXCL, 0600);
        CHECK(closed_file >= 0 && ftruncate(closed_file, 20 * page) == 0);
        regions.emplace_back("file, closed", 20, -1, map(closed_file, 20), map(closed_file, 20));
        CHECK(close(closed_file) == 0);
    }

    std::vector<Facts> facts;
    if (file >= 0) facts.push_back({file});
    for (const int fd : {mapped, written, alone, second, empty}) facts.push_back({fd});
    if (sealed) facts.push_back({sealed->fd}), facts.push_back({sealed->not_growing});
    if (readers) facts.push_back({readers->fd});

    self.ready();
    unsigned turn = 0;
    while (self.going(4)) {
        for (Region& region : regions) region.bump(std::min<size_t>(region.pages() / 3 + 1, 60));
        if (sizes) {
            regions[1 + turn % 3].cut_and_grow();
            regions[1 + (turn + 1) % 3].punch();
        }
        regions[turn++ % regions.size()].look();
        if (sealed) sealed->check();
        if (readers) readers->check();
        for (const Facts& fact : facts) fact.check();
    }
    for (const Region& region : regions) region.look();
    for (size_t i = 32 * page; i < 64 * page; i += 100) CHECK(half[i] == 0x78);
    if (readers) readers->check_one();
    if (file >= 0) {
        // The names lead to what is mapped.
        struct stat named {}, held {};
        CHECK(stat(path.c_str(), &named) == 0 && fstat(file, &held) == 0 && named.st_ino == held.st_ino && named.st_dev == held.st_dev);
        CHECK(unlink(path.c_str()) == 0 && unlink((path + ".closed").c_str()) == 0);
    }
    return self.done();
}
