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

#include "common/base/file.h"
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

// The calls that the executor makes with the layout's addresses must find none of them taken, by it or by the stub.
Result<RemotePtr> place_for_executor(const image::Layout& layout) {
    std::vector<Span> taken = spans_of(layout);
    for (const Vma& vma : TRY(read_maps(layout.pid()))) taken.push_back({vma.start, vma.end});
    return RemotePtr(TRY(free_range(std::move(taken), executor_room)));
}

Skeleton::Skeleton(std::unique_ptr<State> state) : state_(std::move(state)) {}
Skeleton::Skeleton(Skeleton&&) noexcept = default;
Skeleton& Skeleton::operator=(Skeleton&&) noexcept = default;
Skeleton::~Skeleton() = default;

pid_t Skeleton::pid() const { return state_->layout.pid(); }
const image::Layout& Skeleton::layout() const { return state_->layout; }
Remote& Skeleton::remote() { return *state_->remote; }
std::vector<Tracee>& Skeleton::tasks() { return state_->tasks; }
void Skeleton::release() { state_->released = true; }

Result<Skeleton> Skeleton::build(Spawner& spawner, const image::Layout& layout, MadeObjects* objects) {
    TRY(check_layout(layout));
    auto state = std::make_unique<State>();
    state->layout = layout;
    state->objects = objects;
    TRY(state->start(spawner));
    // From here on its end is ours: ~State kills it.
    TRY(state->clear());
    state->filler = TRY(PageFiller::make(*state->remote, state->pidfd.get()));
    const LayoutChanges all = compare({}, state->layout);
    TRY(state->make_mappings(state->layout, all.map));
    TRY(state->make_threads({layout.tids().begin() + 1, layout.tids().end()}));
    return Skeleton(std::move(state));
}

Result<void> Skeleton::correct(image::Layout next) { return state_->correct(std::move(next)); }

Result<void> Skeleton::State::start(Spawner& spawner) {
    tasks.reserve(static_cast<size_t>(layout.tids_size()));
    tasks.push_back(TRY(spawner.spawn(layout.pid())));
    // When memory runs out it is this copy that goes first, not a program of this host. restore_process() sets what the
    // tree has.
    TRY(write_once(fmt::format("/proc/{}/oom_score_adj", layout.pid()), "1000"));
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

// Threads are born inside the executor with all signals blocked; PTRACE_O_TRACECLONE stops each before its first instruction.
Result<void> Skeleton::State::make_threads(const std::vector<int32_t>& tids) {
    constexpr uint64_t kind = CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM;
    for (size_t begin = 0; begin < tids.size(); begin += most_threads_at_once) {
        NamedCalls calls;
        for (size_t i = begin; i < std::min(tids.size(), begin + most_threads_at_once); ++i) {
            clone_args arguments{};
            arguments.flags = kind;
            arguments.set_tid_size = 1;
            const auto wanted = calls.batch().bytes(&arguments, sizeof arguments);
            calls.batch().point(wanted, offsetof(clone_args, set_tid), calls.batch().bytes(&tids[i], sizeof tids[i]));
            calls.call(fmt::format("make thread {}", tids[i]), SYS_clone3, wanted, sizeof arguments);
        }
        const auto made = calls.run(*remote);
        if (!made) return Failure(Problem(made.error()).hinted("the task id may be in use here"));
    }
    (void)remote->take_new_tasks();  // numbered as we asked
    tasks.reserve(tasks.size() + tids.size());
    remote->host_moved(tasks.front());
    for (const int32_t tid : tids) {
        tasks.push_back(Tracee::adopt(tid));
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
