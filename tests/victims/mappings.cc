// Changes its layout all the time, in every way there is, and knows what each page must hold.
//
// --threads N workers (default 3), each with some mappings of its own. A step picks one of them and one change:
// unmapped and mapped anew at the same place, mapped over, grown, shrunk, moved, split by a hole or by a protection,
// merged again, discarded (MADV_DONTNEED, FREE, REMOVE), advised, locked. The first worker moves the end of the heap,
// the main thread's stack grows by recursion, and a MAP_GROWSDOWN mapping grows by faults. After every step some of the
// pages are looked at, at the end all of them. --file PATH: where files to map are made. --rest-ms N between steps
// (default 1).
#include <pthread.h>
#include <sys/mman.h>

#include <algorithm>
#include <vector>

#include "tests/victims/victim.h"

using namespace victim;

namespace {

constexpr size_t page = 4096;
constexpr size_t most_pages = 96;
constexpr size_t marks[] = {0, 255, 511};  // words of a page that hold its stamp
volatile bool ending = false;

struct Random {
    unsigned long state;
    unsigned long operator()(unsigned long below) {
        state ^= state << 13, state ^= state >> 7, state ^= state << 17;
        return state % below;
    }
};

// What a page holds: a stamp in each marked word, 0: nothing. `may_be_zero`: after MADV_FREE, until it is written or
// seen.
struct Page {
    unsigned long stamp = 0;
    bool may_be_zero = false;
};

unsigned long* words(unsigned char* at) { return reinterpret_cast<unsigned long*>(at); }

enum class Kind { anonymous, shared, file };

class Area {
  public:
    Area(Random& random, Kind kind, int fd) : random_(random), kind_(kind), fd_(fd) { map_anywhere(8 + random_(40)); }

    void step() {
        switch (random_(18)) {
            case 0:
                return map_over();
            case 1:
                return map_anew();
            case 2:
                return grow();
            case 3:
                return shrink();
            case 4:
                return move();
            case 5:
                return punch();
            case 6:
                return hide(PROT_NONE);
            case 7:
                return hide(PROT_READ);
            case 8:
                return discard();
            case 9:
                return let_go();
            case 10:
                return remove();
            case 11:
                return advise();
            case 12:
                return lock();
            case 13:
                return leave_behind();
            case 14:
                return map_anywhere_else();
            default:
                return write_some(1 + random_(pages_.size()));
        }
    }
    void look(size_t from, size_t count) {
        for (size_t i = from; i < std::min(from + count, pages_.size()); ++i) look_at(i);
    }
    void look_at_some() { look(random_(pages_.size()), 12); }
    void look_at_all() { look(0, pages_.size()); }

  private:
    size_t bytes() const { return pages_.size() * page; }
    unsigned char* at(size_t index) const { return base_ + index * page; }
    int flags() const {
        return kind_ == Kind::shared ? MAP_SHARED | MAP_ANONYMOUS
               : kind_ == Kind::file ? MAP_PRIVATE
                                     : MAP_PRIVATE | MAP_ANONYMOUS;
    }
    unsigned long fresh_stamp(size_t index) { return file_stamp(index) + 0x1000000UL * (++turn_); }
    unsigned long file_stamp(size_t index) const { return 0xabc000 + index; }

