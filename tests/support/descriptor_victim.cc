#include "tests/support/descriptor_victim.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <filesystem>

#include "common/kernel/proc.h"
#include "common/kernel/tree_clock.h"

namespace godwit::test {
namespace {

constexpr uint64_t page = 4096;

image::MappingRange& add(image::Layout& layout, uint64_t start, uint64_t size, image::MappingKind kind, uint32_t protection) {
    auto& range = *layout.add_mappings();
    range.set_start(start);
    range.set_end(start + size);
    range.set_kind(kind);
    range.set_protection(protection);
    return range;
}

// This kernel's pages of time and code, where no program has them.
void add_vdso(image::Layout& layout) {
    constexpr uint64_t place = 0x7ffe00000000;
    uint64_t first = 0;
    const auto maps = read_maps(::getpid());
    for (const Vma& vma : *maps) {
        const bool vdso = vma.path == "[vdso]";
        if (!vdso && !vma.path.starts_with("[vvar")) continue;
        if (first == 0) first = vma.start;
        add(layout, place + (vma.start - first), vma.size(), vdso ? image::MAPPING_VDSO : image::MAPPING_VVAR, vma.protection);
        if (vdso) layout.set_vdso(place + (vma.start - first));
    }
}

image::Layout bare_layout(pid_t pid) {
    constexpr uint64_t code = 0x400000, data = 0x10000000, stack = 0x7ffd00000000;
    image::Layout layout;
    layout.set_pid(pid);
    layout.add_tids(pid);
    layout.set_name("restored");
    layout.set_executable(std::filesystem::canonical("/bin/true").string());
    add(layout, code, page, image::MAPPING_ANONYMOUS, PROT_READ | PROT_WRITE);
    add(layout, data, 4 * page, image::MAPPING_ANONYMOUS, PROT_READ | PROT_WRITE);
    add(layout, stack, 8 * page, image::MAPPING_ANONYMOUS, PROT_READ | PROT_WRITE);
    add_vdso(layout);
    return layout;
}

pid_t free_pid() {
    for (pid_t pid = 31'000; pid > 300; --pid)
        if (::kill(pid, 0) != 0 && errno == ESRCH) return pid;
    return 0;
}

}  // namespace

int* DescriptorVictim::notes_ = nullptr;

DescriptorVictim::DescriptorVictim(const std::function<bool()>& make) {
    constexpr size_t slots = 16;
    notes_ = static_cast<int*>(::mmap(nullptr, page, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
    pid_ = ::fork();
    if (pid_ == 0) {
        ::prctl(PR_SET_PDEATHSIG, SIGKILL);
        ::signal(SIGPIPE, SIG_IGN);
        const int null = ::open("/dev/null", O_RDWR);
        for (const int fd : {0, 1, 2}) ::dup2(null, fd);
        ::close_range(3, ~0u, 0);
        notes_[slots] = make() ? 1 : 2;
        for (;;) ::pause();
    }
    // Told through shared memory: a pipe to us would be one of the things that are looked at.
    for (int i = 0; i < 10'000 && __atomic_load_n(&notes_[slots], __ATOMIC_ACQUIRE) == 0; ++i) {
        constexpr timespec moment{0, 1'000'000};
        ::nanosleep(&moment, nullptr);
    }
    ready_ = notes_[slots] == 1;
}

DescriptorVictim::~DescriptorVictim() {
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
    ::munmap(notes_, page);
}

std::vector<std::string> DescriptorVictim::refusals(const CollectOptions& options, image::Plan* plan) const {
    Problems problems;
    image::Plan unused;
    const auto done = survey_files(Tree{pid_, {pid_}}, options, plan != nullptr ? *plan : unused, problems);
    if (!done) return {"survey failed: " + done.error().what};
    std::vector<std::string> out;
    for (const Problem& problem : problems) out.push_back(problem.what);
    return out;
}

Result<image::Files> DescriptorVictim::collect(const CollectOptions& options) const {
    return collect_from(pid_, nullptr, options);
}

Result<image::Files> collect_from(pid_t pid, Remote* remote, const CollectOptions& options) {
    StoppedProcess process;
    process.pid = pid;
    std::vector<Subject> subjects(1);
    subjects[0].process = &process;
    subjects[0].remote = remote;
    subjects[0].pid_inside = pid;
    return collect_files(subjects, options);
}

Result<Skeleton> bare_skeleton() {
    image::Clocks clocks;
    clocks.set_monotonic_ns(own_clock(CLOCK_MONOTONIC) + 1000'000'000'000);
    clocks.set_boottime_ns(own_clock(CLOCK_BOOTTIME) + 1000'000'000'000);
    Spawner spawner = TRY(Spawner::start(clocks, own_clock(CLOCK_MONOTONIC), GODWIT_BINARY));
    return Skeleton::build(spawner, bare_layout(free_pid()));
}

}  // namespace godwit::test
