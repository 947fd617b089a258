// Has used up what a process may have. --descriptors: no descriptor number is free. --mappings N: all but N of
// vm.max_map_count are in use. It checks that both stays so, and what its mappings hold.
#include <sys/mman.h>
#include <sys/resource.h>

#include <vector>

#include "tests/victims/victim.h"

using namespace victim;

namespace {

constexpr size_t page = 4096;

size_t number_in(const char* path) {
    char text[32] = {};
    const int fd = open(path, O_RDONLY | O_CLOEXEC);
    CHECK(fd >= 0 && read(fd, text, sizeof text - 1) > 0 && close(fd) == 0);
    return strtoul(text, nullptr, 10);
}

size_t mappings() {
    FILE* maps = fopen("/proc/self/maps", "re");
    CHECK(maps != nullptr);
    size_t count = 0;
    for (int c; (c = fgetc(maps)) != EOF;) count += c == '\n';
    fclose(maps);
    return count;
}

// Every second page has another protection: none of the mappings can merge.
unsigned char* use_up_mappings(size_t count) {
    void* at = mmap(nullptr, count * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(at != MAP_FAILED);
    auto* base = static_cast<unsigned char*>(at);
    for (size_t i = 0; i < count; i += 16) base[i * page] = static_cast<unsigned char>(i / 16 + 1);
    for (size_t i = 1; i + 1 < count; i += 2) CHECK(mprotect(base + i * page, page, PROT_READ) == 0);
    return base;
}

void use_up_descriptors() {
    const rlimit limit{48, 48};
    CHECK(setrlimit(RLIMIT_NOFILE, &limit) == 0);
    while (open("/dev/null", O_RDONLY) >= 0) {
    }
    CHECK(errno == EMFILE);
}

}  // namespace

int main(int argc, char** argv) {
    Victim self(argc, argv);
    const bool no_descriptors = self.flag("descriptors");
    size_t count = 0;
    unsigned char* base = nullptr;
    if (self.flag("mappings")) {
        count = number_in("/proc/sys/vm/max_map_count") - static_cast<size_t>(self.number("mappings", 0)) - mappings();
        base = use_up_mappings(count);
    }
    if (no_descriptors) use_up_descriptors();
    self.ready();
    unsigned char turn = 0;
    do {
        if (no_descriptors) CHECK(open("/dev/null", O_RDONLY) == -1 && errno == EMFILE);
        ++turn;
        for (size_t i = 0; i < count; i += 16) {
            CHECK(base[i * page] == static_cast<unsigned char>(i / 16 + 1));
            CHECK(turn == 1 || base[i * page + 1] == static_cast<unsigned char>(turn - 1));
            base[i * page + 1] = turn;
        }
    } while (self.going(10));
    return self.done();
}