    void* map(void* where, size_t count, int extra, size_t first = 0) {
        return mmap(where, count * page, PROT_READ | PROT_WRITE, flags() | extra, fd_,
                    fd_ < 0 ? 0 : static_cast<off_t>(first * page));
    }
    Page as_mapped(size_t index) const { return {kind_ == Kind::file ? file_stamp(index) : 0, false}; }
    void all_new(size_t count) {
        pages_.clear();
        for (size_t i = 0; i < count; ++i) pages_.push_back(as_mapped(i));
    }
    void map_anywhere(size_t count) {
        void* where = map(nullptr, count, 0);
        CHECK(where != MAP_FAILED);
        base_ = static_cast<unsigned char*>(where);
        all_new(count);
        write_some(count / 2);
    }
    void write(size_t index) {
        pages_[index] = {fresh_stamp(index), false};
        for (const size_t mark : marks) words(at(index))[mark] = pages_[index].stamp;
    }
    void write_some(size_t count) {
        const size_t from = random_(pages_.size());
        for (size_t i = from; i < std::min(from + count, pages_.size()); ++i) write(i);
    }
    void look_at(size_t index) {
        const unsigned long found = words(at(index))[marks[0]];
        Page& expected = pages_[index];
        if (found == 0 && expected.may_be_zero) expected.stamp = 0;
        for (const size_t mark : marks)
            if (words(at(index))[mark] != expected.stamp) {
                say("kind %d page %zu of %zu at %p word %zu: %lx, expected %lx; last step %s", static_cast<int>(kind_),
                    index, pages_.size(), static_cast<void*>(at(index)), mark, words(at(index))[mark], expected.stamp,
                    step_);
                CHECK(!"content lost");
            }
    }

