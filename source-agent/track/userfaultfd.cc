#include "source-agent/track/userfaultfd.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>

#include "common/base/fault.h"
#include "common/base/file.h"
#include "common/kernel/abi.h"
#include "common/kernel/pagemap.h"
#include "common/remote/descriptor_room.h"

namespace godwit {
namespace {

constexpr const char* device_path = "/dev/userfaultfd";

int enable(int fd) {
    uffdio_api api{};
    api.api = UFFD_API;
    api.features = UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_WP_HUGETLBFS_SHMEM | kernel::UFFD_FEATURE_WP_UNPOPULATED_ |
                   kernel::UFFD_FEATURE_WP_ASYNC_;
    return ::ioctl(fd, UFFDIO_API, &api);
}

UniqueFd make_own() {
    UniqueFd fd(static_cast<int>(::syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY)));
    if (fd) return fd;
    const auto device = open_file(device_path, O_RDWR);
    return UniqueFd(device ? ::ioctl(device->get(), USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK) : -1);
}

Failure cannot_make(pid_t pid, int64_t error) {
    const bool full = error == -EMFILE;
    return fail_errno(static_cast<int>(-error), fmt::format("cannot make a userfaultfd in process {}", pid),
                      full ? "raise its limit of open files (ulimit -n)" : "see whether a security module forbids it; --mode stop needs none");
}

}  // namespace

std::optional<Problem> Userfaultfd::missing() {
    const UniqueFd fd = make_own();
    if (!fd)
        return std::move(fail_errno(errno, "this host gives no userfaultfd", "the kernel needs CONFIG_USERFAULTFD").value())
            .coded(ExitCode::unsupported);
    if (enable(fd.get()) < 0)
        return std::move(unsupported("this kernel's userfaultfd has no asynchronous write protection (UFFD_FEATURE_WP_ASYNC)",
                                     "Linux 6.7 brought it (CONFIG_PTE_MARKER_UFFD_WP)").value());
    const auto pagemap = Pagemap::open(::getpid());
    if (!pagemap) return pagemap.error();
    const auto scans = pagemap->scans();
    if (!scans) return scans.error();
    if (!*scans) return std::move(unsupported("this kernel has no PAGEMAP_SCAN", "Linux 6.7 brought it (CONFIG_PROC_PAGE_MONITOR)").value());
    return std::nullopt;
}

Result<Userfaultfd> Userfaultfd::make(Remote& remote) {
    const DescriptorRoom room = TRY(DescriptorRoom::make(remote.pid()));
    auto made = make_by_call(remote);
    if (made || (made.error().error != EPERM && made.error().error != EACCES && made.error().error != ENOSYS)) return made;
    return make_by_device(remote);
}

// UFFD_USER_MODE_ONLY is what needs no privilege; in WP_ASYNC mode the kernel's own writes are seen all the same.
// If we die before fetch() has the descriptor closed there, the process keeps one that is not even enabled, close-on-exec.
Result<Userfaultfd> Userfaultfd::make_by_call(Remote& remote) {
    Batch batch;
    const auto made = batch.call_may_fail(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY);
    TRY(remote.run(batch));
    if (batch.result_of(made) < 0) return cannot_make(remote.pid(), batch.result_of(made));
    return fetch(remote, static_cast<int>(batch.result_of(made)));
}

Result<Userfaultfd> Userfaultfd::make_by_device(Remote& remote) {
    const UniqueFd device = TRY(open_file(device_path, O_RDWR));
    const int ours = device.get();
    const std::vector<int> sent = TRY(remote.send_fds({&ours, 1}));
    Batch batch;
    const auto made = batch.call_may_fail(SYS_ioctl, sent[0], USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK);
    batch.call(SYS_close, sent[0]);
    TRY(remote.run(batch));
    if (batch.result_of(made) < 0) return cannot_make(remote.pid(), batch.result_of(made));
    return fetch(remote, static_cast<int>(batch.result_of(made)));
}

Result<Userfaultfd> Userfaultfd::fetch(Remote& remote, int number) {
    const int undo = TRY(remote.undo_at_death(SYS_close, static_cast<uint64_t>(number)));
    const UniqueFd pidfd(static_cast<int>(::syscall(SYS_pidfd_open, remote.pid(), 0)));
    fault_point("track:pidfd-getfd");
    UniqueFd fd(pidfd ? static_cast<int>(::syscall(SYS_pidfd_getfd, pidfd.get(), number, 0)) : -1);
    const int error = errno;
    TRY(remote.call(SYS_close, static_cast<uint64_t>(number)));
    TRY(remote.forget_undo(undo));
    if (!fd) return fail_errno(error, fmt::format("cannot fetch userfaultfd {} of process {}", number, remote.pid()));
    if (enable(fd.get()) < 0) return fail_errno(fmt::format("cannot enable asynchronous write protection for process {}", remote.pid()));
    return Userfaultfd(std::move(fd), remote.pid());
}

Result<Userfaultfd::Registered> Userfaultfd::add(uint64_t start, uint64_t end) const {
    uffdio_register request{};
    request.range = {start, end - start};
    request.mode = UFFDIO_REGISTER_MODE_WP;
    fault_point("track:register");
    if (::ioctl(fd_.get(), UFFDIO_REGISTER, &request) == 0) return Registered::yes;
    switch (errno) {
        case EPERM:
            return Registered::never_write;
        case EINVAL:
            return Registered::vanished;
        case EBUSY:
            return unsupported(fmt::format("mapping {:x}-{:x} of process {} is under another userfaultfd", start, end, pid_),
                               "a process that uses userfaultfd itself moves with --mode stop");
        default:
            return fail_errno(fmt::format("cannot register mapping {:x}-{:x} of process {}", start, end, pid_));
    }
}

Result<void> Userfaultfd::remove(uint64_t start, uint64_t end) const {
    uffdio_range range{start, end - start};
    if (::ioctl(fd_.get(), UFFDIO_UNREGISTER, &range) == 0 || errno == EINVAL) return {};  // EINVAL: nothing is mapped there
    return fail_errno(fmt::format("cannot unregister mapping {:x}-{:x} of process {}", start, end, pid_));
}

Result<void> Userfaultfd::protect(uint64_t start, uint64_t end) const {
    uffdio_writeprotect request{};
    request.range = {start, end - start};
    request.mode = UFFDIO_WRITEPROTECT_MODE_WP;
    while (::ioctl(fd_.get(), UFFDIO_WRITEPROTECT, &request) < 0) {
        if (errno == EINTR || errno == EAGAIN) continue;  // the mappings are just being changed
        if (errno == ENOENT) return {};                   // unmapped meanwhile
        return fail_errno(fmt::format("cannot write-protect {:x}-{:x} of process {}", start, end, pid_));
    }
    return {};
}

}  // namespace godwit
