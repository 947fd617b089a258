#include "common/remote/remote.h"

#include <fmt/format.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>

#include <algorithm>
#include <cstring>

#include "common/base/fault.h"
#include "common/kernel/abi.h"
#include "common/remote/state.h"

namespace godwit {

using executor::Header;
using executor::Slot;
using executor::WireCall;

Remote::Remote(std::unique_ptr<State> state) : state_(std::move(state)) {}
Remote::Remote(Remote&&) noexcept = default;

Remote& Remote::operator=(Remote&& other) noexcept {
    if (this == &other) return *this;
    if (state_ && state_->resident) (void)leave();
    state_ = std::move(other.state_);
    return *this;
}

Remote::~Remote() {
    if (state_ && state_->resident) (void)leave();
}

pid_t Remote::pid() const { return state_->pid; }
void Remote::host_moved(Tracee& task) { state_->host = &task; }
int Remote::socket_number() const { return state_->socket_number; }
RemotePtr Remote::start() const { return state_->region; }
uint64_t Remote::size() const { return GW_REGION_SIZE; }
std::vector<pid_t> Remote::take_new_tasks() { return std::exchange(state_->new_tasks, {}); }

Result<void> Remote::run(Batch& batch) { return state_->run(*state_->host, batch, &State::run_in_host); }

Result<void> Remote::run_in(Tracee& task, Batch& batch) {
    if (task.tid() == state_->host->tid()) return run(batch);
    if (!executor::is_64_bit(task.at_stop())) return unsupported(fmt::format("task {} runs 32-bit code", task.tid()));
    TRY(state_->start_visit(task));
    auto result = state_->run(task, batch, &State::run_in_visitor);
    const auto ended = state_->end_visit(task);
    return result ? ended : result;
}

Result<int64_t> Remote::call(long number, uint64_t a, uint64_t b, uint64_t c, uint64_t d, uint64_t e, uint64_t f) {
    Batch batch;
    const auto call = batch.call(number, a, b, c, d, e, f);
    TRY(run(batch));
    return batch.result_of(call);
}

Result<void> Remote::leave() {
    const auto left = state_->leave();
    if (!left) state_->resident = false;
    return left;
}

Result<void> Remote::retire(RemotePtr instruction) {
    TRY(state_->host->stop_again(Deadline::in(executor_patience)));
    state_->resident = false;
    TRY(state_->host->inject(instruction, SYS_close, {static_cast<uint64_t>(state_->socket_number), 0, 0, 0, 0, 0}));
    const int64_t result =
        TRY(state_->host->inject(instruction, SYS_munmap, {state_->region.address(), GW_REGION_SIZE, 0, 0, 0, 0}));
    state_->socket.reset();
    if (result == 0) return {};
    return fail_errno(static_cast<int>(-result), fmt::format("cannot unmap the executor of process {}", state_->pid));
}

// One batch: its data, then its calls in pieces.
Result<void> Remote::State::run(Tracee& task, Batch& batch, Runner runner) {
    if (batch.data_.size() <= GW_DATA_SIZE) return run_pieces(task, batch, region + GW_DATA, runner);
    // More than the region holds: a mapping for this batch alone, which the executor removes if we die.
    const RemotePtr data = TRY(grow(batch.data_.size()));
    const auto result = run_pieces(task, batch, data, runner);
    Batch shrink;
    shrink.call(SYS_munmap, data, batch.data_.size());
    TRY(run_pieces(*host, shrink, region + GW_DATA, &State::run_in_host));
    return result;
}

Result<RemotePtr> Remote::State::grow(size_t size) {
    Batch batch;
    const auto at = batch.call(SYS_mmap, 0, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    TRY(run_pieces(*host, batch, region + GW_DATA, &State::run_in_host));
    return RemotePtr(static_cast<uint64_t>(batch.result_of(at)));
}

Result<void> Remote::State::run_pieces(Tracee& task, Batch& batch, RemotePtr data, Runner runner) {
    for (const auto& pointer : batch.pointers_) {
        const uint64_t address = data.address() + pointer.of;
        std::memcpy(batch.data_.data() + pointer.where, &address, sizeof address);
    }
    if (!batch.data_.empty()) TRY(memory.write(data, batch.data_.data(), batch.data_.size()));

    std::vector<WireCall> wire;
    std::vector<int64_t> results;
    for (size_t begin = 0; begin < batch.calls_.size();) {
        const size_t count = std::min<size_t>(batch.calls_.size() - begin, GW_MOST_CALLS);
        wire.assign(count, {});
        for (size_t i = 0; i < count; ++i) {
            const auto& call = batch.calls_[begin + i];
            wire[i].number = static_cast<uint64_t>(call.number);
            wire[i].flags = call.may_fail ? GW_MAY_FAIL : 0;
            for (size_t n = 0; n < call.arguments.size(); ++n) {
                using Kind = Batch::Operand::Kind;
                const Batch::Operand& argument = call.arguments[n];
                uint64_t value = argument.value_;
                if (argument.kind_ == Kind::memory) value += data.address();
                if (argument.kind_ == Kind::result && value >= begin) {
                    value -= begin;
                    wire[i].flags |= 1ull << (GW_RESULT_SHIFT + n);
                } else if (argument.kind_ == Kind::result) {
                    value = static_cast<uint64_t>(batch.calls_[value].result);
                }
                wire[i].arguments[n] = value;
            }
        }
        TRY(memory.write(region + GW_CALLS, wire.data(), count * sizeof(WireCall)));
        const Header header{count, (region + GW_CALLS).address(), (region + GW_RESULTS).address()};
        const uint64_t done = TRY((this->*runner)(task, header));
        results.assign(std::min(count, done + 1), 0);
        TRY(memory.read(region + GW_RESULTS, results.data(), results.size() * sizeof(int64_t)));
        for (size_t i = 0; i < results.size(); ++i) batch.calls_[begin + i].result = results[i];
        if (done < count) {
            const auto& failed = batch.calls_[begin + done];
            return fail_errno(static_cast<int>(-failed.result),
                              fmt::format("system call {} (call {} of {}) in task {}", failed.number, begin + done,
                                          batch.calls_.size(), task.tid()));
        }
        begin += count;
    }
    if (batch.out_begin_ < batch.out_end_)
        TRY(memory.read(data + batch.out_begin_, batch.data_.data() + batch.out_begin_,
                        batch.out_end_ - batch.out_begin_));
    return {};
}

Result<uint64_t> Remote::State::run_in_host(Tracee& task, const Header& header) {
    fault_point("remote:send");
    if (::send(socket.get(), &header, sizeof header, MSG_NOSIGNAL) != static_cast<ssize_t>(sizeof header))
        return fail_errno(fmt::format("cannot reach the executor in task {}", task.tid()));
    return await_reply(task);
}

// The table and everything else are in place before the one register write; the mask comes after it.
Result<void> Remote::State::start_visit(Tracee& task) {
    Slot slot{};
    slot.task = TRY(save_for_executor(task));
    slot.tid = task.tid();
    slot.socket = socket_number;
    slot.visitor = 1;
    slot.poll = {socket_number, 0, 0};
    return memory.write(visitor_slot(), &slot, offsetof(Slot, message));
}

Result<uint64_t> Remote::State::run_in_visitor(Tracee& task, const Header& header) {
    TRY(task.stop_again(Deadline::in(executor_patience)));
    TRY(memory.write(visitor_slot() + offsetof(Slot, header), &header, sizeof header));
    TRY(task.set_registers(executor::entering(task.at_stop(), region + executor::executor_visit(), visitor_slot())));
    TRY(task.set_signal_mask(~0ull));
    TRY(task.cont());
    return await_reply(task);
}

Result<void> Remote::State::end_visit(Tracee& task) {
    TRY(task.stop_again(Deadline::in(executor_patience)));
    // If we die between the next two, a signal that came meanwhile finds its handler before the executor could see that
    // it breaks a call off: so that is looked at now.
    const auto saved = TRY(save_for_executor(task));
    TRY(memory.write(visitor_slot(), &saved, sizeof saved));
    const uint64_t nobody = 0;
    TRY(memory.write(visitor_slot() + offsetof(Slot, owner), &nobody, sizeof nobody));
    TRY(task.set_signal_mask(task.mask_at_stop()));
    return task.set_registers(task.at_stop());
}

// Looks at the socket and at what ptrace has to say: the batch cannot go on while the task is stopped by a group stop
// or a PTRACE_EVENT. Most batches end within the time of busy looking.
Result<uint64_t> Remote::State::await_reply(Tracee& task) {
    constexpr auto busy_time = std::chrono::microseconds(200);
    const Deadline deadline = Deadline::in(executor_patience);
    Deadline busy = Deadline::at(Clock::now() + busy_time);
    for (;;) {
        uint64_t reply = 0;
        const ssize_t count = ::recv(socket.get(), &reply, sizeof reply, MSG_DONTWAIT);
        if (count == static_cast<ssize_t>(sizeof reply)) return reply;
        if (count >= 0)
            return fail(fmt::format("the executor in task {} is gone", task.tid()), "the process was killed");
        if (errno != EAGAIN && errno != EINTR)
            return fail_errno(fmt::format("no reply of the executor in task {}", task.tid()));
        const pid_t born = TRY(task.serve());
        if (born != 0) {
            new_tasks.push_back(born);
            busy = Deadline::at(Clock::now() + busy_time);
        }
        if (!busy.passed()) {
            ::sched_yield();
            continue;
        }
        if (deadline.passed())
            return fail(fmt::format("no reply of the executor in task {} within {} s", task.tid(),
                                    executor_patience.count() / 1000));
        pollfd ready{socket.get(), POLLIN, 0};
        ::poll(&ready, 1, 1);
    }
}

Result<int> Remote::undo_at_death(long number, uint64_t a, uint64_t b, uint64_t c, uint64_t d, uint64_t e, uint64_t f) {
    State& s = *state_;
    size_t place = 0;
    while (place < s.undo.size() && s.undo.test(place)) ++place;
    if (place == s.undo.size())
        return fail(fmt::format("process {}: more than {} calls to undo", s.pid, s.undo.size()));
    const executor::Undo undo{static_cast<uint64_t>(number), {a, b, c, d, e, f}};
    const RemotePtr list = s.host_slot() + offsetof(Slot, undo);
    TRY(s.memory.write(list + place * sizeof undo, &undo, sizeof undo));
    s.undo.set(place);
    // Places below the count that were given back hold a getpid.
    uint64_t count = s.undo.size();
    while (count > 0 && !s.undo.test(count - 1)) --count;
    TRY(s.memory.write(s.host_slot() + offsetof(Slot, undo_count), &count, sizeof count));
    return static_cast<int>(place);
}

Result<void> Remote::forget_undo(int handle) {
    State& s = *state_;
    const executor::Undo nothing{SYS_getpid, {}};
    const RemotePtr list = s.host_slot() + offsetof(Slot, undo);
    TRY(s.memory.write(list + static_cast<size_t>(handle) * sizeof nothing, &nothing, sizeof nothing));
    s.undo.reset(static_cast<size_t>(handle));
    return {};
}

}  // namespace godwit