    // The text in /proc/PID/maps stays as it was, the content goes.
    void map_over() {
        step_ = "map over";
        CHECK(map(base_, pages_.size(), MAP_FIXED) == base_);
        all_new(pages_.size());
        write_some(pages_.size() / 2);
    }
    void map_anew() {
        step_ = "map anew";
        CHECK(munmap(base_, bytes()) == 0);
        const size_t count = pages_.size();
        // Another thread may have taken the place.
        if (map(base_, count, MAP_FIXED_NOREPLACE) != base_) return map_anywhere(count);
        all_new(count);
        write_some(3);
    }
    void grow() {
        step_ = "grow";
        if (kind_ == Kind::shared) return;  // the object would not grow with it
        const size_t before = pages_.size();
        const size_t now = std::min(most_pages, before + 1 + random_(16));
        void* where = mremap(base_, bytes(), now * page, MREMAP_MAYMOVE);
        if (where == MAP_FAILED) return in_parts();
        base_ = static_cast<unsigned char*>(where);
        for (size_t i = before; i < now; ++i) pages_.push_back(as_mapped(i));
        for (size_t i = before; i < now; i += 2) write(i);
    }
    void shrink() {
        step_ = "shrink";
        const size_t now = std::max<size_t>(4, pages_.size() - random_(8));
        if (now >= pages_.size()) return;
        if (random_(2) == 0)
            CHECK(mremap(base_, bytes(), now * page, 0) == base_);
        else
            CHECK(munmap(at(now), bytes() - now * page) == 0);
        pages_.resize(now);
    }
    unsigned char* free_place() {
        void* place = mmap(nullptr, bytes(), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        CHECK(place != MAP_FAILED);
        return static_cast<unsigned char*>(place);
    }
    void move() {
        step_ = "move";
        unsigned char* place = free_place();
        if (mremap(base_, bytes(), bytes(), MREMAP_MAYMOVE | MREMAP_FIXED, place) != place) {
            in_parts();
            CHECK(munmap(place, bytes()) == 0);
            return;
        }
        base_ = place;
    }
    // mremap(2) takes one mapping as the kernel has it, and parts that were apart need not have become one again.
    void in_parts() {
        CHECK(errno == EFAULT);
        map_over();
    }
    // The content moves, the mapping stays, empty, and is the one that is used on.
    void leave_behind() {
        step_ = "leave behind";
        if (kind_ != Kind::anonymous) return;
        void* place = mremap(base_, bytes(), bytes(), MREMAP_MAYMOVE | MREMAP_DONTUNMAP);
        if (place == MAP_FAILED) return in_parts();
        std::swap(base_, reinterpret_cast<unsigned char*&>(place));
        look_at_some();
        CHECK(munmap(base_, bytes()) == 0);
        base_ = static_cast<unsigned char*>(place);
        all_new(pages_.size());
        write_some(4);
    }
    void map_anywhere_else() {
        step_ = "map elsewhere";
        CHECK(munmap(base_, bytes()) == 0);
        map_anywhere(4 + random_(60));
    }
    // A hole in the middle, filled again at once or by a mapping that merges with its neighbours.
    void punch() {
        step_ = "punch";
        const auto [from, count] = part();
        CHECK(munmap(at(from), count * page) == 0);
        sleep_ms(1);
        if (kind_ == Kind::shared || map(at(from), count, MAP_FIXED_NOREPLACE, from) != at(from)) {
            // The place was taken, or would be another object: what is left goes, too.
            if (from != 0) CHECK(munmap(base_, from * page) == 0);
            if (from + count != pages_.size())
                CHECK(munmap(at(from + count), (pages_.size() - from - count) * page) == 0);
            return map_anywhere(pages_.size());
        }
        for (size_t i = from; i < from + count; ++i) pages_[i] = as_mapped(i);
        if (random_(2) == 0) write(from);
    }
    void hide(int protection) {
        step_ = protection == PROT_NONE ? "PROT_NONE" : "PROT_READ";
        const auto [from, count] = part();
        for (size_t i = from; i < from + count; i += 3) write(i);
        CHECK(mprotect(at(from), count * page, protection) == 0);
        sleep_ms(static_cast<long>(random_(4)));
        CHECK(mprotect(at(from), count * page, PROT_READ | PROT_WRITE) == 0);
        look(from, count);
    }
    void discard() {
        step_ = "MADV_DONTNEED";
        const auto [from, count] = part();
        CHECK(madvise(at(from), count * page, MADV_DONTNEED) == 0);
        if (kind_ == Kind::shared) return;
        for (size_t i = from; i < from + count; ++i) pages_[i] = as_mapped(i);
    }
    void let_go() {
        step_ = "MADV_FREE";
        if (kind_ != Kind::anonymous) return;
        const auto [from, count] = part();
        CHECK(madvise(at(from), count * page, MADV_FREE) == 0);
        for (size_t i = from; i < from + count; ++i) pages_[i].may_be_zero = true;
    }
    void remove() {
        step_ = "MADV_REMOVE";
        if (kind_ != Kind::shared) return;
        const auto [from, count] = part();
        CHECK(madvise(at(from), count * page, MADV_REMOVE) == 0);
        for (size_t i = from; i < from + count; ++i) pages_[i] = {};
    }
    void advise() {
        step_ = "advise";
        constexpr int pairs[][2] = {{MADV_HUGEPAGE, MADV_NOHUGEPAGE}, {MADV_DONTFORK, MADV_DOFORK},
                                    {MADV_DONTDUMP, MADV_DODUMP},     {MADV_SEQUENTIAL, MADV_NORMAL},
                                    {MADV_RANDOM, MADV_NORMAL},       {MADV_WIPEONFORK, MADV_KEEPONFORK}};
        const int choice = static_cast<int>(random_(kind_ == Kind::anonymous ? 6 : 5));
        const auto [from, count] = part();
        CHECK(madvise(at(from), count * page, pairs[choice][0]) == 0);
        sleep_ms(1);
        CHECK(madvise(at(from), count * page, pairs[choice][1]) == 0);
    }
    void lock() {
        step_ = "lock";
        const auto [from, count] = part();
        if (mlock(at(from), count * page) != 0) return;  // limits are the host's
        sleep_ms(1);
        CHECK(munlock(at(from), count * page) == 0);
    }
    struct Part {
        size_t from;
        size_t count;
    };
    Part part() {
        const size_t from = random_(pages_.size());
        return {from, 1 + random_(pages_.size() - from)};
    }

    Random& random_;
    Kind kind_;
    int fd_;
    unsigned char* base_ = nullptr;
    std::vector<Page> pages_;
    unsigned long turn_ = 0;
    const char* step_ = "begin";
};

int make_file(const std::string& path) {
    const int fd = open(path.c_str(), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    CHECK(fd >= 0);
    std::vector<unsigned long> content(page / 8);
    for (size_t i = 0; i < most_pages; ++i) {
        for (const size_t mark : marks) content[mark] = 0xabc000 + i;
        CHECK(write(fd, content.data(), page) == static_cast<ssize_t>(page));
    }
    CHECK(fsync(fd) == 0);
    return fd;
}

// The heap grows and shrinks. Nobody else moves its end: the worker is alone in doing so, and malloc never shrinks what
// it did not get itself.
void move_heap_end(Random& random) {
    const size_t bytes = (1 + random(64)) * page;
    auto* start = static_cast<unsigned char*>(sbrk(static_cast<intptr_t>(bytes)));
    CHECK(start != reinterpret_cast<void*>(-1));
    for (size_t i = 0; i < bytes; i += 512) CHECK(start[i] == 0);
    memset(start, 0x42, bytes);
    sleep_ms(1);
    for (size_t i = 0; i < bytes; i += 512) CHECK(start[i] == 0x42);
    CHECK(brk(start) == 0);
}

// A mapping that grows by faults below it. It lies where no mapping comes by itself.
void grow_downwards(Random& random) {
    constexpr size_t start = 4;
    unsigned char* where = reinterpret_cast<unsigned char*>(0x1000000000UL);
    CHECK(mmap(where, start * page, PROT_READ | PROT_WRITE,
               MAP_PRIVATE | MAP_ANONYMOUS | MAP_GROWSDOWN | MAP_FIXED_NOREPLACE, -1, 0) == where);
    const size_t depth = 1 + random(100);
    for (size_t i = 0; i < depth; ++i) where[-static_cast<long>(i * page) - 1] = static_cast<unsigned char>(i + 1);
    sleep_ms(2);
    for (size_t i = 0; i < depth; ++i)
        CHECK(where[-static_cast<long>(i * page) - 1] == static_cast<unsigned char>(i + 1));
    CHECK(munmap(where - depth * page, (depth + start) * page) == 0);
}

[[gnu::noinline]] unsigned long recurse(unsigned long depth) {
    volatile unsigned char buffer[page];
    buffer[depth % page] = static_cast<unsigned char>(depth);
    if (depth == 0) sleep_ms(1);
    const unsigned long below = depth == 0 ? 0 : recurse(depth - 1);
    CHECK(buffer[depth % page] == static_cast<unsigned char>(depth));
    return below + 1;
}

struct Worker {
    size_t number = 0;
    std::string path;
    long rest_ms = 1;
    pthread_t thread{};
};

void* work(void* argument) {
    const Worker& worker = *static_cast<Worker*>(argument);
    Random random{0x9e3779b97f4a7c15UL * (worker.number + 1)};
    const int fd = make_file(worker.path + "-" + std::to_string(worker.number));
    std::vector<Area> areas;
    for (const Kind kind : {Kind::anonymous, Kind::anonymous, Kind::shared, Kind::file})
        areas.emplace_back(random, kind, kind == Kind::file ? fd : -1);
    while (!ending) {
        Area& area = areas[random(areas.size())];
        area.step();
        area.look_at_some();
        if (worker.number == 0 && random(8) == 0) move_heap_end(random);
        if (worker.number == 0 && random(8) == 1) grow_downwards(random);
        sleep_ms(worker.rest_ms);
    }
    for (Area& area : areas) area.look_at_all();
    return nullptr;
}

}  // namespace

int main(int argc, char** argv) {
    Victim self(argc, argv);
    std::vector<Worker> workers(static_cast<size_t>(self.number("threads", 3)));
    sigset_t ours;
    sigemptyset(&ours);
    sigaddset(&ours, SIGTERM);
    pthread_sigmask(SIG_BLOCK, &ours, nullptr);
    for (size_t i = 0; i < workers.size(); ++i) {
        workers[i].number = i;
        workers[i].path = self.text("file", "/tmp/mappings");
        workers[i].rest_ms = self.number("rest-ms", 1);
        CHECK(pthread_create(&workers[i].thread, nullptr, work, &workers[i]) == 0);
    }
    pthread_sigmask(SIG_UNBLOCK, &ours, nullptr);
    self.ready();
    Random random{7};
    while (self.going(2)) {
        const unsigned long depth = 20 + random(200);
        CHECK(recurse(depth) == depth + 1);
    }
    ending = true;
    for (const Worker& worker : workers) CHECK(pthread_join(worker.thread, nullptr) == 0);
    return self.done();
}
