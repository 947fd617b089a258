// The one-edge memory oracle with several writers, for migrations that copy while the program writes.
//
// Each writer thread owns a region and bumps the first byte of each of its pages, in order, over and over. At any
// moment the bytes are N+1 up to the writer's page and N from there on: one edge. A page that is stale, torn or lost
// shows as a second one. The rest of each page holds a pattern that depends on its index. The main thread looks at one
// region after the other; it pauses the writer by a handshake, never by time.
//
// --writers N   threads (default 4); their regions are, in turn, private, shared anonymous, file MAP_SHARED, private
// file
// --mb N        size of each region (default 4)          --file PATH            where the files are made
// --pages-per-second N   of each writer; 0 (default): as fast as it can
// --move        each writer mremap()s its region to a fresh place after every pass
// --protect     a region can only be read, or not even that, while its writer rests
#include <pthread.h>
#include <sys/mman.h>

#include <algorithm>
#include <memory>
#include <vector>

#include "tests/victims/victim.h"

using namespace victim;

namespace {

constexpr size_t page = 4096;
constexpr size_t burst = 128;  // pages between two looks at whether somebody wants a pause
constexpr size_t offsets[] = {1, 2047, 4095};

enum class Kind { anonymous, shared, file_shared, file_private };
constexpr const char* names[] = {"private", "shared", "shared file", "private file"};

unsigned char pattern(size_t index, size_t offset) {
    return static_cast<unsigned char>(index * 131 + offset * 7 + (index >> 8));
}

// The first byte of a page may be written while others look: the others are in other regions, but the compiler need not
// know.
struct Region {
    Kind kind = Kind::anonymous;
    size_t pages = 0;
    unsigned char* base = nullptr;
    unsigned char* alias = nullptr;  // a second mapping of a shared object: odd pages are written through it
    size_t next = 0;                 // the page that is bumped next
    unsigned char turn = 1;          // what it gets
};

// Between a writer and who looks at its region: `paused` is set by the writer alone while `wanted`.
struct Handshake {
    pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
    bool wanted = false;
    bool paused = false;
};

struct Writer {
    Region region;
    Handshake handshake;
    long pages_per_second = 0;
    bool moves = false;
    bool protects = false;
    pthread_t thread{};
    unsigned long passes = 0;
};

volatile bool ending = false;

void fill_page(unsigned char* at, size_t index) {
    at[0] = 0;
    for (const size_t offset : offsets) at[offset] = pattern(index, offset);
}

// A file with the pattern in it: pages of the private mapping that are not written stay clean.
int pattern_file(const std::string& path, size_t pages) {
    const int fd = open(path.c_str(), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    CHECK(fd >= 0);
    std::vector<unsigned char> content(page);
    for (size_t i = 0; i < pages; ++i) {
        fill_page(content.data(), i);
        CHECK(pwrite(fd, content.data(), page, static_cast<off_t>(i * page)) == static_cast<ssize_t>(page));
    }
    CHECK(fsync(fd) == 0);
    return fd;
}

void prepare(Region& region, Kind kind, size_t pages, const std::string& path) {
    region.kind = kind;
    region.pages = pages;
    const bool has_file = kind == Kind::file_shared || kind == Kind::file_private;
    const bool shared = kind == Kind::shared || kind == Kind::file_shared;
    const int fd = has_file ? pattern_file(path, pages) : -1;
    const int flags = (shared ? MAP_SHARED : MAP_PRIVATE) | (has_file ? 0 : MAP_ANONYMOUS);
    void* base = mmap(nullptr, pages * page, PROT_READ | PROT_WRITE, flags, fd, 0);
    CHECK(base != MAP_FAILED);
    region.base = region.alias = static_cast<unsigned char*>(base);
    if (!has_file)
        for (size_t i = 0; i < pages; ++i) fill_page(region.base + i * page, i);
    if (shared) {  // an old size of 0 makes a second mapping
        void* second = mremap(base, 0, pages * page, MREMAP_MAYMOVE);
        CHECK(second != MAP_FAILED && second != base);
        region.alias = static_cast<unsigned char*>(second);
    }
    if (fd >= 0) CHECK(close(fd) == 0);
}

void protect(const Region& region, int protection) {
    CHECK(mprotect(region.base, region.pages * page, protection) == 0);
    if (region.alias != region.base) CHECK(mprotect(region.alias, region.pages * page, protection) == 0);
}

unsigned char* moved(unsigned char* from, size_t bytes) {
    void* place = mmap(nullptr, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(place != MAP_FAILED);
    CHECK(mremap(from, bytes, bytes, MREMAP_MAYMOVE | MREMAP_FIXED, place) == place);
    return static_cast<unsigned char*>(place);
}

void move(Region& region) {
    const bool one = region.alias == region.base;
    region.base = moved(region.base, region.pages * page);
    region.alias = one ? region.base : region.alias;
}

// True at the end of a pass.
bool bump(Region& region, size_t count) {
    bool passed = false;
    while (count-- != 0) {
        unsigned char* at = region.next % 2 == 0 ? region.base : region.alias;
        *static_cast<volatile unsigned char*>(at + region.next * page) = region.turn;
        if (++region.next == region.pages) region.next = 0, ++region.turn, passed = true;
    }
    return passed;
}

[[noreturn]] void harmed(const Region& region, size_t index, const char* how, int found) {
    say("%s region at %p page %zu of %zu: %s, found %d, next %zu, turn %d", names[static_cast<int>(region.kind)],
        static_cast<void*>(region.base), index, region.pages, how, found, region.next, region.turn);
    victim::fail(__FILE__, __LINE__, "memory harmed", 0);
}

void look(const Region& region) {
    for (size_t i = 0; i < region.pages; ++i) {
        const auto expected = static_cast<unsigned char>(i < region.next ? region.turn : region.turn - 1);
        for (const unsigned char* base : {region.base, region.alias})
            if (base[i * page] != expected)
                harmed(region, i, base == region.base ? "a second edge" : "a second edge in the alias", base[i * page]);
        for (const size_t offset : offsets)
            if (region.base[i * page + offset] != pattern(i, offset))
                harmed(region, i, "pattern lost", region.base[i * page + offset]);
    }
}

// A writer comes here between two bursts; true if it had to wait.
void yield_to_checker(Handshake& handshake) {
    if (!__atomic_load_n(&handshake.wanted, __ATOMIC_ACQUIRE)) return;
    pthread_mutex_lock(&handshake.lock);
    while (handshake.wanted) {
        handshake.paused = true;
        pthread_cond_broadcast(&handshake.changed);
        pthread_cond_wait(&handshake.changed, &handshake.lock);
    }
    handshake.paused = false;
    pthread_cond_broadcast(&handshake.changed);
    pthread_mutex_unlock(&handshake.lock);
}

void pause_writer(Handshake& handshake) {
    pthread_mutex_lock(&handshake.lock);
    __atomic_store_n(&handshake.wanted, true, __ATOMIC_RELEASE);
    while (!handshake.paused) pthread_cond_wait(&handshake.changed, &handshake.lock);
    pthread_mutex_unlock(&handshake.lock);
}

void resume_writer(Handshake& handshake) {
    pthread_mutex_lock(&handshake.lock);
    __atomic_store_n(&handshake.wanted, false, __ATOMIC_RELEASE);
    pthread_cond_broadcast(&handshake.changed);
    while (handshake.paused) pthread_cond_wait(&handshake.changed, &handshake.lock);
    pthread_mutex_unlock(&handshake.lock);
}

void* write_on(void* argument) {
    Writer& writer = *static_cast<Writer*>(argument);
    const long rate = writer.pages_per_second;
    const size_t count = rate == 0 ? burst : std::clamp<size_t>(static_cast<size_t>(rate) / 200, 1, burst);
    while (!ending) {
        if (writer.protects) protect(writer.region, PROT_READ | PROT_WRITE);
        if (bump(writer.region, count) && ++writer.passes != 0 && writer.moves) move(writer.region);
        // Where the checker does not look: it needs to read.
        if (writer.protects) protect(writer.region, writer.passes % 2 == 0 ? PROT_READ : PROT_NONE);
        if (rate != 0) {
            const timespec rest{0, std::min(999999999L, 1000000000L / rate * static_cast<long>(count))};
            nanosleep(&rest, nullptr);
        }
        yield_to_checker(writer.handshake);
    }
    return nullptr;
}

void check(Writer& writer) {
    pause_writer(writer.handshake);
    if (writer.protects) protect(writer.region, PROT_READ);
    look(writer.region);
    resume_writer(writer.handshake);
}

}  // namespace

int main(int argc, char** argv) {
    Victim self(argc, argv);
    const auto count = static_cast<size_t>(self.number("writers", 4));
    const auto pages = static_cast<size_t>(self.number("mb", 4)) * 256;
    const std::string path = self.text("file", "/tmp/oracle");
    std::vector<std::unique_ptr<Writer>> writers;
    sigset_t ours;  // SIGTERM is for the main thread
    sigemptyset(&ours);
    sigaddset(&ours, SIGTERM);
    pthread_sigmask(SIG_BLOCK, &ours, nullptr);
    for (size_t i = 0; i < count; ++i) {
        auto writer = std::make_unique<Writer>();
        prepare(writer->region, static_cast<Kind>(i % 4), pages, path + "-" + std::to_string(i));
        writer->pages_per_second = self.number("pages-per-second", 0);
        writer->moves = self.flag("move");
        writer->protects = self.flag("protect");
        CHECK(pthread_create(&writer->thread, nullptr, write_on, writer.get()) == 0);
        writers.push_back(std::move(writer));
    }
    pthread_sigmask(SIG_UNBLOCK, &ours, nullptr);
    self.ready();
    size_t turn = 0;
    while (self.going(4)) check(*writers[turn++ % count]);
    for (const auto& writer : writers) check(*writer);
    ending = true;
    for (const auto& writer : writers) CHECK(pthread_join(writer->thread, nullptr) == 0);
    for (const auto& writer : writers) {
        if (writer->protects) protect(writer->region, PROT_READ);
        look(writer->region);
        CHECK(writer->region.turn != 1 || writer->region.next != 0);
    }
    return self.done();
}
