// Pipes, with what was in them.
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/base/file.h"
#include "dest-agent/restore/files_internal.h"

namespace godwit::files {
namespace {

struct Ends {
    UniqueFd read, write;
    bool read_used = false, write_used = false;
};

Result<Ends> make_pipe(const image::Pipe& pipe) {
    int fds[2];
    if (::pipe2(fds, O_CLOEXEC) != 0) return fail_errno("cannot make a pipe");
    Ends ends{UniqueFd(fds[0]), UniqueFd(fds[1])};
    if (::fcntl(ends.write.get(), F_SETPIPE_SZ, static_cast<int>(pipe.capacity())) < 0)
        return fail_errno(errno, fmt::format("cannot make a pipe of {} bytes", pipe.capacity()),
                          "more than fs.pipe-max-size needs CAP_SYS_RESOURCE: raise it at the destination");
    if (pipe.content().size() > pipe.capacity())
        return peer_failed(fmt::format("{} bytes do not fit a pipe of {}", pipe.content().size(), pipe.capacity()));
    TRY(write_all(ends.write.get(), pipe.content().data(), pipe.content().size()));
    if ((pipe.uid() != 0 || pipe.gid() != 0) && ::fchown(ends.write.get(), pipe.uid(), pipe.gid()) != 0)
        return fail_errno(fmt::format("cannot give a pipe to uid {}", pipe.uid()));
    if (pipe.mode() != 0600 && ::fchmod(ends.write.get(), pipe.mode() & 07777) != 0)
        return fail_errno("cannot set the mode of a pipe");
    return ends;
}

// One description of the pipe: the first reader and writer are the ends themselves, any other is opened like it once was.
Result<UniqueFd> make_end(Ends& ends, const image::Description& description) {
    const int access = static_cast<int>(description.flags()) & O_ACCMODE;
    if (access == O_RDONLY && !std::exchange(ends.read_used, true)) return UniqueFd(::fcntl(ends.read.get(), F_DUPFD_CLOEXEC, 0));
    if (access == O_WRONLY && !std::exchange(ends.write_used, true)) return UniqueFd(::fcntl(ends.write.get(), F_DUPFD_CLOEXEC, 0));
    return open_file(fmt::format("/proc/self/fd/{}", ends.write.get()), access);
}

}  // namespace

Result<void> make_pipes(const image::Files& files, Made& made) {
    // Both ends of every pipe stay open until all descriptions are made; an end that the tree does not hold closes then.
    std::map<uint64_t, Ends> pipes;
    for (const auto& pipe : files.pipes()) {
        if (pipes.contains(pipe.pipe())) return peer_failed(fmt::format("pipe {} came twice", pipe.pipe()));
        pipes.emplace(pipe.pipe(), TRY(make_pipe(pipe)));
    }
    for (const auto& description : files.descriptions()) {
        if (!description.has_pipe_end()) continue;
        const auto pipe = pipes.find(description.pipe_end().pipe());
        if (pipe == pipes.end()) return peer_failed(fmt::format("pipe {} did not come", description.pipe_end().pipe()));
        UniqueFd end = TRY(make_end(pipe->second, description));
        if (!end) return fail_errno("cannot duplicate the end of a pipe");
        made.emplace(description.id(), std::move(end));
    }
    return {};
}

}  // namespace godwit::files
