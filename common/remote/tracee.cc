#include "common/remote/tracee.h"

#include <elf.h>
#include <fmt/format.h>
#include <sys/ptrace.h>
#include <sys/uio.h>

#include <csignal>
#include <cstring>
#include <utility>

#include "common/kernel/abi.h"
#include "common/remote/rseq.h"
#include "common/remote/syscall_restart.h"
#include "common/remote/trace.h"
#include "common/remote/x86_64/image.h"

namespace godwit {
namespace {

using trace::Stop;

constexpr milliseconds patience{30'000};    // for what only a broken host makes slow
constexpr milliseconds parting_time{1000};  // a destructor's wait

uint64_t pointer(const void* data) { return reinterpret_cast<uint64_t>(data); }

Failure cannot_seize(pid_t tid, int error) {
    const std::string tracer = trace::status_field(tid, "TracerPid").value_or("0");
    if (tracer != "0")
        return unsupported(fmt::format("task {} is traced by process {}", tid, tracer),
                           "end the debugger or strace first");
    const auto state = trace::status_field(tid, "State");
    if (!state || error == ESRCH) return fail(fmt::format("task {} does not exist", tid));
    if (state->starts_with("Z")) return unsupported(fmt::format("task {} is a zombie", tid), "it has ended, or is the first thread of a process that goes on without it");
    if (!trace::status_field(tid, "VmSize")) return unsupported(fmt::format("task {} is a kernel thread", tid));
    return fail_errno(error, fmt::format("cannot seize task {}", tid), "tracing it needs CAP_SYS_PTRACE");
}

}  // namespace

Result<Tracee> Tracee::seize(pid_t tid, unsigned long options) {
    const auto seized = trace::request("ptrace:seize", PTRACE_SEIZE, tid, 0, options | PTRACE_O_TRACESYSGOOD);
    if (!seized) return cannot_seize(tid, seized.error().error != 0 ? seized.error().error : ESRCH);
    return Tracee(tid);
}

Tracee Tracee::adopt(pid_t tid) { return Tracee(tid); }

Tracee::Tracee(Tracee&& other) noexcept
    : tid_(std::exchange(other.tid_, 0)),
      stopped_(other.stopped_),
      at_interrupt_(other.at_interrupt_),
      group_stopped_(other.group_stopped_),
      at_stop_(other.at_stop_),
      mask_at_stop_(other.mask_at_stop_) {}

Tracee& Tracee::operator=(Tracee&& other) noexcept {
    if (this == &other) return *this;
    if (tid_ != 0 && !detach()) forget();
    tid_ = std::exchange(other.tid_, 0);
    stopped_ = other.stopped_;
    at_interrupt_ = other.at_interrupt_;
    group_stopped_ = other.group_stopped_;
    at_stop_ = other.at_stop_;
    mask_at_stop_ = other.mask_at_stop_;
    return *this;
}

Tracee::~Tracee() {
    if (tid_ != 0) (void)detach();
}

Result<void> Tracee::interrupt() { return trace::request("ptrace:interrupt", PTRACE_INTERRUPT, tid_, 0, 0); }

Result<void> Tracee::wait_stopped(Deadline deadline) {
    if (stopped_) return {};
    for (;;) {
        const Stop stop = TRY(trace::wait(tid_, deadline));
        stopped_ = true;
        if (stop.kind == Stop::Kind::interrupt || stop.kind == Stop::Kind::group) {
            group_stopped_ = stop.kind == Stop::Kind::group;
            at_interrupt_ = true;
            return save_state();
        }
        // If we die before this, the kernel's detach delivers the signal just as well.
        TRY(cont(stop.kind == Stop::Kind::signal ? stop.number : 0));
    }
}

Result<void> Tracee::stop_again(Deadline deadline) {
    if (at_interrupt_ && stopped_) return {};
    TRY(interrupt());
    // A stopped task goes on to the stop just asked for, which comes before its next instruction.
    if (stopped_) TRY(cont());
    for (;;) {
        const Stop stop = TRY(trace::wait(tid_, deadline));
        stopped_ = true;
        at_interrupt_ = stop.kind == Stop::Kind::interrupt || stop.kind == Stop::Kind::group;
        if (at_interrupt_) return {};
        TRY(cont(stop.kind == Stop::Kind::signal ? stop.number : 0));
    }
}

Result<Registers> Tracee::run_to_call_exit(long number, Deadline deadline) {
    int signal = 0;
    for (;;) {
        at_interrupt_ = false;
        stopped_ = false;
        TRY(trace::request("ptrace:syscall", PTRACE_SYSCALL, tid_, 0, static_cast<uint64_t>(signal)));
        const Stop stop = TRY(trace::wait(tid_, deadline));
        stopped_ = true;
        signal = stop.kind == Stop::Kind::signal ? stop.number : 0;
        if (stop.kind != Stop::Kind::call) continue;
        __ptrace_syscall_info info{};
        TRY(trace::request("ptrace:syscall-info", PTRACE_GET_SYSCALL_INFO, tid_, sizeof info, pointer(&info)));
        if (info.op != PTRACE_SYSCALL_INFO_EXIT) continue;
        const Registers now = TRY(registers());
        if (executor::call_number(now) == number) return now;
    }
}

Result<pid_t> Tracee::serve() {
    const Stop stop = trace::peek(tid_);
    if (stop.kind == Stop::Kind::gone) return trace::gone(tid_);
    if (stop.kind == Stop::Kind::running) return 0;
    unsigned long child = 0;
    if (stop.kind == Stop::Kind::event &&
        (stop.number == PTRACE_EVENT_CLONE || stop.number == PTRACE_EVENT_FORK || stop.number == PTRACE_EVENT_VFORK))
        TRY(trace::request("ptrace:event-message", PTRACE_GETEVENTMSG, tid_, 0, pointer(&child)));
    TRY(cont(stop.kind == Stop::Kind::signal ? stop.number : 0));
    return static_cast<pid_t>(child);
}

Result<void> Tracee::save_state() {
    const Registers raw = TRY(registers());
    at_stop_ = TRY(leave_critical_section(tid_, for_same_task(raw)));
    // At once, so that the time in which our death would show as an EINTR, as any stop does (signal(7)), is short.
    if (at_stop_.rax != raw.rax || at_stop_.rip != raw.rip) TRY(set_registers(at_stop_));
    mask_at_stop_ = TRY(signal_mask());
    // In sigsuspend, ppoll and the like this is the mask to come back to, not the one in force, under which a signal
    // could find its handler before the call is made again and have its wake-up lost. From here on it is in force; the
    // call, made again, sets its own.
    if (interruptible(at_stop_) == Interruptible::handler) TRY(set_signal_mask(mask_at_stop_));
    return {};
}

Result<Registers> Tracee::registers() const {
    Registers registers{};
    TRY(trace::request("ptrace:getregs", PTRACE_GETREGS, tid_, 0, pointer(&registers)));
    return registers;
}

Result<void> Tracee::set_registers(const Registers& registers) {
    return trace::request("ptrace:setregs", PTRACE_SETREGS, tid_, 0, pointer(&registers));
}

Result<std::string> Tracee::xstate() const {
    // AMX needs 11 KiB. Not a string of that size made shorter: there is one for each task, and it would keep its room.
    char bytes[1 << 16];
    iovec range{bytes, sizeof bytes};
    TRY(trace::request("ptrace:get-xstate", PTRACE_GETREGSET, tid_, NT_X86_XSTATE, pointer(&range)));
    return std::string(bytes, range.iov_len);
}

Result<void> Tracee::set_xstate(const std::string& xstate) {
    std::string bytes = xstate;
    iovec range{bytes.data(), bytes.size()};
    return trace::request("ptrace:set-xstate", PTRACE_SETREGSET, tid_, NT_X86_XSTATE, pointer(&range));
}

Result<uint64_t> Tracee::signal_mask() const {
    uint64_t mask = 0;
    TRY(trace::request("ptrace:getsigmask", PTRACE_GETSIGMASK, tid_, sizeof mask, pointer(&mask)));
    return mask;
}

Result<void> Tracee::set_signal_mask(uint64_t mask) {
    return trace::request("ptrace:setsigmask", PTRACE_SETSIGMASK, tid_, sizeof mask, pointer(&mask));
}

Result<void> Tracee::cont(int signal) {
    stopped_ = false;
    at_interrupt_ = false;
    return trace::request("ptrace:cont", PTRACE_CONT, tid_, 0, static_cast<uint64_t>(signal));
}

Result<int64_t> Tracee::inject(RemotePtr instruction, long number, const uint64_t (&arguments)[6]) {
    const Registers before = TRY(registers());
    TRY(set_registers(executor::calling(before, instruction, number, arguments)));
    return executor::call_result(TRY(run_to_call_exit(number, Deadline::in(patience))));
}

Result<void> Tracee::release() {
    TRY(stop_again(Deadline::in(patience)));
    // Death in between: the executor is out by now, so both orders are the task's own state.
    TRY(set_signal_mask(mask_at_stop_));
    TRY(set_registers(at_stop_));
    return detach();
}

Result<void> Tracee::detach() {
    int signal = 0;
    if (!stopped_) {
        // Only a stopped task can be detached; one in D stays ours until this thread ends.
        TRY(interrupt());
        const Stop stop = TRY(trace::wait(tid_, Deadline::in(parting_time)));
        if (stop.kind == Stop::Kind::signal) signal = stop.number;
    }
    TRY(trace::request("ptrace:detach", PTRACE_DETACH, tid_, 0, static_cast<uint64_t>(signal)));
    tid_ = 0;
    return {};
}

}  // namespace godwit
