// The memory oracle: in every region one writer bumps the first byte of each page, in order, over and over. At any
// moment the bytes are N+1 up to some page and N from there on. Whoever looks sees one edge; a page that is stale,
// torn or lost shows as a second one. The rest of each page holds a pattern that depends on its address.
//
// --mb N   size of the private anonymous region (default 8)   --file PATH   a file for the file mappings
// --move   the moving region is mremap()ed to and fro while it runs
#include <sys/mman.h>

#include <algorithm>
#include <vector>

#include "tests/victims/victim.h"

using namespace victim;

namespace {

constexpr size_t page = 4096;

struct Region {
    const char* name;
    unsigned char* base;
    size_t pages;
    size_t next = 0;       // the page that is bumped next
    unsigned char turn = 1;  // what it gets
};

unsigned char pattern(const Region& region, size_t index, size_t offset) {
    return static_cast<unsigned char>(index * 131 + offset * 7 + static_cast<unsigned char>(region.name[0]));
}

constexpr size_t offsets[] = {1, 2047, 4095};

Region prepare(const char* name, void* base, size_t pages) {
    CHECK(base != MAP_FAILED && base != nullptr);
    Region region{name, static_cast<unsigned char*>(base), pages};
    for (size_t i = 0; i < pages; ++i) {
        region.base[i * page] = 0;
        for (const size_t offset : offsets) region.base[i * page + offset] = pattern(region, i, offset);
    }
    return region;
}

// Bumps at most `count` pages.
void bump(Region& region, size_t count) {
    while (count-- != 0) {
        region.base[region.next * page] = region.turn;
        if (++region.next == region.pages) region.next = 0, ++region.turn;
    }
}

void harmed(const Region& region, size_t index, const char* how) {
    say("region %s page %zu: %s", region.name, index, how);
    CHECK(!"memory harmed");
}

void look(const Region& region) {
    for (size_t i = 0; i < region.pages; ++i) {
        const unsigned char expected = static_cast<unsigned char>(i < region.next ? region.turn : region.turn - 1);
        if (region.base[i * page] != expected) harmed(region, i, "a second edge");
        for (const size_t offset : offsets)
            if (region.base[i * page + offset] != pattern(region, i, offset)) harmed(region, i, "pattern lost");
    }
}

unsigned char* map(size_t pages, int flags, int fd = -1) {
    return static_cast<unsigned char*>(mmap(nullptr, pages * page, PROT_READ | PROT_WRITE, flags, fd, 0));
}

// A hole that cannot be touched, guards which are not there any more, and a page that can only be read.
struct Odd {
    unsigned char* none = map(16, MAP_PRIVATE | MAP_ANONYMOUS);
    unsigned char* only_read = map(4, MAP_PRIVATE | MAP_ANONYMOUS);
    unsigned char* sparse = map(4096, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE);
    unsigned char* thrown = map(64, MAP_PRIVATE | MAP_ANONYMOUS);

    Odd() {
        memset(none, 0x5a, 16 * page);
        CHECK(mprotect(none, 16 * page, PROT_NONE) == 0);
        memset(only_read, 0x33, 4 * page);
        CHECK(mprotect(only_read, 4 * page, PROT_READ) == 0);
        sparse[100 * page] = 1;
        sparse[4000 * page] = 2;
        memset(thrown, 9, 64 * page);
        CHECK(madvise(thrown, 32 * page, MADV_DONTNEED) == 0 && madvise(thrown, 64 * page, MADV_NOHUGEPAGE) == 0);
        CHECK(madvise(sparse, 64 * page, MADV_DONTDUMP) == 0);
    }
    void check() const {
        for (size_t i = 0; i < 4 * page; i += 512) CHECK(only_read[i] == 0x33);
        CHECK(sparse[100 * page] == 1 && sparse[4000 * page] == 2 && sparse[2000 * page] == 0);
        CHECK(thrown[0] == 0 && thrown[31 * page] == 0 && thrown[32 * page] == 9 && thrown[64 * page - 1] == 9);
    }
    // The content behind PROT_NONE must come along too.
    void check_hidden() const {
        CHECK(mprotect(none, 16 * page, PROT_READ) == 0);
        for (size_t i = 0; i < 16 * page; ++i) CHECK(none[i] == 0x5a);
    }
};

void move(Region& region) {
    void* place = mmap(nullptr, region.pages * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    void* moved = mremap(region.base, region.pages * page, region.pages * page, MREMAP_MAYMOVE | MREMAP_FIXED, place);
    CHECK(moved == place);
    region.base = static_cast<unsigned char*>(moved);
}

}  // namespace

int main(int argc, char** argv) {
    Victim self(argc, argv);
    const size_t main_pages = static_cast<size_t>(self.number("mb", 8)) * 256;
    const bool moving = self.flag("move");
    alignas(page) unsigned char on_stack[16 * page];
    std::vector<Region> regions;
    regions.push_back(prepare("anonymous", map(main_pages, MAP_PRIVATE | MAP_ANONYMOUS), main_pages));
    regions.push_back(prepare("shared", map(256, MAP_SHARED | MAP_ANONYMOUS), 256));
    regions.push_back(prepare("moving", map(64, MAP_PRIVATE | MAP_ANONYMOUS), 64));
    regions.push_back(prepare("top of heap", reinterpret_cast<unsigned char*>((reinterpret_cast<size_t>(sbrk(65 * page)) + page - 1) & ~(page - 1)), 64));
    regions.push_back(prepare("stack", on_stack, 16));
    const std::string path = self.text("file", "");
    if (!path.empty()) {
        const int fd = open(path.c_str(), O_RDWR | O_CREAT, 0600);
        CHECK(fd >= 0 && ftruncate(fd, 128 * page) == 0);
        regions.push_back(prepare("file shared", map(64, MAP_SHARED, fd), 64));
        void* half = mmap(nullptr, 64 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 64 * page);
        regions.push_back(prepare("private file", half, 64));
        CHECK(close(fd) == 0);
    }
    const Odd odd;
    self.ready();
    unsigned turn = 0;
    while (self.going(4)) {
        for (Region& region : regions) bump(region, std::min<size_t>(region.pages / 3 + 1, 200));
        if (moving && turn % 5 == 0) move(regions[2]);
        // Looking at all of it every time would load the machine.
        look(regions[turn++ % regions.size()]);
        odd.check();
    }
    for (const Region& region : regions) look(region);
    odd.check_hidden();
    return self.done();
}
