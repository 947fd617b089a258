#include "common/remote/rseq.h"

#include <sys/ptrace.h>
#include <sys/uio.h>

#include "common/kernel/abi.h"
#include "common/remote/trace.h"

namespace godwit {
namespace {

bool read_remote(pid_t tid, uint64_t from, void* to, size_t size) {
    const iovec local{to, size};
    const iovec remote{reinterpret_cast<void*>(from), size};
    return ::process_vm_readv(tid, &local, 1, &remote, 1, 0) == static_cast<ssize_t>(size);
}

}  // namespace

Registers leave_critical_section(const Registers& registers, uint64_t start, uint64_t length, uint64_t abort) {
    Registers result = registers;
    if (registers.rip - start < length) {
        result.rip = abort;
        result.orig_rax = ~0ull;  // system calls are not allowed inside: there is none to restart
    }
    return result;
}

Result<Registers> leave_critical_section(pid_t tid, const Registers& registers) {
    kernel::RseqConfiguration configuration{};
    const auto known = trace::request("ptrace:rseq", kernel::PTRACE_GET_RSEQ_CONFIGURATION_, tid, sizeof configuration,
                                      reinterpret_cast<uint64_t>(&configuration));
    if (!known && known.error().error == EIO) return registers;
    if (!known) return Failure(known.error());
    if (configuration.rseq_abi_pointer == 0) return registers;
    uint64_t section_at = 0;
    kernel::RseqCriticalSection section{};
    // What cannot be read is not a section: the kernel would kill the task for it by itself.
    if (!read_remote(tid, configuration.rseq_abi_pointer + kernel::rseq_cs_offset, &section_at, sizeof section_at) ||
        section_at == 0 || !read_remote(tid, section_at, &section, sizeof section))
        return registers;
    return leave_critical_section(registers, section.start_ip, section.post_commit_offset, section.abort_ip);
}

}  // namespace godwit
