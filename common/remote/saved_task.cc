#include <fmt/format.h>

#include <cerrno>
#include <cstring>
#include <sstream>

#include "common/base/file.h"
#include "common/remote/state.h"
#include "common/remote/syscall_restart.h"

namespace godwit {
namespace {

struct SignalSets {
    uint64_t pending = 0;
    uint64_t caught = 0;
};

Result<SignalSets> signal_sets(pid_t tid) {
    std::istringstream text(TRY(read_file(fmt::format("/proc/{}/status", tid))));
    SignalSets sets;
    for (std::string line; std::getline(text, line);) {
        const auto value = [&] { return std::stoull(line.substr(line.find(':') + 1), nullptr, 16); };
        if (line.starts_with("SigPnd:") || line.starts_with("ShdPnd:")) sets.pending |= value();
        if (line.starts_with("SigCgt:")) sets.caught = value();
    }
    return sets;
}

void interrupt(executor::SavedTask& saved) {
    Registers registers{};
    std::memcpy(&registers, saved.registers.data(), sizeof saved.registers);
    registers.rip = saved.interrupted_rip;
    registers.rax = static_cast<uint64_t>(-EINTR);
    std::memcpy(saved.registers.data(), &registers, sizeof saved.registers);
    saved.interrupting = 0;
}

}  // namespace

Result<executor::SavedTask> save_for_executor(const Tracee& task) {
    const Registers registers = for_plain_jump(task.at_stop());
    executor::SavedTask saved{};
    std::memcpy(saved.registers.data(), &registers, sizeof saved.registers);
    saved.mask = task.mask_at_stop();
    saved.interrupted_rip = task.at_stop().rip;
    const Interruptible kind = interruptible(task.at_stop());
    if (kind == Interruptible::no) return saved;
    const SignalSets sets = TRY(signal_sets(task.tid()));
    saved.interrupting = sets.caught & ~saved.mask;
    saved.ask_restart = kind == Interruptible::restart;
    // With SA_RESTART in question nothing is decided here: restarting is what most programs ask for.
    if ((sets.pending & saved.interrupting) != 0 && kind == Interruptible::handler) interrupt(saved);
    return saved;
}

}  // namespace godwit
