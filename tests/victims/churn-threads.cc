// Threads are born and die all the time. --threads N are alive at once (default 6). Each checks its own thread-local
// variable and its stack over a few rests, and hands over a result which is checked when it is joined.
#include <pthread.h>
#include <sys/syscall.h>

#include <vector>

#include "tests/victims/victim.h"

using namespace victim;

namespace {

constexpr size_t stack_bytes = 48 * 1024;

thread_local unsigned long mine = 0x5eed;       // initialised data: must be so in each new thread
thread_local unsigned long untouched[64] = {};  // zeros

unsigned long mix(unsigned long x) {
    x ^= x >> 31;
    x *= 0x7fb5d329728ea185UL;
    return x ^ x >> 27;
}

unsigned long life(unsigned long seed) {
    unsigned char buffer[stack_bytes];
    for (size_t i = 0; i < stack_bytes; ++i) buffer[i] = static_cast<unsigned char>(seed + i * 13);
    asm volatile("" ::"r"(buffer) : "memory");
    const auto tid = syscall(SYS_gettid);
    for (unsigned long turn = 0; turn <= seed % 6; ++turn) {
        mine = mix(mine + seed);
        sleep_ms(static_cast<long>(seed % 4));
        asm volatile("" ::"r"(buffer) : "memory");
        for (size_t i = 0; i < stack_bytes; i += 97) CHECK(buffer[i] == static_cast<unsigned char>(seed + i * 13));
        for (const unsigned long word : untouched) CHECK(word == 0);
        CHECK(syscall(SYS_gettid) == tid);
    }
    return mine;
}

unsigned long expected(unsigned long seed) {
    unsigned long value = 0x5eed;
    for (unsigned long turn = 0; turn <= seed % 6; ++turn) value = mix(value + seed);
    return value;
}

void* live(void* seed) {
    CHECK(mine == 0x5eed);
    return reinterpret_cast<void*>(life(reinterpret_cast<unsigned long>(seed)));
}

struct Slot {
    pthread_t thread{};
    unsigned long seed = 0;
};

void start(Slot& slot, unsigned long seed) {
    slot.seed = seed;
    CHECK(pthread_create(&slot.thread, nullptr, live, reinterpret_cast<void*>(seed)) == 0);
}

void join(const Slot& slot) {
    void* result = nullptr;
    CHECK(pthread_join(slot.thread, &result) == 0);
    CHECK(reinterpret_cast<unsigned long>(result) == expected(slot.seed));
}

}  // namespace

int main(int argc, char** argv) {
    Victim self(argc, argv);
    std::vector<Slot> slots(static_cast<size_t>(self.number("threads", 6)));
    unsigned long seed = 1;
    for (Slot& slot : slots) start(slot, mix(seed++));
    self.ready();
    size_t next = 0;
    while (self.going(1)) {
        Slot& slot = slots[next++ % slots.size()];
        join(slot);
        start(slot, mix(seed++));
    }
    for (const Slot& slot : slots) join(slot);
    return self.done();
}
