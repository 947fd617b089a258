#include "common/base/file.h"

#include <fmt/format.h>
#include <sys/stat.h>

#include "common/base/text.h"

namespace godwit {

Result<UniqueFd> open_file(const std::string& path, int flags, unsigned mode) {
    const int fd = ::open(path.c_str(), flags | O_CLOEXEC, mode);
    if (fd < 0) return fail_errno("cannot open " + printable(path));
    return UniqueFd(fd);
}

Result<std::string> read_file(const std::string& path, size_t limit) {
    const UniqueFd fd = TRY(open_file(path, O_RDONLY));
    std::string out;
    size_t used = 0;
    for (;;) {
        if (out.size() - used < 4096) out.resize(std::max<size_t>(2 * out.size(), 16384));
        const ssize_t got = ::read(fd.get(), out.data() + used, out.size() - used);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) return fail_errno("cannot read " + printable(path));
        if (got == 0) break;
        used += static_cast<size_t>(got);
        if (used > limit) return fail(fmt::format("{} is longer than {} bytes", printable(path), limit));
    }
    out.resize(used);
    return out;
}

Result<void> write_once(const std::string& path, std::string_view text) {
    const UniqueFd fd = TRY(open_file(path, O_WRONLY));
    const ssize_t done = ::write(fd.get(), text.data(), text.size());
    if (done < 0) return fail_errno(fmt::format("cannot write \"{}\" to {}", printable(text), printable(path)));
    if (static_cast<size_t>(done) != text.size()) return fail("short write to " + printable(path));
    return {};
}

Result<void> replace_file(const std::string& path, std::string_view text, unsigned mode) {
    const std::string fresh = path + ".new";
    const size_t slash = path.rfind('/');
    const std::string folder = slash == std::string::npos ? "." : slash == 0 ? "/" : path.substr(0, slash);
    {
        const UniqueFd fd = TRY(open_file(fresh, O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW, mode));
        auto written = write_all(fd.get(), text.data(), text.size());
        if (written && ::fsync(fd.get()) != 0) written = fail_errno("fsync");
        if (!written) {
            ::unlink(fresh.c_str());
            return fail_errno(written.error().error, "cannot write " + printable(path),
                              "free space on its file system, or choose another place");
        }
    }
    if (::rename(fresh.c_str(), path.c_str()) != 0) return fail_errno("cannot rename to " + printable(path));
    const UniqueFd dir = TRY(open_file(folder, O_RDONLY | O_DIRECTORY));
    if (::fsync(dir.get()) != 0) return fail_errno("cannot fsync " + printable(folder));
    return {};
}

Result<void> make_folders(const std::string& path, unsigned mode) {
    for (size_t at = 1; at <= path.size(); ++at) {
        if (at != path.size() && path[at] != '/') continue;
        const std::string part = path.substr(0, at);
        if (::mkdir(part.c_str(), mode) != 0 && errno != EEXIST) return fail_errno("cannot make folder " + printable(part));
    }
    return {};
}

Result<void> write_all(int fd, const void* data, size_t size) {
    const char* from = static_cast<const char*>(data);
    while (size > 0) {
        const ssize_t done = ::write(fd, from, size);
        if (done < 0 && errno == EINTR) continue;
        if (done < 0) return fail_errno("write");
        from += done;
        size -= static_cast<size_t>(done);
    }
    return {};
}

Result<void> read_all(int fd, void* data, size_t size) {
    char* to = static_cast<char*>(data);
    while (size > 0) {
        const ssize_t got = ::read(fd, to, size);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) return fail_errno("read");
        if (got == 0) return fail("unexpected end of file");
        to += got;
        size -= static_cast<size_t>(got);
    }
    return {};
}

}  // namespace godwit
