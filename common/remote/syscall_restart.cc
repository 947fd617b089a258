#include "common/remote/syscall_restart.h"

#include <sys/syscall.h>

#include <cerrno>

#include "common/kernel/abi.h"
#include "common/remote/x86_64/restart_calls.h"

namespace godwit {
namespace {

using namespace kernel;

bool in_call(const Registers& registers) { return static_cast<int64_t>(registers.orig_rax) >= 0; }
int64_t result(const Registers& registers) { return static_cast<int64_t>(registers.rax); }

bool restarts(const Registers& registers) {
    if (!in_call(registers)) return false;
    const int64_t value = result(registers);
    return value == -ERESTARTSYS || value == -ERESTARTNOINTR || value == -ERESTARTNOHAND;
}

Registers again(Registers registers, uint64_t number) {
    registers.rax = number;
    registers.rip -= executor::syscall_size;
    registers.orig_rax = ~0ull;
    return registers;
}

}  // namespace

Registers for_same_task(const Registers& stopped) {
    Registers registers = stopped;
    if (in_call(stopped) && result(stopped) == -EINTR &&
        executor::broken_off_by_stop(static_cast<long>(stopped.orig_rax)))
        registers.rax = static_cast<uint64_t>(-ERESTARTNOHAND);
    return registers;
}

Registers for_elsewhere(const Registers& stopped) {
    Registers registers = for_same_task(stopped);
    if (restarts(registers)) return again(registers, registers.orig_rax);
    if (in_call(registers) && result(registers) == -ERESTART_RESTARTBLOCK) {
        if (executor::arguments_tell_all(registers)) return again(registers, registers.orig_rax);
        registers.rax = static_cast<uint64_t>(-EINTR);
    }
    registers.orig_rax = ~0ull;
    return registers;
}

Registers for_plain_jump(const Registers& stopped) {
    if (in_call(stopped) && result(stopped) == -ERESTART_RESTARTBLOCK) return again(stopped, SYS_restart_syscall);
    return for_elsewhere(stopped);
}

Interruptible interruptible(const Registers& stopped) {
    if (!in_call(stopped)) return Interruptible::no;
    switch (-result(stopped)) {
        case ERESTARTSYS:
            return Interruptible::restart;
        case ERESTARTNOHAND:
        case ERESTART_RESTARTBLOCK:
            return Interruptible::handler;
        default:
            return Interruptible::no;
    }
}

}  // namespace godwit
