// Where things lie in the executor's region and in its boot code; read by executor.S and by C++ alike.
//
//   region   page 0, r-x   magic, size, executor code
//            page 1, rw-   slot of the host task
//            page 2, rw-   slot of a visiting task (run_in)
//            page 3.., rw- calls, results and data of batches
//   boot     in the zero tail of the vDSO: magic, saved task, parameters, code
//
// The region is shared anonymous memory: it never merges with a neighbour, is shown as "/dev/zero (deleted)" and so
// is found cheaply, and does not count as private writable memory.
#pragma once

#define GW_MAGIC 0x31786574696d7767

#define GW_CODE_SIZE 0x1000
#define GW_HOST_SLOT 0x1000
#define GW_VISITOR_SLOT 0x2000
#define GW_CALLS 0x3000
#define GW_MOST_CALLS 1024
#define GW_RESULTS (GW_CALLS + GW_MOST_CALLS * 64)
#define GW_DATA (GW_RESULTS + GW_MOST_CALLS * 8)
#define GW_DATA_SIZE 0x40000
#define GW_REGION_SIZE (GW_DATA + GW_DATA_SIZE)

// SavedTask: the first 20 words of user_regs_struct, then what follows.
#define GW_R15 0
#define GW_R14 8
#define GW_R13 16
#define GW_R12 24
#define GW_RBP 32
#define GW_RBX 40
#define GW_R11 48
#define GW_R10 56
#define GW_R9 64
#define GW_R8 72
#define GW_RAX 80
#define GW_RCX 88
#define GW_RDX 96
#define GW_RSI 104
#define GW_RDI 112
#define GW_RIP 128
#define GW_EFLAGS 144
#define GW_RSP 152
#define GW_MASK 160
#define GW_INTERRUPTING 168
#define GW_ASK_RESTART 176
#define GW_INTERRUPTED_RIP 184

// Slot: starts with a SavedTask.
#define GW_OWNER 192
#define GW_SOCKET 200
#define GW_TID 204
#define GW_PAIR 208
#define GW_VISITOR 216
#define GW_COUNT 224
#define GW_CALLS_AT 232
#define GW_RESULTS_AT 240
#define GW_REPLY 248
#define GW_PENDING 256
#define GW_POLL 264
#define GW_SIGACTION 272
#define GW_MSGHDR 304
#define GW_IOVEC 360
#define GW_READY 376
#define GW_UNMAP 384
#define GW_UNDO_COUNT 392
#define GW_UNDO 400
#define GW_MOST_UNDO 16
#define GW_CONTROL 1296
#define GW_CONTROL_SIZE 1032

// WireCall, 64 bytes: number, six arguments, flags.
#define GW_CALL_FLAGS 56
#define GW_MAY_FAIL 1
#define GW_RESULT_SHIFT 8

// Boot: magic, sequence, SavedTask, parameters.
#define GW_BOOT_TASK 16
#define GW_BOOT_AT 208
#define GW_BOOT_MAP_FLAGS 216
#define GW_BOOT_CODE 224
