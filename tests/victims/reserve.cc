// Reserves much and touches little, as the arenas of JVM and V8 do: 64 GiB PROT_NONE and 64 GiB MAP_NORESERVE (--gib N
// changes both), of which a few pages are touched, and now and then one more. --touch-mb N is touched at the start and
// holds noise (default 0).
#include <sys/mman.h>

#include <vector>

#include "tests/victims/victim.h"

using namespace victim;

namespace {

constexpr size_t page = 4096;

unsigned char* reserve(size_t bytes, int protection, int flags) {
    void* at = mmap(nullptr, bytes, protection, flags | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    CHECK(at != MAP_FAILED);
    return static_cast<unsigned char*>(at);
}

unsigned long noise(size_t seed) {
    unsigned long x = seed * 0x9e3779b97f4a7c15UL + 0x7f4a7c15UL;
    x ^= x >> 29;
    return x * 0xbf58476d1ce4e5b9UL;
}

// Pages far apart, none of them twice before `gib` GiB are full of them.
size_t place(size_t number, size_t gib) { return (number * 0x25d3f3 + 77) % (gib << 18) * page; }

}  // namespace

int main(int argc, char** argv) {
    Victim self(argc, argv);
    const auto gib = static_cast<size_t>(self.number("gib", 64));
    unsigned char* none = reserve(gib << 30, PROT_NONE, MAP_PRIVATE);
    unsigned char* sparse = reserve(gib << 30, PROT_READ | PROT_WRITE, MAP_PRIVATE);
    unsigned char* shared = reserve(gib << 30, PROT_READ | PROT_WRITE, MAP_SHARED);
    // Committed out of the reservation, as an allocator does.
    CHECK(mprotect(none + (gib << 29), 64 * page, PROT_READ | PROT_WRITE) == 0);
    memset(none + (gib << 29), 0x77, 64 * page);
    const auto touched = static_cast<size_t>(self.number("touch-mb", 0)) << 17;  // words
    auto* dense = reinterpret_cast<unsigned long*>(sparse);
    for (size_t i = 0; i < touched; ++i) dense[i] = noise(i);
    unsigned char* scattered = sparse + touched * 8;
    const size_t room = gib - (touched >> 27) - 1;
    size_t count = 0;
    CHECK(room > 0);
    self.ready();
    size_t turn = 0;
    do {
        if (count < 400 && ++turn % 8 == 1) {
            CHECK(scattered[place(count, room)] == 0);
            scattered[place(count, room)] = static_cast<unsigned char>(count + 1);
            shared[place(count, gib)] = static_cast<unsigned char>(count + 1);
            ++count;
        }
        for (size_t i = 0; i < count; ++i) {
            CHECK(scattered[place(i, room)] == static_cast<unsigned char>(i + 1) &&
                  shared[place(i, gib)] == static_cast<unsigned char>(i + 1));
            CHECK(scattered[place(i, room) + 1] == 0);
        }
        for (size_t i = 0; i < 64 * page; i += 512) CHECK(none[(gib << 29) + i] == 0x77);
    } while (self.going(10));
    for (size_t i = 0; i < touched; ++i) CHECK(dense[i] == noise(i));
    return self.done();
}
