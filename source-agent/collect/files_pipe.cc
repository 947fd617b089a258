// Pipes whose ends are all held by the tree.
#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "common/base/file.h"
#include "source-agent/collect/files_internal.h"

namespace godwit::files {
namespace {

constexpr unsigned long watch_queue_set_size = _IO('W', 0x60);  // IOC_WATCH_QUEUE_SET_SIZE, linux/watch_queue.h

bool can_read(const Seen& one) {
    return (one.flags & O_ACCMODE) != O_WRONLY;
}
bool can_write(const Seen& one) {
    return (one.flags & O_ACCMODE) != O_RDONLY;
}

bool polls(int fd, short event) {
    pollfd waited{fd, event, 0};
    return ::poll(&waited, 1, 0) == 1 && (waited.revents & event) != 0;
}

// Whether somebody we cannot see (another PID namespace, a descriptor under way in a socket) has the end that the tree lacks.
bool other_end_is_open(const Seen& one, const Looker& looker, int duplicate) {
    const bool reader = looker.find(one.status.st_ino, can_read) != nullptr;
    const bool writer = looker.find(one.status.st_ino, can_write) != nullptr;
    if (reader && !writer) return !polls(duplicate, POLLHUP);
    if (writer && !reader) return !polls(duplicate, POLLERR);
    return false;
}

// All that is in the pipe, which is not changed by it: tee(2) into a pipe of our own.
Result<std::string> peek(const Seen& one, int pipe_end, int capacity) {
    int waiting = 0;
    if (::ioctl(pipe_end, FIONREAD, &waiting) != 0) return fail_errno(one.who() + ": cannot ask how much the pipe holds");
    if (waiting == 0) return std::string();
    int ends[2];
    if (::pipe2(ends, O_CLOEXEC | O_NONBLOCK) != 0) return fail_errno("cannot make a pipe");
    const UniqueFd from(ends[0]), to(ends[1]);
    if (::fcntl(to.get(), F_SETPIPE_SZ, capacity) < 0)
        return fail_errno(errno, fmt::format("{}: cannot make a pipe of {} bytes to copy it into", one.who(), capacity),
                          "more than fs.pipe-max-size needs CAP_SYS_RESOURCE");
    const ssize_t teed = ::tee(pipe_end, to.get(), static_cast<size_t>(waiting), SPLICE_F_NONBLOCK);
    if (teed != waiting)
        return fail_errno(teed < 0 ? errno : EIO, fmt::format("{}: cannot copy the {} bytes in the pipe", one.who(), waiting));
    std::string content(static_cast<size_t>(waiting), '\0');
    TRY(read_all(from.get(), content.data(), content.size()));
    return content;
}

}  // namespace

Refusal check_pipe(const Seen& one, const Looker& looker) {
    const auto outsider = looker.outside.find(one.status.st_ino);
    if (outsider != looker.outside.end())
        return refuse(one, fmt::format("{} is shared with pid {} ({}) outside the tree, fd {}", one.link, outsider->second.pid,
                                       outsider->second.name, outsider->second.fd),
                      "migrate both, or start the program with its input and output in files");
    const auto duplicate = looker.duplicate(one);
    if (!duplicate) return {};  // vanished
    if (other_end_is_open(one, looker, duplicate->get()))
        return refuse(one, one.link + " has its other end outside the tree", "migrate both, or start the program with its input and output in files");
    if (::ioctl(duplicate->get(), watch_queue_set_size, 0) != 0 && errno == EINVAL)
        return refuse(one, one.link + " is a notification pipe", "this kind is not carried yet: have the program close it");
    int waiting = 0;
    if ((one.flags & O_DIRECT) != 0 && ::ioctl(duplicate->get(), FIONREAD, &waiting) == 0 && waiting != 0)
        return refuse(one, one.link + " is in packet mode (O_DIRECT) and not empty", "try again when the program has read it");
    return {};
}

void collect_pipe(const Seen& one, image::Description& out) {
    auto* end = out.mutable_pipe_end();
    end->set_pipe(one.status.st_ino);
    end->set_write_end((one.flags & O_ACCMODE) == O_WRONLY);
}

Result<void> collect_pipe_contents(const Looker& looker, image::Files& out) {
    std::set<uint64_t> done;
    for (const Seen& one : looker.seen) {
        if (one.kind != Kind::pipe || !done.insert(one.status.st_ino).second) continue;
        const UniqueFd any = TRY(looker.duplicate(one));
        const int capacity = ::fcntl(any.get(), F_GETPIPE_SZ);
        if (capacity < 0) return fail_errno(one.who() + ": cannot ask the capacity of the pipe");
        auto* pipe = out.add_pipes();
        pipe->set_pipe(one.status.st_ino);
        pipe->set_capacity(static_cast<uint32_t>(capacity));
        pipe->set_uid(one.status.st_uid);
        pipe->set_gid(one.status.st_gid);
        pipe->set_mode(one.status.st_mode & 07777);
        // What no reader is left for can never be read.
        const Seen* reader = looker.find(one.status.st_ino, can_read);
        if (reader == nullptr) continue;
        const UniqueFd end = TRY(looker.duplicate(*reader));
        pipe->set_content(TRY(peek(*reader, end.get(), capacity)));
    }
    return {};
}

}  // namespace godwit::files
