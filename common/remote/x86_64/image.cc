#include "common/remote/x86_64/image.h"

extern "C" {
extern const std::byte godwit_boot_begin[], godwit_boot_end[], godwit_boot_unmap[];
extern const std::byte godwit_executor_begin[], godwit_executor_end[];
extern const std::byte godwit_executor_visit[], godwit_executor_retire[];
}

namespace godwit::executor {

std::span<const std::byte> boot_code() { return {godwit_boot_begin, godwit_boot_end}; }
uint64_t boot_entry() { return GW_BOOT_CODE; }
uint64_t boot_unmap() { return static_cast<uint64_t>(godwit_boot_unmap - godwit_boot_begin); }
std::span<const std::byte> executor_code() { return {godwit_executor_begin, godwit_executor_end}; }
uint64_t executor_visit() { return static_cast<uint64_t>(godwit_executor_visit - godwit_executor_begin); }
uint64_t executor_retire() { return static_cast<uint64_t>(godwit_executor_retire - godwit_executor_begin); }

Registers entering(const Registers& from, RemotePtr rip, RemotePtr base) {
    Registers registers = from;
    registers.rip = rip.address();
    registers.rbx = base.address();
    registers.r12 = base.address();
    registers.orig_rax = ~0ull;  // the kernel restarts nothing
    return registers;
}

Registers calling(const Registers& from, RemotePtr instruction, long number, const uint64_t (&arguments)[6]) {
    Registers registers = from;
    registers.rip = instruction.address();
    registers.rax = static_cast<uint64_t>(number);
    registers.orig_rax = ~0ull;
    registers.rdi = arguments[0];
    registers.rsi = arguments[1];
    registers.rdx = arguments[2];
    registers.r10 = arguments[3];
    registers.r8 = arguments[4];
    registers.r9 = arguments[5];
    return registers;
}

}  // namespace godwit::executor
