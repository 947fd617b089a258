// A process to migrate, of any size: memory, pages it keeps writing to, threads, mappings, descriptors.
//
// It knows what everything in it must be. On SIGTERM it checks all of it and writes "done" or "FAIL ..." to its log.
// While it lives it logs "beat NANOSECONDS WRITES" (CLOCK_REALTIME, which host changes leave alone) some 500 times a second, at most.
//
// The pages of the dirty set are written in order, all with one number, then all with the next. So at any moment there
// is one edge at most between pages of the new number and pages of the last; a page that was lost or is stale makes a second.
#include <dirent.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <pthread.h>
#include <string>
#include <vector>

namespace {

constexpr uint64_t page_size = 4096, words_per_page = page_size / sizeof(uint64_t);
constexpr uint64_t beat_ns = 2'000'000;
constexpr uint64_t slice_ns = 1'000'000;  // a paced writer sleeps between slices

struct Options {
    uint64_t memory_mib = 0, reserve_gib = 0;
    bool zero = false;                        // the content is zeros
    uint64_t dirty_pages = 0, dirty_rate = 0;  // pages per second; 0: as fast as it can
    int threads = 0, mappings = 0, descriptors = 0;
    std::string log;
};

Options options;
int log_fd = -1;
uint64_t* memory = nullptr;
uint64_t pages = 0;
uint64_t stride = 1;            // the dirty set is every stride-th page
uint64_t generation = 1, position = 0;
uint64_t writes = 0;
char* mapped = nullptr;
std::vector<int> descriptors;
volatile sig_atomic_t asked_to_end = 0;

__attribute__((format(printf, 1, 2))) void say(const char* format, ...) {
    char line[256];
    va_list arguments;
    va_start(arguments, format);
    const int length = vsnprintf(line, sizeof line, format, arguments);
    va_end(arguments);
    if (write(log_fd, line, static_cast<size_t>(length)) != length) _exit(3);
}

__attribute__((noreturn)) void die(const char* what) {
    say("FAIL %s: %s\n", what, strerror(errno));
    _exit(1);
}

// ---- memory ----

// Looks random, so that it does not compress.
uint64_t content(uint64_t index) {
    if (options.zero) return 0;
    uint64_t x = (index + 1) * 0x9e3779b97f4a7c15ull;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
    return x ^ (x >> 27);
}

void make_memory() {
    pages = options.memory_mib << 8;
    if (pages == 0) return;
    void* at = mmap(nullptr, pages * page_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (at == MAP_FAILED) die("memory");
    madvise(at, pages * page_size, MADV_NOHUGEPAGE);
    memory = static_cast<uint64_t*>(at);
    for (uint64_t i = 0; i < pages * words_per_page; ++i) memory[i] = content(i);
    if (options.dirty_pages > pages) options.dirty_pages = pages;
    if (options.dirty_pages != 0) stride = pages / options.dirty_pages;
    for (uint64_t i = 0; i < options.dirty_pages; ++i) memory[i * stride * words_per_page] = 0;
}

void write_next_page() {
    memory[position * stride * words_per_page] = generation;
    ++writes;
    if (++position == options.dirty_pages) position = 0, ++generation;
}

// Ends and middle of every page, all of every 16th.
void check_memory() {
    for (uint64_t page = 0; page < pages; ++page) {
        const bool dirty = options.dirty_pages != 0 && page % stride == 0 && page / stride < options.dirty_pages;
        const uint64_t step = page % 16 == 0 ? 1 : 255;
        for (uint64_t word = dirty ? 1 : 0; word < words_per_page; word += step) {
            const uint64_t index = page * words_per_page + word;
            if (memory[index] == content(index)) continue;
            say("FAIL page %lu, word %lu is %lx, must be %lx\n", page, word, memory[index], content(index));
            _exit(1);
        }
        const uint64_t expected = page / stride < position ? generation : generation - 1;
        if (!dirty || memory[page * words_per_page] == expected) continue;
        say("FAIL page %lu of the dirty set is of generation %lu, must be %lu\n", page / stride, memory[page * words_per_page], expected);
        _exit(1);
    }
}

// ---- everything else ----

void make_mappings() {
    if (options.mappings == 0) return;
    const size_t size = static_cast<size_t>(options.mappings) * page_size;
    mapped = static_cast<char*>(mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    if (mapped == MAP_FAILED) die("mappings");
    madvise(mapped, size, MADV_NOHUGEPAGE);
    for (int i = 0; i < options.mappings; ++i) memcpy(mapped + i * page_size, &i, sizeof i);
    // Neighbours of different protection are mappings of their own.
    for (int i = 1; i < options.mappings; i += 2)
        if (mprotect(mapped + i * page_size, page_size, PROT_READ) != 0) die("mprotect");
}

void make_descriptors() {
    rlimit limit{};
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
    for (int i = 0; i < options.descriptors; ++i) {
        const int fd = open("/dev/null", O_RDWR | O_CLOEXEC);
        if (fd < 0) die("descriptors");
        descriptors.push_back(fd);
    }
}

void make_threads() {
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, 65536);
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);  // SIGTERM is for the first thread
    const auto wait = [](void*) -> void* {
        for (;;) pause();
    };
    for (int i = 0; i < options.threads; ++i) {
        pthread_t thread;
        errno = pthread_create(&thread, &attributes, wait, nullptr);
        if (errno != 0) die("threads");
    }
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

int count_threads() {
    int count = 0;
    DIR* folder = opendir("/proc/self/task");
    if (folder == nullptr) die("/proc/self/task");
    while (const dirent* entry = readdir(folder)) count += entry->d_name[0] != '.';
    closedir(folder);
    return count;
}

void check_all() {
    check_memory();
    for (int i = 0; i < options.mappings; ++i)
        if (memcmp(mapped + i * page_size, &i, sizeof i) != 0) die("mapping");
    for (const int fd : descriptors)
        if (fcntl(fd, F_GETFD) != FD_CLOEXEC || write(fd, "x", 1) != 1) die("descriptor");
    if (count_threads() != options.threads + 1) die("number of threads");
}

// ---- life ----

uint64_t now_ns(clockid_t clock) {
    timespec time{};
    clock_gettime(clock, &time);
    return static_cast<uint64_t>(time.tv_sec) * 1'000'000'000 + static_cast<uint64_t>(time.tv_nsec);
}

void sleep_ns(uint64_t ns) {
    const timespec time{static_cast<time_t>(ns / 1'000'000'000), static_cast<long>(ns % 1'000'000'000)};
    nanosleep(&time, nullptr);
}

void live() {
    uint64_t next_beat = 0, last = now_ns(CLOCK_REALTIME);
    double owed = 0;
    while (!asked_to_end) {
        const uint64_t now = now_ns(CLOCK_REALTIME);
        if (now >= next_beat) {
            say("beat %lu %lu\n", now, writes);
            next_beat = now + beat_ns;
        }
        if (options.dirty_pages == 0) {
            sleep_ns(2'000'000);
        } else if (options.dirty_rate == 0) {
            for (int i = 0; i < 256; ++i) write_next_page();
        } else {
            // What was missed while it stood still is not made up for: at most 100 ms of it.
            const uint64_t passed = now - last < 100'000'000 ? now - last : 100'000'000;
            owed += static_cast<double>(options.dirty_rate) * static_cast<double>(passed) / 1e9;
            for (; owed >= 1; owed -= 1) write_next_page();
            sleep_ns(slice_ns);
        }
        last = now;
    }
}

bool parse(int argc, char** argv) {
    for (int i = 1; i + 1 < argc; i += 2) {
        const std::string name = argv[i];
        const char* value = argv[i + 1];
        const auto number = strtoull(value, nullptr, 10);
        if (name == "--memory-mib") options.memory_mib = number;
        else if (name == "--reserve-gib") options.reserve_gib = number;
        else if (name == "--content") options.zero = strcmp(value, "zero") == 0;
        else if (name == "--dirty-pages") options.dirty_pages = number;
        else if (name == "--dirty-per-second") options.dirty_rate = number;
        else if (name == "--threads") options.threads = static_cast<int>(number);
        else if (name == "--mappings") options.mappings = static_cast<int>(number);
        else if (name == "--descriptors") options.descriptors = static_cast<int>(number);
        else if (name == "--log") options.log = value;
        else return false;
    }
    return argc % 2 == 1 && !options.log.empty();
}

}  // namespace

int main(int argc, char** argv) {
    if (!parse(argc, argv)) {
        fprintf(stderr, "usage: bench_victim --log FILE [--memory-mib N] [--reserve-gib N] [--content random|zero] [--dirty-pages N]\n"
                        "                    [--dirty-per-second N] [--threads N] [--mappings N] [--descriptors N]\n");
        return 2;
    }
    log_fd = open(options.log.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
    if (log_fd < 0) return 2;
    struct sigaction action {};
    action.sa_handler = [](int) { asked_to_end = 1; };
    sigaction(SIGTERM, &action, nullptr);
    if (options.reserve_gib != 0 && mmap(nullptr, options.reserve_gib << 30, PROT_READ | PROT_WRITE,
                                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0) == MAP_FAILED)
        die("reservation");
    make_memory();
    make_mappings();
    make_descriptors();
    make_threads();
    say("ready\n");
    live();
    check_all();
    say("done\n");
    return 0;
}
