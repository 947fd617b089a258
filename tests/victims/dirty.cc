// Dirties memory at a rate: a counter in each page of a region, in order, over and over. --mb N (default 16),
// --mb-per-second N (default 0: as fast as it can). Everything else of a page is noise which must not change.
#include <sys/mman.h>

#include "tests/victims/victim.h"

using namespace victim;

namespace {

constexpr size_t words = 512;  // of a page
constexpr size_t slice = 64;   // pages between two looks at the clock

unsigned long noise(size_t seed) {
    unsigned long x = seed * 0x9e3779b97f4a7c15UL + 0x7f4a7c15UL;
    x ^= x >> 29;
    return x * 0xbf58476d1ce4e5b9UL;
}

}  // namespace

int main(int argc, char** argv) {
    Victim self(argc, argv);
    const auto pages = static_cast<size_t>(self.number("mb", 16)) * 256;
    const long rate = self.number("mb-per-second", 0) * 256;  // pages per second
    auto* memory = static_cast<unsigned long*>(
        mmap(nullptr, pages * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    CHECK(memory != MAP_FAILED);
    for (size_t i = 0; i < pages * words; ++i) memory[i] = i % words == 0 ? 0 : noise(i);
    self.ready();
    size_t next = 0;
    unsigned long turn = 1;
    do {
        const long long until = now_ns() + 10000000;
        long left = rate == 0 ? 1L << 40 : rate / 100;
        while (left > 0 && now_ns() < until)
            for (size_t i = 0; i < slice && left > 0; ++i, --left) {
                unsigned long* at = memory + next * words;
                CHECK(at[0] == turn - 1 && at[1 + turn % (words - 1)] == noise(next * words + 1 + turn % (words - 1)));
                at[0] = turn;
                if (++next == pages) next = 0, ++turn;
            }
        // Without a rate it leaves the processor for as long as it takes to report.
    } while (self.going(rate == 0 ? 0 : 10));
    for (size_t i = 0; i < pages; ++i) CHECK(memory[i * words] == (i < next ? turn : turn - 1));
    for (size_t i = 0; i < pages * words; ++i) CHECK(i % words == 0 || memory[i] == noise(i));
    return self.done();
}
