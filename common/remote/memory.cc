#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include "common/base/fault.h"
#include "common/base/file.h"
#include "common/remote/remote.h"

namespace godwit {
namespace {

Failure lost(pid_t pid, const char* what, RemotePtr at, size_t size, ssize_t count) {
    const std::string text = fmt::format("cannot {} {} bytes at {:#x} of process {}", what, size, at.address(), pid);
    if (count == 0) return fail(text + ": its memory is gone", "the process ended or executed another program");
    return fail_errno(text);
}

}  // namespace

Result<ProcessMemory> ProcessMemory::open(pid_t pid) {
    ProcessMemory memory;
    memory.fd_ = TRY(open_file(fmt::format("/proc/{}/mem", pid), O_RDWR));
    memory.pid_ = pid;
    return memory;
}

Result<void> ProcessMemory::read(RemotePtr from, void* to, size_t size) const {
    for (size_t done = 0; done < size;) {
        const ssize_t count = ::pread64(fd_.get(), static_cast<char*>(to) + done, size - done,
                                        static_cast<off64_t>(from.address() + done));
        if (count < 0 && errno == EINTR) continue;
        if (count <= 0) return lost(pid_, "read", from, size, count);
        done += static_cast<size_t>(count);
    }
    return {};
}

Result<void> ProcessMemory::write(RemotePtr to, const void* from, size_t size) const {
    fault_point("remote:write-memory");
    for (size_t done = 0; done < size;) {
        const ssize_t count = ::pwrite64(fd_.get(), static_cast<const char*>(from) + done, size - done,
                                         static_cast<off64_t>(to.address() + done));
        if (count < 0 && errno == EINTR) continue;
        if (count <= 0) return lost(pid_, "write", to, size, count);
        done += static_cast<size_t>(count);
    }
    return {};
}

}  // namespace godwit
