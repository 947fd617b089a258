// Layouts and processes made by hand, for tests of skeletons.
#pragma once

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>

#include <algorithm>
#include <csignal>
#include <cstring>
#include <ctime>
#include <filesystem>
#include <string>
#include <vector>

#include "common/base/file.h"
#include "common/kernel/proc.h"
#include "dest-agent/skeleton.h"

namespace godwit::hand_made {

using image::MappingRange;

constexpr uint64_t page = 4096;
constexpr uint64_t code_at = 0x400000;
constexpr uint64_t data_at = 0x10000000;
constexpr uint64_t heap_at = 0x20000000;
constexpr uint64_t stack_at = 0x7ffd00000000;
constexpr uint64_t vdso_area = 0x7ffe00000000;
constexpr uint64_t sa_restorer = 0x04000000;  // SA_RESTORER of the kernel

#define ASSERT_OK(...)                                                    \
    do {                                                                  \
        const auto& ok_ = (__VA_ARGS__);                                  \
        ASSERT_TRUE(ok_.has_value()) << ok_.error().what;                 \
    } while (false)

inline int64_t monotonic_ns() {
    timespec now{};
    ::clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1'000'000'000 + now.tv_nsec;
}

inline image::Clocks clocks_ahead(int64_t by_ns) {
    timespec boot{};
    ::clock_gettime(CLOCK_BOOTTIME, &boot);
    image::Clocks clocks;
    clocks.set_monotonic_ns(monotonic_ns() + by_ns);
    clocks.set_boottime_ns(boot.tv_sec * 1'000'000'000 + boot.tv_nsec + 2 * by_ns);
    return clocks;
}

inline bool exists(pid_t pid) { return ::kill(pid, 0) == 0; }

// Numbers below pid_max that nobody has, in descending order.
inline std::vector<pid_t> free_pids(size_t count) {
    std::vector<pid_t> pids;
    for (pid_t pid = std::atoi(read_file("/proc/sys/kernel/pid_max")->c_str()) - 1; pids.size() < count && pid > 1; --pid)
        if (!exists(pid) && errno == ESRCH) pids.push_back(pid);
    return pids;
}

inline MappingRange& add(image::Layout& layout, uint64_t start, uint64_t pages, image::MappingKind kind, int protection) {
    MappingRange& range = *layout.add_mappings();
    range.set_start(start);
    range.set_end(start + pages * page);
    range.set_kind(kind);
    range.set_protection(static_cast<uint32_t>(protection));
    return range;
}

// This kernel's [vvar] and [vdso], moved.
inline void add_vdso(image::Layout& layout) {
    const auto maps = read_maps(::getpid());
    uint64_t first = 0;
    for (const Vma& vma : *maps) {
        const bool vdso = vma.path == "[vdso]";
        if (!vdso && !vma.path.starts_with("[vvar")) continue;
        if (first == 0) first = vma.start;
        MappingRange& range = add(layout, vdso_area + (vma.start - first), vma.size() / page,
                                  vdso ? image::MAPPING_VDSO : image::MAPPING_VVAR, static_cast<int>(vma.protection));
        if (vdso) layout.set_vdso(range.start());
    }
}

inline image::Layout small_layout(size_t threads = 1) {
    image::Layout layout;
    for (const pid_t tid : free_pids(threads)) layout.add_tids(tid);
    layout.set_pid(layout.tids(0));
    layout.set_name("restored");
    const std::string program = std::filesystem::canonical("/bin/true");
    layout.set_executable(program);
    layout.add_files()->set_path(program);
    MappingRange& file = add(layout, code_at - page, 1, image::MAPPING_FILE_PRIVATE, PROT_READ);
    file.set_file(1);
    add(layout, code_at, 1, image::MAPPING_ANONYMOUS, PROT_READ | PROT_EXEC).set_accounted(true);
    add(layout, data_at, 4, image::MAPPING_ANONYMOUS, PROT_READ | PROT_WRITE);
    add(layout, heap_at, 8, image::MAPPING_ANONYMOUS, PROT_READ | PROT_WRITE);
    add(layout, stack_at, 32, image::MAPPING_ANONYMOUS, PROT_READ | PROT_WRITE).set_grows_down(true);
    add_vdso(layout);
    return layout;
}

inline image::MemoryMap small_memory_map() {
    image::MemoryMap map;
    map.set_start_code(code_at);
    map.set_end_code(code_at + 100);
    map.set_start_data(data_at);
    map.set_end_data(data_at + 100);
    map.set_start_brk(heap_at);
    map.set_brk(heap_at + 8 * page);
    map.set_start_stack(stack_at + 20 * page);
    map.set_arg_start(stack_at + 30 * page);
    map.set_arg_end(map.arg_start() + 10);
    map.set_env_start(map.arg_end());
    map.set_env_end(map.env_start() + 4);
    map.set_auxv(std::string(32, '\0'));
    return map;
}

inline image::Credentials own_credentials() {
    image::Credentials credentials;
    const Status status = *read_status(::getpid(), ::getpid());
    for (const int group : status_ids(status, "Groups")) credentials.add_groups(static_cast<uint32_t>(group));
    credentials.set_inheritable(status_hex(status, "CapInh"));
    credentials.set_permitted(status_hex(status, "CapPrm"));
    credentials.set_effective(status_hex(status, "CapEff"));
    credentials.set_bounding(status_hex(status, "CapBnd"));
    return credentials;
}

// Of a task that does nothing: this machine's size, initial values.
inline std::string some_xstate() {
    const pid_t child = ::fork();
    if (child == 0)
        for (;;) ::pause();
    std::string bytes;
    if (auto task = Tracee::seize(child)) {
        (void)task->interrupt();
        (void)task->wait_stopped(Deadline::in(milliseconds(5000)));
        bytes = task->xstate().value_or("");
    }
    ::kill(child, SIGKILL);
    ::waitpid(child, nullptr, 0);
    return bytes;
}

inline Registers start_registers(uint64_t rip) {
    Registers registers{};
    registers.rip = rip;
    registers.rsp = stack_at + 20 * page;
    registers.cs = 0x33;
    registers.ss = 0x2b;
    registers.eflags = 0x202;
    return registers;
}

inline image::Process simple_process(Skeleton& skeleton, uint64_t rip = code_at) {
    image::Process process;
    process.set_pid(skeleton.pid());
    *process.mutable_memory_map() = small_memory_map();
    process.set_working_directory("/tmp");
    process.set_umask(027);
    process.set_dumpable(1);
    process.set_core_filter(0x33);
    const std::string xstate = some_xstate();
    for (const int32_t tid : skeleton.layout().tids()) {
        image::Task& task = *process.add_tasks();
        task.set_tid(tid);
        task.set_name(fmt::format("task{}", process.tasks_size()));
        const Registers registers = start_registers(rip);
        task.set_registers(&registers, sizeof registers);
        task.set_xstate(xstate);
        task.set_alternate_stack_flags(SS_DISABLE);
        *task.mutable_credentials() = own_credentials();
    }
    return process;
}

struct Line {
    uint64_t start, end;
    uint32_t protection;
    bool shared;
    uint64_t offset;
    bool operator==(const Line&) const = default;
};
inline std::ostream& operator<<(std::ostream& out, const Line& line) {
    return out << fmt::format("{:x}-{:x} {} {} {:x}", line.start, line.end, line.protection, line.shared, line.offset);
}

inline std::vector<Line> expected_lines(const image::Layout& layout) {
    std::vector<Line> lines;
    for (const MappingRange& range : layout.mappings())
        lines.push_back({range.start(), range.end(), range.protection(),
                         range.kind() == image::MAPPING_OBJECT_SHARED || range.kind() == image::MAPPING_FILE_SHARED, range.offset()});
    return lines;
}

inline std::vector<Line> lines_of(Skeleton& skeleton, bool executor_gone = false) {
    std::vector<Line> lines;
    const auto maps = read_maps(skeleton.pid());
    for (const Vma& vma : *maps) {
        if (vma.path == "[vsyscall]") continue;
        if (!executor_gone) {
            const uint64_t executor = skeleton.remote().start().address();
            if (vma.start >= executor && vma.end <= executor + skeleton.remote().size()) continue;
        }
        lines.push_back({vma.start, vma.end, vma.protection, vma.shared, vma.offset});
    }
    return lines;
}

inline std::string read_back(pid_t pid, uint64_t at, size_t size) {
    std::string bytes(size, '\0');
    const auto memory = ProcessMemory::open(pid);
    if (!memory || !memory->read(RemotePtr(at), bytes.data(), size)) return "unreadable";
    return bytes;
}

inline uint64_t read_word(pid_t pid, uint64_t at) {
    uint64_t word = 0;
    std::memcpy(&word, read_back(pid, at, sizeof word).data(), sizeof word);
    return word;
}

inline std::string pages_of(char fill, size_t count) { return std::string(count * page, fill); }

inline Result<void> write(Skeleton& skeleton, uint64_t at, const std::string& bytes) {
    const PageRange range{at, bytes.size()};
    return skeleton.write({&range, 1}, reinterpret_cast<const std::byte*>(bytes.data()));
}

inline Result<void> write_code(Skeleton& skeleton, const std::vector<uint8_t>& code) {
    std::string bytes(page, '\0');
    std::memcpy(bytes.data(), code.data(), code.size());
    return write(skeleton, code_at, bytes);
}

class SkeletonTest : public testing::Test {
  protected:
    void SetUp() override {
        if (::geteuid() != 0) GTEST_SKIP() << "needs root";
        // Orphans come to us at once instead of to an init that may take its time.
        ::prctl(PR_SET_CHILD_SUBREAPER, 1);
    }
    void TearDown() override {
        while (::waitpid(-1, nullptr, WNOHANG | __WALL) > 0) continue;
        ::prctl(PR_SET_CHILD_SUBREAPER, 0);
    }
    static Result<Spawner> spawner(int64_t ahead_ns = 0) { return Spawner::start(clocks_ahead(ahead_ns), monotonic_ns(), GODWIT_BINARY); }
    static Result<Skeleton> build(const image::Layout& layout) {
        Spawner helper = TRY(spawner());
        return Skeleton::build(helper, layout);
    }
};

}  // namespace godwit::hand_made
