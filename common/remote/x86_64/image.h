// The executor as C++ sees it: structures that lie in the target (layout.h) and the machine code to copy there.
#pragma once

#include <linux/types.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

#include "common/remote/remote_ptr.h"
#include "common/remote/tracee.h"
#include "common/remote/x86_64/layout.h"

namespace godwit::executor {

// What a task goes on with when the executor lets go of it without the agent's help.
struct SavedTask {
    std::array<uint64_t, 20> registers;  // as user_regs_struct begins
    uint64_t mask;
    uint64_t interrupting;     // signals whose arrival makes the call under way end with EINTR
    uint64_t ask_restart;      // 1: unless their handlers have SA_RESTART
    uint64_t interrupted_rip;  // where to go on in that case
};
static_assert(sizeof(SavedTask) == GW_OWNER && offsetof(SavedTask, mask) == GW_MASK);
static_assert(offsetof(SavedTask, interrupted_rip) == GW_INTERRUPTED_RIP);
static_assert(offsetof(Registers, rip) == GW_RIP && offsetof(Registers, rsp) == GW_RSP);

struct Undo {
    uint64_t number;
    std::array<uint64_t, 6> arguments;
};

// What the agent sends to start a batch.
struct Header {
    uint64_t count;
    uint64_t calls_at;
    uint64_t results_at;
};

struct Slot {
    SavedTask task;
    uint64_t owner;  // `tid` from the task's first instruction in the executor until it is out for good, else 0
    int32_t socket;
    int32_t tid;  // as the agent sees it
    int32_t pair[2];
    uint64_t visitor;
    Header header;
    uint64_t reply;
    uint64_t pending;
    pollfd poll;
    uint64_t sigaction[4];
    msghdr message;
    iovec vector;
    uint64_t ready;
    uint64_t unmap;  // address of the boot code's unmap
    uint64_t undo_count;
    std::array<Undo, GW_MOST_UNDO> undo;
    std::array<std::byte, GW_CONTROL_SIZE> control;
};
static_assert(offsetof(Slot, owner) == GW_OWNER && offsetof(Slot, pair) == GW_PAIR && offsetof(Slot, tid) == GW_TID);
static_assert(offsetof(Slot, visitor) == GW_VISITOR && offsetof(Slot, header) == GW_COUNT);
static_assert(offsetof(Slot, reply) == GW_REPLY && offsetof(Slot, poll) == GW_POLL);
static_assert(offsetof(Slot, message) == GW_MSGHDR && offsetof(Slot, vector) == GW_IOVEC);
static_assert(offsetof(Slot, ready) == GW_READY && offsetof(Slot, unmap) == GW_UNMAP);
static_assert(offsetof(Slot, undo_count) == GW_UNDO_COUNT && offsetof(Slot, undo) == GW_UNDO);
static_assert(offsetof(Slot, control) == GW_CONTROL && sizeof(Slot) <= 0x1000);
static_assert(offsetof(msghdr, msg_controllen) == 40);

struct WireCall {
    uint64_t number;
    std::array<uint64_t, 6> arguments;
    uint64_t flags;
};
static_assert(sizeof(WireCall) == 64 && offsetof(WireCall, flags) == GW_CALL_FLAGS);

// The head of the boot code, before the instructions.
struct Boot {
    uint64_t magic;
    uint64_t sequence;  // highest = last written
    SavedTask task;
    uint64_t at;
    uint64_t map_flags;
};
static_assert(offsetof(Boot, task) == GW_BOOT_TASK && offsetof(Boot, at) == GW_BOOT_AT && sizeof(Boot) == GW_BOOT_CODE);

// The code, to be copied; offsets of its entries.
std::span<const std::byte> boot_code();
uint64_t boot_entry();
uint64_t boot_unmap();
std::span<const std::byte> executor_code();
uint64_t executor_visit();
uint64_t executor_retire();

// Registers that enter the code at `rip` with `base` in the register it expects (the slot; for boot_unmap the region),
// everything else as in `from`, and no system call to be restarted.
Registers entering(const Registers& from, RemotePtr rip, RemotePtr base);

// The four words that start a system call: number, arguments, and the `syscall` instruction to execute.
Registers calling(const Registers& from, RemotePtr instruction, long number, const uint64_t (&arguments)[6]);

inline int64_t call_result(const Registers& registers) { return static_cast<int64_t>(registers.rax); }
inline long call_number(const Registers& registers) { return static_cast<long>(registers.orig_rax); }
inline RemotePtr instruction_pointer(const Registers& registers) { return RemotePtr(registers.rip); }
// False for 32-bit code, which the executor cannot serve.
inline bool is_64_bit(const Registers& registers) { return registers.cs == 0x33; }

}  // namespace godwit::executor
