// Makes a skeleton what a later layout says. The tree ran on at the source: mappings and threads came and went.
#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include <algorithm>
#include <map>
#include <optional>
#include <set>

#include "common/base/fault.h"
#include "dest-agent/named_calls.h"
#include "dest-agent/skeleton_state.h"

namespace godwit {
namespace {

constexpr milliseconds patience{30'000};

// The new one leaves out what it has in common with the one before.
void take_over_mappings(image::Layout& from, image::Layout& next) {
    next.mutable_mappings()->Swap(from.mutable_mappings());
    next.mutable_files()->Swap(from.mutable_files());
    next.set_vdso(from.vdso());
}

}  // namespace

Result<void> Skeleton::State::correct(image::Layout next) {
    fault_point("skeleton:correct");
    if (next.pid() != layout.pid()) return peer_failed(fmt::format("a layout of process {} where that of {} was due", next.pid(), layout.pid()));
    if (next.same_mappings()) {
        take_over_mappings(layout, next);
        TRY(check_layout(next));
    } else {
        corrected = true;
        TRY(check_layout(next));
        if (!same_vdso(layout, next))
            return unsupported(fmt::format("process {} has moved its vDSO", layout.pid()), "it cannot be migrated while it does so");
        TRY(clear_the_way(next));
        const LayoutChanges changes = compare(layout, next);
        TRY(unmap(changes.unmap));
        TRY(make_mappings(next, changes.map));
        TRY(adjust(changes.adjust));
    }
    TRY(drop(next));
    TRY(correct_threads(next));
    layout = std::move(next);
    return {};
}

// The executor must not be where the program has mapped something meanwhile.
Result<void> Skeleton::State::clear_the_way(const image::Layout& next) {
    const uint64_t start = remote->start().address(), end = start + remote->size();
    const auto spans = spans_of(next);
    const bool free = std::none_of(spans.begin(), spans.end(), [&](const Span& span) { return span.start < end && start < span.end; });
    if (free) return {};
    const RemotePtr instruction = TRY(find_syscall_instruction(layout.pid()));
    TRY(remote->retire(instruction));
    remote.reset();
    const RemotePtr place = TRY(place_for_executor(next));
    remote = TRY(Remote::attach(tasks.front(), {.at = place}));
    return {};
}

Result<void> Skeleton::State::unmap(const std::vector<LayoutChanges::Span>& spans) {
    NamedCalls calls;
    for (const auto& span : spans) calls.call(fmt::format("unmap {:x}-{:x}", span.start, span.end), SYS_munmap, span.start, span.end - span.start);
    return calls.run(*remote);
}

Result<void> Skeleton::State::adjust(const std::vector<LayoutChanges::Part>& parts) {
    NamedCalls calls;
    for (const auto& part : parts)
        if (first_protection(*part.have) != first_protection(*part.want))
            calls.call(fmt::format("protect {:x}-{:x}", part.start, part.end), SYS_mprotect, part.start, part.end - part.start,
                       first_protection(*part.want));
    TRY(calls.run(*remote));
    return advise(parts);
}

// Each range is within mappings that take pages; what is dropped of them is what a fresh mapping has there.
Result<void> Skeleton::State::drop(const image::Layout& next) {
    NamedCalls calls;
    int index = 0;
    uint64_t last = 0;
    for (const image::PageSpan& span : next.dropped()) {
        const uint64_t end = span.start() + span.length();
        const bool pages = span.start() % page_size == 0 && span.length() % page_size == 0 && span.length() != 0 && end > span.start();
        while (index < next.mappings_size() && next.mappings(index).end() <= span.start()) ++index;
        uint64_t covered = span.start();
        for (int i = index; i < next.mappings_size() && covered < end && next.mappings(i).start() <= covered && takes_pages(next.mappings(i)); ++i)
            covered = next.mappings(i).end();
        if (!pages || span.start() < last || covered < end)
            return peer_failed(fmt::format("dropped pages {:x}-{:x} of process {} are not in its mappings", span.start(), end, next.pid()),
                               "the source is broken or hostile");
        last = end;
        calls.call(fmt::format("drop {:x}-{:x}", span.start(), end), SYS_madvise, span.start(), span.length(), MADV_DONTNEED);
    }
    return calls.run(*remote);
}

Result<void> Skeleton::State::correct_threads(const image::Layout& next) {
    const std::set<int32_t> wanted(next.tids().begin(), next.tids().end());
    std::set<int32_t> there;
    std::optional<RemotePtr> instruction;  // to find it, all mappings are read
    for (Tracee& task : tasks) {
        there.insert(task.tid());
        if (wanted.contains(task.tid())) continue;
        if (!instruction) instruction = TRY(find_syscall_instruction(layout.pid()));
        TRY(end_thread(task, *instruction));
    }
    std::vector<int32_t> born;
    // Threads that were born meanwhile are made in the end: one that lives for a moment needs no task id here.
    if (next.last())
        for (const int32_t tid : next.tids())
            if (!there.contains(tid)) born.push_back(tid);
    // A task that was forgotten has no number any more.
    std::erase_if(tasks, [](const Tracee& task) { return task.tid() == 0; });
    remote->host_moved(tasks.front());
    TRY(make_threads(born));
    // In the order of next.tids(), leader first.
    std::map<int32_t, int> order;
    for (int i = 0; i < next.tids_size(); ++i) order[next.tids(i)] = i;
    std::sort(tasks.begin(), tasks.end(), [&](const Tracee& a, const Tracee& b) { return order[a.tid()] < order[b.tid()]; });
    remote->host_moved(tasks.front());
    return {};
}

// The thread makes its exit(2) by itself, by that system call instruction; its tracer is told of its end.
Result<void> Skeleton::State::end_thread(Tracee& task, RemotePtr instruction) {
    Registers registers = TRY(task.registers());
    registers.rip = instruction.address();
    registers.rax = SYS_exit;
    registers.rdi = 0;
    registers.orig_rax = ~0ull;
    TRY(task.set_registers(registers));
    TRY(task.cont());
    const Deadline deadline = Deadline::in(patience);
    int status = 0;
    while (::waitpid(task.tid(), &status, __WALL | WNOHANG) == 0) {
        if (deadline.passed()) return fail(fmt::format("thread {} of process {} does not end", task.tid(), layout.pid()));
        // It takes some microseconds; the tracer of one task alone can wait for it, and there is no event for a time limit.
        constexpr timespec moment{0, 20'000};
        ::nanosleep(&moment, nullptr);
    }
    if (!WIFEXITED(status) && !WIFSIGNALED(status)) return fail(fmt::format("thread {} of process {} stopped where it was to end", task.tid(), layout.pid()));
    task.forget();
    return {};
}

}  // namespace godwit
