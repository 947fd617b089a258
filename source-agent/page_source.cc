// Where the content of a process's pages is read. Of shared objects: collect/object_pages.h.
#include <fmt/format.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>

#include "common/remote/remote.h"
#include "source-agent/page_streams.h"

namespace godwit {
namespace {

constexpr size_t most_pieces = 1024;  // UIO_MAXIOV

class ProcessPages final : public PageSource {
  public:
    explicit ProcessPages(pid_t pid) : pid_(pid) {}

    Result<void> read(std::span<const ByteRange> ranges, std::byte* to) const override {
        std::vector<iovec> remote;
        for (const ByteRange& range : ranges) remote.push_back({reinterpret_cast<void*>(range.start), range.end - range.start});
        for (size_t first = 0; first < remote.size();) {
            size_t got = TRY(read_plainly({&remote[first], std::min(remote.size() - first, most_pieces)}, to));
            // What permits no reading (PROT_NONE and the like) stopped it.
            if (got == 0) got = TRY(read_by_force(remote[first], to));
            to += got;
            for (; first < remote.size() && got >= remote[first].iov_len; ++first) got -= remote[first].iov_len;
            if (got == 0) continue;
            remote[first].iov_base = static_cast<std::byte*>(remote[first].iov_base) + got;
            remote[first].iov_len -= got;
        }
        return {};
    }

  private:
    Result<size_t> read_plainly(std::span<const iovec> remote, std::byte* to) const {
        iovec local{to, 0};
        for (const iovec& piece : remote) local.iov_len += piece.iov_len;
        const ssize_t got = ::process_vm_readv(pid_, &local, 1, remote.data(), remote.size(), 0);
        if (got >= 0) return static_cast<size_t>(got);
        if (errno == EFAULT || errno == EINTR) return 0;
        return lost(errno, remote.front());
    }

    // /proc/PID/mem asks no permission of the mapping. Opened anew each time: it stays with the memory it was opened for, even
    // if the process executes another program, and it is needed for few pages.
    Result<size_t> read_by_force(const iovec& remote, std::byte* to) const {
        const auto memory = ProcessMemory::open(pid_);
        if (!memory) return lost(memory.error().error == ENOENT ? ESRCH : memory.error().error, remote);
        const auto at = static_cast<off64_t>(reinterpret_cast<uint64_t>(remote.iov_base));
        ssize_t got = 0;
        do {
            got = ::pread64(memory->fd(), to, remote.iov_len, at);
        } while (got < 0 && errno == EINTR);
        if (got > 0) return static_cast<size_t>(got);
        if (got == 0) return lost(ESRCH, remote);
        return lost(errno == EIO ? EFAULT : errno, remote);
    }

    Failure lost(int error, const iovec& remote) const {
        const auto at = reinterpret_cast<uint64_t>(remote.iov_base);
        return fail_errno(error, fmt::format("cannot read {} bytes at {:#x} of process {}", remote.iov_len, at, pid_),
                          error == ESRCH ? "it ended or executed another program" : "");
    }

    const pid_t pid_;
};

}  // namespace

std::unique_ptr<PageSource> process_pages(pid_t pid) { return std::make_unique<ProcessPages>(pid); }

}  // namespace godwit
