// Regular files, directories and the memory devices.
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "common/base/file.h"
#include "common/base/text.h"
#include "dest-agent/restore/files_internal.h"

namespace godwit::files {
namespace {

// Looks before it opens: opening a device or a FIFO has effects.
Result<struct stat> look(const std::string& path, const image::RegularFile& file) {
    const UniqueFd there = TRY(open_file(path, O_PATH));
    struct stat status {};
    if (::fstat(there.get(), &status) != 0) return fail_errno("cannot look at " + printable(path));
    if ((status.st_mode & S_IFMT) != (file.mode() & S_IFMT))
        return fail(printable(path) + " is of another kind here", "the destination needs the same files");
    if (S_ISCHR(status.st_mode) && status.st_rdev != file.device_number())
        return fail(fmt::format("{} is device {}:{} here", printable(path), major(status.st_rdev), minor(status.st_rdev)),
                    "the destination needs the usual /dev");
    if (!S_ISREG(status.st_mode) && !S_ISDIR(status.st_mode) && !S_ISCHR(status.st_mode))
        return peer_failed(printable(path) + " is not a file", "both hosts need the same version of godwit");
    return status;
}

}  // namespace

// With root's rights, whoever the program runs as: it had the file open before (docs/descriptors.md).
Result<UniqueFd> open_file_again(const image::Description& description) {
    const image::RegularFile& file = description.file();
    const std::string& path = file.path();
    if (path.empty() || path.front() != '/' || path.find('\0') != std::string::npos)
        return peer_failed("not a path: " + printable(path));
    const struct stat before = TRY(look(path, file));
    if (S_ISCHR(before.st_mode) && major(before.st_rdev) != 1) return peer_failed(printable(path) + " is not a memory device");

    constexpr int never = O_CREAT | O_EXCL | O_TRUNC | (O_TMPFILE & ~O_DIRECTORY) | O_ASYNC;
    const int flags = static_cast<int>(description.flags()) & ~never;
    // O_NONBLOCK, which set_flags() takes back, so that not even a FIFO that was put there just now could hold us.
    UniqueFd fd = TRY(open_file(path, flags | O_NOCTTY | O_NONBLOCK));
    struct stat status {};
    if (::fstat(fd.get(), &status) != 0) return fail_errno("cannot look at " + printable(path));
    if (status.st_dev != before.st_dev || status.st_ino != before.st_ino)
        return fail(printable(path) + " was replaced while it was opened", "keep others from changing the files of the tree");
    if (!S_ISCHR(status.st_mode) && file.position() != 0 && ::lseek(fd.get(), file.position(), SEEK_SET) != file.position())
        return fail_errno(fmt::format("cannot set the position {} in {}", file.position(), printable(path)));
    return fd;
}

}  // namespace godwit::files
