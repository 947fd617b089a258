#include "common/kernel/cgroup.h"

#include <dirent.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstdlib>
#include <memory>
#include <sstream>
#include <string_view>

#include "common/base/file.h"
#include "common/base/text.h"

namespace godwit {
namespace {

constexpr const char* v2_hint = "godwit needs the cgroup v2 hierarchy: mount -t cgroup2 none /sys/fs/cgroup";

struct Mount {
    std::string root;  // of the hierarchy, as our cgroup namespace names it
    std::string point;
};

// Blanks and backslashes stand as \ooo in mountinfo (proc(5)).
std::string unescape(std::string_view text) {
    std::string out;
    for (size_t i = 0; i < text.size(); ++i) {
        if (text[i] == '\\' && i + 3 < text.size()) {
            out += static_cast<char>(std::strtol(std::string(text.substr(i + 1, 3)).c_str(), nullptr, 8));
            i += 3;
        } else {
            out += text[i];
        }
    }
    return out;
}

Result<Mount> find_mount() {
    const std::string text = TRY(read_file("/proc/self/mountinfo"));
    std::istringstream lines(text);
    for (std::string line; std::getline(lines, line);) {
        const size_t dash = line.find(" - ");
        if (dash == std::string::npos || line.compare(dash + 3, 8, "cgroup2 ") != 0) continue;
        std::istringstream fields(line);
        std::string id, parent, device, root, point;
        fields >> id >> parent >> device >> root >> point;
        return Mount{unescape(root), unescape(point)};
    }
    return unsupported("no cgroup v2 hierarchy is mounted", v2_hint);
}

// The value of a key in a flat keyed file ("frozen 1").
Result<bool> flag_in(const std::string& text, std::string_view key, const std::string& path) {
    std::istringstream words(text);
    for (std::string name, value; words >> name >> value;)
        if (name == key) return value == "1";
    return unsupported(fmt::format("{} has no \"{}\"", path, key), "the freezer of cgroup v2 came with Linux 5.2");
}

Result<std::vector<std::string>> folders_in(const std::string& path) {
    std::vector<std::string> found;
    const std::unique_ptr<DIR, int (*)(DIR*)> dir(::opendir(path.c_str()), ::closedir);
    if (!dir) return fail_errno("cannot open cgroup " + printable(path));
    while (const dirent* each = ::readdir(dir.get())) {
        const std::string_view name = each->d_name;
        if (each->d_type == DT_DIR && name != "." && name != "..") found.push_back(path + "/" + each->d_name);
    }
    return found;
}

// Waits until `key` of cgroup.events is `wanted`; false when the deadline passed. The file raises POLLPRI on a change, but
// not on every one: on Linux 6.18 one in some twenty was never told of when a frozen cgroup was killed. So we look by
// ourselves, too.
Result<bool> wait_event(const std::string& cgroup, std::string_view key, bool wanted, Deadline deadline) {
    const std::string path = cgroup + "/cgroup.events";
    const UniqueFd fd = TRY(open_file(path, O_RDONLY));
    for (;;) {
        char text[256];
        const ssize_t got = ::pread(fd.get(), text, sizeof text, 0);
        if (got < 0) return fail_errno("cannot read " + printable(path));
        const bool now = TRY(flag_in(std::string(text, static_cast<size_t>(got)), key, path));
        if (now == wanted) return true;
        if (deadline.passed()) return false;
        constexpr int look_again_ms = 20;
        pollfd wait{fd.get(), POLLPRI, 0};
        if (::poll(&wait, 1, std::min(deadline.poll_timeout(), look_again_ms)) < 0 && errno != EINTR)
            return fail_errno("poll " + printable(path));
    }
}

// Tasks of these processes in uninterruptible sleep, which is what a freeze waits for; all processes where none is.
std::string sluggards(const std::vector<pid_t>& pids) {
    std::string asleep, all;
    for (const pid_t pid : pids) {
        all += fmt::format(" {}", pid);
        const std::unique_ptr<DIR, int (*)(DIR*)> dir(::opendir(fmt::format("/proc/{}/task", pid).c_str()), ::closedir);
        while (const dirent* each = dir ? ::readdir(dir.get()) : nullptr) {
            const auto status = read_file(fmt::format("/proc/{}/task/{}/status", pid, each->d_name), 65536);
            if (status && status->find("\nState:\tD") != std::string::npos) asleep += fmt::format(" {}", each->d_name);
        }
    }
    return asleep.empty() ? " among processes" + all : " in uninterruptible sleep:" + asleep;
}

Result<void> kill_each(const std::vector<pid_t>& pids, const Cgroup& cgroup) {
    for (const pid_t pid : pids) {
        const UniqueFd fd(static_cast<int>(::syscall(SYS_pidfd_open, pid, 0)));
        if (!fd && errno == ESRCH) continue;
        if (!fd) return fail_errno(fmt::format("pidfd_open of process {}", pid));
        // The pid may have been given anew before pidfd_open; after it the descriptor is of one process for ever.
        const auto now = Cgroup::of(pid);
        if (!now || !now->path().starts_with(cgroup.path())) continue;
        if (::syscall(SYS_pidfd_send_signal, fd.get(), SIGKILL, nullptr, 0) != 0 && errno != ESRCH)
            return fail_errno(fmt::format("cannot kill process {}", pid));
    }
    return {};
}

}  // namespace

Result<Cgroup> Cgroup::of(pid_t pid) {
    const std::string file = fmt::format("/proc/{}/cgroup", pid);
    const std::string text = TRY(read_file(file, 1u << 20));
    size_t at = text.starts_with("0::") ? 0 : text.find("\n0::");
    if (at == std::string::npos) return unsupported(file + " has no entry of the cgroup v2 hierarchy", v2_hint);
    at = text.find("0::", at) + 3;
    std::string path = text.substr(at, text.find('\n', at) - at);
    if (path.ends_with(" (deleted)"))
        return fail(fmt::format("the cgroup of process {} is gone: {}", pid, printable(path)));
    const Mount mount = TRY(find_mount());
    if (mount.root != "/") {
        const bool below =
            path.starts_with(mount.root) && (path.size() == mount.root.size() || path[mount.root.size()] == '/');
        if (!below)
            return unsupported(fmt::format("the cgroup of process {}, {}, is not below {}, of which {} is a mount", pid,
                                           printable(path), printable(mount.root), printable(mount.point)),
                               "mount cgroup2 in this cgroup namespace");
        path = path.substr(mount.root.size());
    }
    if (path.starts_with("/.."))
        return unsupported(
            fmt::format("process {} is in a cgroup outside of our cgroup namespace: {}", pid, printable(path)),
            "run godwit in the process's cgroup namespace or above it");
    return Cgroup(path.empty() || path == "/" ? mount.point : mount.point + path);
}

Result<Cgroup> Cgroup::top() { return Cgroup(TRY(find_mount()).point); }

bool Cgroup::exists() const { return ::access((path_ + "/cgroup.procs").c_str(), F_OK) == 0; }

Result<std::string> Cgroup::type() const {
    auto text = read_file(path_ + "/cgroup.type", 4096);
    if (!text && text.error().error == ENOENT && exists()) return std::string("root");
    std::string type = TRY(std::move(text));
    while (!type.empty() && type.back() == '\n') type.pop_back();
    return type;
}

Result<Cgroup> Cgroup::make_child(const std::string& name) const {
    const std::string kind = TRY(type());
    if (kind != "domain" && kind != "root") {
        return unsupported(
            fmt::format("cgroup {} is of type \"{}\": it cannot have a cgroup of whole processes below it",
                        printable(path_), kind),
            "move the tree to a cgroup of type domain");
    }
    const Cgroup child(path_ + "/" + name);
    if (::mkdir(child.path_.c_str(), 0755) != 0) return fail_errno("cannot make cgroup " + printable(child.path_));
    return child;
}

Result<std::vector<pid_t>> Cgroup::processes() const {
    std::vector<pid_t> found;
    const std::string text = TRY(read_file(path_ + "/cgroup.procs"));
    std::istringstream lines(text);
    for (pid_t pid = 0; lines >> pid;) found.push_back(pid);
    const std::vector<std::string> folders = TRY(folders_in(path_));
    for (const std::string& each : folders) {
        const auto below = Cgroup(each).processes();
        if (below) found.insert(found.end(), below->begin(), below->end());
        if (!below && Cgroup(each).exists()) return Failure(below.error());
    }
    return found;
}

Result<bool> Cgroup::populated() const {
    const std::string path = path_ + "/cgroup.events";
    if (::access(path.c_str(), F_OK) != 0) return !TRY(processes()).empty();  // the root has no such file
    return flag_in(TRY(read_file(path, 4096)), "populated", path);
}

Result<void> Cgroup::move_in(pid_t pid) const {
    auto done = write_once(path_ + "/cgroup.procs", fmt::format("{}", pid));
    if (!done)
        return Failure(
            Problem{fmt::format("cannot move process {} to cgroup {}: {}", pid, printable(path_), done.error().what),
                    {},
                    ExitCode::failed,
                    done.error().error});
    return {};
}

Result<void> Cgroup::freeze(Deadline deadline) const {
    TRY(write_once(path_ + "/cgroup.freeze", "1"));
    if (TRY(wait_event(path_, "frozen", true, deadline))) return {};
    return fail(fmt::format("cgroup {} did not freeze in time; tasks{}", printable(path_), sluggards(TRY(processes()))),
                "a task in uninterruptible sleep cannot be frozen: look at its /proc/TID/wchan");
}

Result<bool> Cgroup::frozen() const {
    const std::string path = path_ + "/cgroup.events";
    return flag_in(TRY(read_file(path, 4096)), "frozen", path);
}

Result<bool> Cgroup::freeze_asked() const { return TRY(read_file(path_ + "/cgroup.freeze", 4096)).starts_with("1"); }

Result<void> Cgroup::thaw() const { return write_once(path_ + "/cgroup.freeze", "0"); }

Result<void> Cgroup::kill(Deadline deadline) const {
    const auto killed = kill_all(deadline);
    // Whoever found it empty may have removed it meanwhile.
    if (!killed && !exists()) return {};
    return killed;
}

Result<void> Cgroup::kill_all(Deadline deadline) const {
    if (::access((path_ + "/cgroup.kill").c_str(), F_OK) == 0) {
        TRY(write_once(path_ + "/cgroup.kill", "1"));
    } else {
        // Frozen first, so that nobody forks between the look and the kill; SIGKILL ends frozen tasks too.
        TRY(freeze(deadline));
        const std::vector<pid_t> pids = TRY(processes());
        TRY(kill_each(pids, *this));
    }
    if (TRY(wait_event(path_, "populated", false, deadline))) return {};
    return fail(fmt::format("processes in cgroup {} did not die in time; tasks{}", printable(path_),
                            sluggards(TRY(processes()))));
}

Result<void> Cgroup::remove(Deadline deadline) const {
    if (::access(path_.c_str(), F_OK) != 0 && errno == ENOENT) return {};
    const std::vector<std::string> below = TRY(folders_in(path_));
    for (const std::string& each : below) TRY(Cgroup(each).remove(deadline));
    while (::rmdir(path_.c_str()) != 0) {
        if (errno == ENOENT) return {};
        if (errno != EBUSY || deadline.passed()) return fail_errno("cannot remove cgroup " + printable(path_));
        ::usleep(
            2000);  // dying tasks leave their cgroup a little after "populated 0" on some kernels: no event says when
    }
    return {};
}

}  // namespace godwit
