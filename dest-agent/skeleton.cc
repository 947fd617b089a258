#include "dest-agent/skeleton.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <linux/prctl.h>
#include <linux/sched.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include <csignal>
#include <ctime>

#include "common/kernel/abi.h"
#include "common/kernel/proc.h"
#include "dest-agent/named_calls.h"
#include "dest-agent/skeleton_state.h"

namespace godwit {
namespace {

constexpr milliseconds patience{30'000};
constexpr uint64_t executor_room = 16 << 20;  // more than any executor takes
constexpr size_t most_threads_at_once = 1000;

bool is_vdso(const Vma& vma) { return vma.path == "[vdso]" || vma.path.starts_with("[vvar"); }

// The calls that the executor makes with the layout's addresses must find none of them taken, by it or by the stub.
Result<RemotePtr> place_for_executor(const image::Layout& layout) {
    std::vector<Span> taken = spans_of(layout);
    for (const Vma& vma : TRY(read_maps(layout.pid()))) taken.push_back({vma.start, vma.end});
    return RemotePtr(TRY(free_range(std::move(taken), executor_room)));
}

// The kernel decides how large its pages beside the vDSO are; code that was compiled against others would read nonsense.
Result<void> check_vdso_place(const image::Layout& layout) {
    std::vector<std::pair<uint64_t, uint64_t>> here, there;
    for (const Vma& vma : TRY(read_maps(layout.pid())))
        if (is_vdso(vma)) here.emplace_back(vma.start, vma.end);
    for (const auto& range : layout.mappings())
        if (range.kind() == image::MAPPING_VDSO || range.kind() == image::MAPPING_VVAR) there.emplace_back(range.start(), range.end());
    if (!here.empty() && here.front().first == there.front().first && here.back() == there.back()) return {};
    return unsupported(fmt::format("the vDSO of process {} at {:#x} cannot be placed by this kernel", layout.pid(), layout.vdso()),
                       "both hosts must run the same kernel version");
}

}  // namespace

Skeleton::Skeleton(std::unique_ptr<State> state) : state_(std::move(state)) {}
Skeleton::Skeleton(Skeleton&&) noexcept = default;
Skeleton& Skeleton::operator=(Skeleton&&) noexcept = default;
Skeleton::~Skeleton() = default;

pid_t Skeleton::pid() const { return state_->layout.pid(); }
const image::Layout& Skeleton::layout() const { return state_->layout; }
Remote& Skeleton::remote() { return *state_->remote; }
std::vector<Tracee>& Skeleton::tasks() { return state_->tasks; }
void Skeleton::release() { state_->released = true; }

Result<Skeleton> Skeleton::build(Spawner& spawner, const image::Layout& layout) {
    TRY(check_layout(layout));
    auto state = std::make_unique<State>();
    state->layout = layout;
    TRY(state->start(spawner));
    // From here on its end is ours: ~State kills it.
    TRY(state->clear());
    TRY(state->make_mappings());
    TRY(state->set_memory_map());
    TRY(state->make_threads());
    state->filler = TRY(PageFiller::make(*state->remote, state->pidfd.get()));
    for (const auto& range : layout.mappings()) state->filler.add(range);
    return Skeleton(std::move(state));
}

Result<void> Skeleton::State::start(Spawner& spawner) {
    tasks.reserve(static_cast<size_t>(layout.tids_size()));
    tasks.push_back(TRY(spawner.spawn(layout.pid())));
    pidfd = UniqueFd(static_cast<int>(::syscall(SYS_pidfd_open, layout.pid(), 0)));
    if (!pidfd) return fail_errno(fmt::format("pidfd_open of process {}", layout.pid()));
    memory = TRY(ProcessMemory::open(layout.pid()));
    const RemotePtr place = TRY(place_for_executor(layout));
    remote = TRY(Remote::attach(tasks.front(), {.at = place}));
    return {};
}

// Nothing of the stub stays: not even its vDSO, at whose end the executor's boot code was.
Result<void> Skeleton::State::clear() {
    const uint64_t executor = remote->start().address();
    NamedCalls calls;
    for (const Vma& vma : TRY(read_maps(layout.pid()))) {
        const bool ours = vma.start >= executor && vma.end <= executor + remote->size();
        if (ours || vma.path == "[vsyscall]") continue;
        calls.call(fmt::format("unmap {:x}-{:x}", vma.start, vma.end), SYS_munmap, vma.start, vma.size());
    }
    calls.call("map the vDSO", SYS_arch_prctl, kernel::arch_map_vdso_64, vdso_start(layout));
    calls.call("name the stub", SYS_prctl, PR_SET_NAME, calls.batch().text(layout.name().substr(0, 15)));
    TRY(calls.run(*remote));
    return check_vdso_place(layout);
}

Result<void> Skeleton::State::set_memory_map() {
    NamedCalls open;
    const auto executable = open.call(fmt::format("open the executable {}", layout.executable()), SYS_openat, AT_FDCWD,
                                      open.batch().text(layout.executable()), O_RDONLY | O_CLOEXEC);
    TRY(open.run(*remote));
    const image::MemoryMap& from = layout.memory_map();
    prctl_mm_map map{};
    map.start_code = from.start_code();
    map.end_code = from.end_code();
    map.start_data = from.start_data();
    map.end_data = from.end_data();
    map.start_brk = from.start_brk();
    map.brk = from.brk();
    map.start_stack = from.start_stack();
    map.arg_start = from.arg_start();
    map.arg_end = from.arg_end();
    map.env_start = from.env_start();
    map.env_end = from.env_end();
    map.auxv_size = static_cast<uint32_t>(from.auxv().size());
    map.exe_fd = static_cast<uint32_t>(open.batch().result_of(executable));
    NamedCalls set;
    const auto memory_map = set.batch().bytes(&map, sizeof map);
    if (!from.auxv().empty())
        set.batch().point(memory_map, offsetof(prctl_mm_map, auxv), set.batch().bytes(from.auxv().data(), from.auxv().size()));
    set.call("set the memory map (PR_SET_MM_MAP)", SYS_prctl, PR_SET_MM, PR_SET_MM_MAP, memory_map, sizeof map, 0);
    set.call("close the executable", SYS_close, map.exe_fd);
    return set.run(*remote);
}

// Threads are born inside the executor with all signals blocked; PTRACE_O_TRACECLONE stops each before its first instruction.
Result<void> Skeleton::State::make_threads() {
    constexpr uint64_t kind = CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM;
    const auto count = static_cast<size_t>(layout.tids_size());
    for (size_t begin = 1; begin < count; begin += most_threads_at_once) {
        NamedCalls calls;
        for (size_t i = begin; i < std::min(count, begin + most_threads_at_once); ++i) {
            const int32_t tid = layout.tids(static_cast<int>(i));
            clone_args arguments{};
            arguments.flags = kind;
            arguments.set_tid_size = 1;
            const auto wanted = calls.batch().bytes(&arguments, sizeof arguments);
            calls.batch().point(wanted, offsetof(clone_args, set_tid), calls.batch().bytes(&tid, sizeof tid));
            calls.call(fmt::format("make thread {}", tid), SYS_clone3, wanted, sizeof arguments);
        }
        const auto made = calls.run(*remote);
        if (!made) return Failure(Problem(made.error()).hinted("the task id may be in use here"));
    }
    (void)remote->take_new_tasks();  // numbered as we asked
    for (size_t i = 1; i < count; ++i) {
        tasks.push_back(Tracee::adopt(layout.tids(static_cast<int>(i))));
        TRY(tasks.back().wait_stopped(Deadline::in(patience)));
    }
    return {};
}

// Kills and takes, as the tracer, the notice of each task's end. The leader's comes when all others' were taken.
void Skeleton::State::kill() {
    if (pidfd) (void)::syscall(SYS_pidfd_send_signal, pidfd.get(), SIGKILL, nullptr, 0);
    remote.reset();  // finds nobody
    const Deadline deadline = Deadline::in(milliseconds(2000));
    for (size_t i = tasks.size(); i-- > 0;) {
        // Nothing reports the end of a tracee to one thread alone; it takes microseconds.
        while (pidfd && ::waitpid(tasks[i].tid(), nullptr, __WALL | WNOHANG) != -1 && !deadline.passed()) {
            constexpr timespec moment{0, 50'000};
            ::nanosleep(&moment, nullptr);
        }
        if (pidfd) tasks[i].forget();
    }
}

Skeleton::State::~State() {
    if (tasks.empty()) return;
    if (!released) kill();
    remote.reset();
    for (Tracee& task : tasks) task.forget();
}

}  // namespace godwit
