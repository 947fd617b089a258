#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstring>

#include "common/base/fault.h"
#include "common/remote/descriptor_room.h"
#include "common/remote/places.h"
#include "common/remote/state.h"
#include "common/remote/trace.h"

namespace godwit {
namespace {

constexpr uint64_t all_signals = ~0ull;  // the kernel takes SIGKILL and SIGSTOP out

std::string boot_image(const executor::SavedTask& saved, const RemoteOptions& options, uint64_t sequence) {
    executor::Boot head{};
    head.magic = GW_MAGIC;
    head.sequence = sequence;
    head.task = saved;
    // The boot code cannot look at handlers: it restarts where SA_RESTART decides.
    if (saved.ask_restart != 0) head.task.interrupting = 0;
    head.at = options.at.address();
    head.map_flags = MAP_SHARED | MAP_ANONYMOUS | (options.at ? MAP_FIXED_NOREPLACE : 0u);
    const auto code = executor::boot_code();
    std::string image(reinterpret_cast<const char*>(code.data()), code.size());
    std::memcpy(image.data(), &head, sizeof head);
    return image;
}

Deadline limit() { return Deadline::in(executor_patience); }

}  // namespace

// From the stopped task to the exit of the boot code's mmap. One register write changes what the task does; until the
// region is marked ready, the boot code by itself unmaps it and gives the task back.
Result<void> Remote::State::enter(const RemoteOptions& options) {
    const auto saved = TRY(save_for_executor(*host));
    const BootPlace place = TRY(find_boot_place(pid, memory));
    const std::string image = boot_image(saved, options, place.sequence);
    boot = place.at;
    TRY(memory.write(boot, image.data(), image.size()));
    TRY(host->set_registers(executor::entering(host->at_stop(), boot + executor::boot_entry(), {})));
    TRY(host->set_signal_mask(all_signals));
    const Registers mapped = TRY(host->run_to_call_exit(SYS_mmap, limit()));
    const int64_t result = executor::call_result(mapped);
    if (result < 0) {
        return fail_errno(static_cast<int>(-result),
                          fmt::format("cannot map {} bytes in process {}", GW_REGION_SIZE, pid),
                          "its address space or memory limit is used up");
    }
    region = RemotePtr(static_cast<uint64_t>(result));
    return {};
}

// Writes executor and slot, then marks them ready: half of them never runs.
Result<void> Remote::State::install() {
    const auto code = executor::executor_code();
    static_assert(GW_REGION_SIZE % GW_CODE_SIZE == 0);
    TRY(memory.write(region, code.data(), code.size()));
    executor::Slot slot{};
    slot.task = TRY(save_for_executor(*host));
    slot.tid = host->tid();
    slot.vector = {reinterpret_cast<void*>((host_slot() + offsetof(executor::Slot, header)).address()),
                   sizeof slot.header};
    slot.message.msg_iov = reinterpret_cast<iovec*>((host_slot() + offsetof(executor::Slot, vector)).address());
    slot.message.msg_iovlen = 1;
    slot.message.msg_control = reinterpret_cast<void*>((host_slot() + offsetof(executor::Slot, control)).address());
    slot.unmap = (boot + executor::boot_unmap()).address();
    TRY(memory.write(host_slot(), &slot, sizeof slot));
    const uint64_t ready = 1;
    TRY(memory.write(host_slot() + offsetof(executor::Slot, ready), &ready, sizeof ready));

    const int64_t result = executor::call_result(TRY(host->run_to_call_exit(SYS_mprotect, limit())));
    if (result == 0) return {};
    return fail_errno(static_cast<int>(-result), fmt::format("cannot make code executable in process {}", pid),
                      "a security policy forbids it (PR_SET_MDWE, SELinux execmem)");
}

// At the exit of socketpair both ends are in the target; the executor's next act closes the one taken here.
Result<void> Remote::State::take_socket() {
    const int64_t result = executor::call_result(TRY(host->run_to_call_exit(SYS_socketpair, limit())));
    if (result < 0) {
        auto failure = fail_errno(static_cast<int>(-result), fmt::format("cannot make a socket in process {}", pid),
                                  "its descriptor table may be full (ulimit -n)");
        if (result == -EMFILE) failure.value().code = ExitCode::unsupported;
        return failure;
    }
    int32_t pair[2] = {};
    TRY(memory.read(host_slot() + offsetof(executor::Slot, pair), pair, sizeof pair));
    fault_point("remote:pidfd-getfd");
    socket = UniqueFd(static_cast<int>(::syscall(SYS_pidfd_getfd, pidfd.get(), pair[1], 0)));
    const int error = errno;
    // leave() makes the executor close both ends, if it comes to that here.
    socket_number = pair[0];
    if (!socket) {
        TRY(memory.write(host_slot() + offsetof(executor::Slot, socket), &pair[0], sizeof pair[0]));
        return fail_errno(error, fmt::format("cannot take descriptor {} of process {}", pair[1], pid));
    }
    TRY(host->cont());
    resident = true;
    return {};
}

// Puts the task back as it was, from wherever the boot code or the executor is.
Result<void> Remote::State::leave() {
    TRY(host->stop_again(limit()));
    resident = false;
    if (socket_number >= 0)
        TRY(host->set_registers(
            executor::entering(host->at_stop(), region + executor::executor_retire(), host_slot())));
    else if (region)
        TRY(host->set_registers(executor::entering(host->at_stop(), boot + executor::boot_unmap(), region)));
    if (region) TRY(host->run_to_call_exit(SYS_munmap, limit()));
    socket.reset();
    TRY(hand_back());
    erase_boot();
    return {};
}

// The boot code restores mask and registers too, if we die in here.
Result<void> Remote::State::hand_back() {
    TRY(host->stop_again(limit()));
    TRY(host->set_signal_mask(host->mask_at_stop()));
    return host->set_registers(host->at_stop());
}

// For failures on the way in: best effort, the cause is reported by the caller.
void Remote::State::give_up() {
    if (host->tid() == 0 || !boot) return;
    if (!leave()) resident = false;
}

void Remote::State::erase_boot() {
    const std::string zeros(executor::boot_code().size(), '\0');
    (void)memory.write(boot, zeros.data(), zeros.size());  // left behind it is inert
}

// Its answer also says that the executor has closed our end of the socket: whoever looks at the descriptors now finds one only.
Result<void> Remote::State::clean_earlier(const std::vector<RemotePtr>& regions) {
    Batch batch;
    batch.call(SYS_getpid);
    for (const RemotePtr earlier : regions) batch.call(SYS_munmap, earlier, GW_REGION_SIZE);
    return run(*host, batch, &State::run_in_host);
}

Result<Remote> Remote::attach(Tracee& task, const RemoteOptions& options) {
    if (!executor::is_64_bit(task.at_stop()))
        return unsupported(fmt::format("task {} runs 32-bit code", task.tid()),
                           "only 64-bit x86 programs are supported");
    auto state = std::make_unique<State>(task);
    const auto tgid = trace::status_field(task.tid(), "Tgid");
    if (!tgid) return trace::gone(task.tid());
    state->pid = std::atoi(tgid->c_str());
    state->memory = TRY(ProcessMemory::open(state->pid));
    state->pidfd = UniqueFd(static_cast<int>(::syscall(SYS_pidfd_open, state->pid, 0)));
    if (!state->pidfd) return fail_errno(fmt::format("pidfd_open of process {}", state->pid));

    std::vector<RemotePtr> earlier;
    for (const Region& region : TRY(find_executors(state->pid)).regions) {
        // An owner that lives may still return to its region from a signal handler.
        bool in_use = false;
        for (const pid_t owner : region.owners) in_use |= owner != 0 && trace::status_field(owner, "Tgid") == *tgid;
        if (!in_use && region.range.size == GW_REGION_SIZE) earlier.push_back(region.range.start);
    }

    const DescriptorRoom room = TRY(DescriptorRoom::make(state->pid));
    auto ready = state->enter(options);
    if (ready) ready = state->install();
    if (ready) ready = state->take_socket();
    if (ready) ready = state->clean_earlier(earlier);
    if (!ready) {
        state->give_up();
        return Failure(ready.error());
    }
    return Remote(std::move(state));
}

}  // namespace godwit
