#include "dest-agent/page_filler.h"

#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#include "common/base/fault.h"
#include "common/base/file.h"
#include "dest-agent/layout.h"

namespace godwit {
namespace {

bool always_huge_pages() {
    const auto setting = read_file("/sys/kernel/mm/transparent_hugepage/enabled");
    return setting && setting->find("[always]") != std::string::npos;
}

}  // namespace

Result<PageFiller> PageFiller::make(Remote& remote, int pidfd) {
    PageFiller filler;
    if (always_huge_pages()) return filler;
    // It is the memory of who makes it that a userfaultfd is about.
    Batch batch;
    const auto made = batch.call_may_fail(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY);
    TRY(remote.run(batch));
    if (batch.result_of(made) < 0) return filler;
    fault_point("skeleton:page-filler");
    UniqueFd fd(static_cast<int>(::syscall(SYS_pidfd_getfd, pidfd, batch.result_of(made), 0)));
    TRY(remote.call(SYS_close, static_cast<uint64_t>(batch.result_of(made))));
    uffdio_api api{};
    api.api = UFFD_API;
    if (fd && ::ioctl(fd.get(), UFFDIO_API, &api) == 0) filler.fd_ = std::move(fd);
    return filler;
}

void PageFiller::add(const image::MappingRange& of, uint64_t start, uint64_t end) const {
    if (!fd_ || of.kind() != image::MAPPING_ANONYMOUS || of.huge_page()) return;
    uffdio_register mapping{};
    mapping.range = {start, end - start};
    mapping.mode = UFFDIO_REGISTER_MODE_MISSING;
    (void)::ioctl(fd_.get(), UFFDIO_REGISTER, &mapping);
}

PageFiller::Filled PageFiller::fill(uint64_t address, const std::byte* content, size_t size) const {
    if (!fd_) return {0, ENOENT};
    uffdio_copy copy{};
    copy.dst = address;
    copy.src = reinterpret_cast<uint64_t>(content);
    copy.len = size;
    copy.mode = UFFDIO_COPY_MODE_DONTWAKE;  // nobody waits
    if (::ioctl(fd_.get(), UFFDIO_COPY, &copy) == 0) return {size, 0};
    // EAGAIN: it got some way, and does not say what stopped it.
    const int error = errno;
    // The kernel fills no range that spans two mappings of its own, though they are one to the program (seams.cc).
    if (error == ENOENT && size > page_size) return fill(address, content, page_size);
    return {copy.copy > 0 ? static_cast<size_t>(copy.copy) : 0, error == EAGAIN ? 0 : error};
}

}  // namespace godwit
