// Kernel ABI that the distribution's headers (Linux 6.1) or its C library's do not have under a usable name. Each item
// names the version that brought it.
#pragma once

#include <sys/ptrace.h>

#include <cstdint>

namespace godwit::kernel {

// Results of a system call that only the kernel and a tracer see (include/linux/errno.h).
constexpr int64_t ERESTARTSYS = 512;
constexpr int64_t ERESTARTNOINTR = 513;
constexpr int64_t ERESTARTNOHAND = 514;
constexpr int64_t ERESTART_RESTARTBLOCK = 516;

// ptrace(2), Linux 5.13.
constexpr long PTRACE_GET_RSEQ_CONFIGURATION_ = 0x420f;
struct RseqConfiguration {
    uint64_t rseq_abi_pointer;
    uint32_t rseq_abi_size;
    uint32_t signature;
    uint32_t flags;
    uint32_t pad;
};

// rseq(2), Linux 4.18: struct rseq_cs, and where struct rseq points at it.
struct RseqCriticalSection {
    uint32_t version;
    uint32_t flags;
    uint64_t start_ip;
    uint64_t post_commit_offset;
    uint64_t abort_ip;
};
constexpr uint64_t rseq_cs_offset = 8;

// arch_prctl(2), Linux 4.9 with CONFIG_CHECKPOINT_RESTORE: maps [vvar], [vvar_vclock] and behind them the vDSO, from an
// address on.
constexpr int arch_map_vdso_64 = 0x2003;

// memfd_create(2), Linux 6.3.
constexpr unsigned memfd_exec = 0x10;

// prctl(2), Linux 5.17.
constexpr int pr_set_vma = 0x53564d41;
constexpr int pr_set_vma_anon_name = 0;

// prctl(2), Linux 6.15: timer_create() takes the wanted id from where it will store it.
constexpr int pr_timer_create_restore_ids = 77;

// userfaultfd(2): write protection that the kernel lifts by itself and PAGEMAP_SCAN reads, Linux 6.7. It brings
// UNPOPULATED (6.4): markers stand for pages that are not there.
constexpr uint64_t UFFD_FEATURE_WP_UNPOPULATED_ = 1u << 13;
constexpr uint64_t UFFD_FEATURE_WP_ASYNC_ = 1u << 15;

// unix(7): most descriptors in one SCM_RIGHTS message.
constexpr unsigned most_descriptors_in_message = 253;

}  // namespace godwit::kernel
