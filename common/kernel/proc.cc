#include "common/kernel/proc.h"

#include <dirent.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include <algorithm>
#include <charconv>
#include <cstring>
#include <memory>

#include "common/base/file.h"

namespace godwit {
namespace {

std::string unescape(std::string_view text) {
    std::string out;
    for (size_t i = 0; i < text.size(); ++i) {
        if (text.substr(i, 4) == "\\012") {
            out += '\n';
            i += 3;
        } else {
            out += text[i];
        }
    }
    return out;
}

std::vector<std::string_view> lines_of(std::string_view text) {
    std::vector<std::string_view> out;
    while (!text.empty()) {
        const size_t end = text.find('\n');
        out.push_back(text.substr(0, end));
        if (end == std::string_view::npos) break;
        text.remove_prefix(end + 1);
    }
    return out;
}

// "start-end perms offset major:minor inode   path"
bool parse_vma(std::string_view line, Vma& vma) {
    unsigned long start, end, offset, inode;
    unsigned int major_number, minor_number;
    char permissions[5];
    int consumed = 0;
    const std::string copy(line);
    if (std::sscanf(copy.c_str(), "%lx-%lx %4s %lx %x:%x %lu%n", &start, &end, permissions, &offset, &major_number,
                    &minor_number, &inode, &consumed) != 7)
        return false;
    vma = Vma{};
    vma.start = start;
    vma.end = end;
    vma.protection = (permissions[0] == 'r' ? PROT_READ : 0) | (permissions[1] == 'w' ? PROT_WRITE : 0) |
                     (permissions[2] == 'x' ? PROT_EXEC : 0);
    vma.shared = permissions[3] == 's';
    vma.offset = offset;
    vma.device = makedev(major_number, minor_number);
    vma.inode = inode;
    std::string_view path = line.substr(static_cast<size_t>(consumed));
    while (!path.empty() && path.front() == ' ') path.remove_prefix(1);
    vma.path = unescape(path);
    return true;
}

uint64_t kilobytes(std::string_view value) {
    while (!value.empty() && value.front() == ' ') value.remove_prefix(1);
    uint64_t out = 0;
    std::from_chars(value.data(), value.data() + value.size(), out);
    return out;
}

Result<Stat> parse_stat(const std::string& path) {
    const std::string text = TRY(read_file(path));
    const size_t open = text.find('(');
    const size_t close = text.rfind(')');
    if (open == std::string::npos || close == std::string::npos) return fail("cannot make sense of " + path);
    Stat stat;
    stat.name = text.substr(open + 1, close - open - 1);
    std::vector<std::string> fields;  // fields[0] is field 3 of proc(5)
    std::string_view rest = std::string_view(text).substr(close + 2);
    while (!rest.empty()) {
        const size_t end = rest.find_first_of(" \n");
        fields.emplace_back(rest.substr(0, end));
        if (end == std::string_view::npos) break;
        rest.remove_prefix(end + 1);
    }
    if (fields.size() < 50) return fail("cannot make sense of " + path);
    const auto number = [&](size_t field) { return std::strtoull(fields[field - 3].c_str(), nullptr, 10); };
    stat.state = fields[0][0];
    stat.ppid = static_cast<pid_t>(number(4));
    stat.pgid = static_cast<pid_t>(number(5));
    stat.sid = static_cast<pid_t>(number(6));
    stat.tty = static_cast<int>(number(7));
    stat.flags = number(9);
    stat.start_time = number(22);
    stat.start_code = number(26);
    stat.end_code = number(27);
    stat.start_stack = number(28);
    stat.exit_signal = static_cast<int>(number(38));
    stat.start_data = number(45);
    stat.end_data = number(46);
    stat.start_brk = number(47);
    stat.arg_start = number(48);
    stat.arg_end = number(49);
    stat.env_start = number(50);
    stat.env_end = fields.size() > 48 ? number(51) : 0;
    return stat;
}

// The entries of a folder whose names are numbers, ascending.
Result<std::vector<int>> numbers_in(const std::string& path) {
    const std::unique_ptr<DIR, int (*)(DIR*)> folder(::opendir(path.c_str()), ::closedir);
    if (!folder) return fail_errno("cannot open " + path);
    std::vector<int> out;
    while (const dirent* entry = ::readdir(folder.get()))
        if (entry->d_name[0] >= '0' && entry->d_name[0] <= '9') out.push_back(std::atoi(entry->d_name));
    std::sort(out.begin(), out.end());
    return out;
}

}  // namespace

bool Vma::has(std::string_view flag) const {
    return std::find(flags.begin(), flags.end(), flag) != flags.end();
}

Result<std::vector<Vma>> read_maps(pid_t pid) {
    const std::string text = TRY(read_file(fmt::format("/proc/{}/maps", pid)));
    std::vector<Vma> out;
    for (const auto line : lines_of(text)) {
        Vma vma;
        if (!parse_vma(line, vma)) return fail(fmt::format("cannot make sense of /proc/{}/maps: {}", pid, line));
        out.push_back(std::move(vma));
    }
    return out;
}

Result<std::vector<Vma>> read_smaps(pid_t pid) {
    const std::string text = TRY(read_file(fmt::format("/proc/{}/smaps", pid), 1u << 30));
    std::vector<Vma> out;
    for (const auto line : lines_of(text)) {
        // A detail line is "Name:   value"; a header starts with a lower-case hexadecimal address.
        if (!line.empty() && line[0] >= 'A' && line[0] <= 'Z') {
            if (out.empty()) return fail(fmt::format("cannot make sense of /proc/{}/smaps", pid));
            if (line.starts_with("Rss:")) out.back().resident_kb = kilobytes(line.substr(4));
            if (line.starts_with("Swap:")) out.back().swap_kb = kilobytes(line.substr(5));
            if (line.starts_with("ProtectionKey:")) out.back().protection_key = kilobytes(line.substr(14));
            if (!line.starts_with("VmFlags:")) continue;
            std::string_view rest = line.substr(8);
            while (rest.size() >= 2) {
                if (rest.front() == ' ') {
                    rest.remove_prefix(1);
                    continue;
                }
                out.back().flags.emplace_back(rest.substr(0, 2));
                rest.remove_prefix(2);
            }
            continue;
        }
        Vma vma;
        if (!parse_vma(line, vma)) return fail(fmt::format("cannot make sense of /proc/{}/smaps: {}", pid, line));
        out.push_back(std::move(vma));
    }
    return out;
}

Result<Stat> read_stat(pid_t pid) {
    return parse_stat(fmt::format("/proc/{}/stat", pid));
}

Result<Stat> read_task_stat(pid_t pid, pid_t tid) {
    return parse_stat(fmt::format("/proc/{}/task/{}/stat", pid, tid));
}

Result<Status> read_status(pid_t pid, pid_t tid) {
    const std::string text = TRY(read_file(fmt::format("/proc/{}/task/{}/status", pid, tid)));
    Status out;
    for (const auto line : lines_of(text)) {
        const size_t colon = line.find(":\t");
        if (colon == std::string_view::npos) continue;
        out.emplace_back(line.substr(0, colon), line.substr(colon + 2));
    }
    return out;
}

std::string status_value(const Status& status, std::string_view key) {
    for (const auto& [name, value] : status)
        if (name == key) return value;
    return {};
}

std::vector<int> status_ids(const Status& status, std::string_view key) {
    std::vector<int> out;
    const std::string value = status_value(status, key);
    const char* at = value.c_str();
    for (;;) {
        char* end = nullptr;
        // Unsigned ids (a uid of 4294967294) keep their bits.
        const unsigned long id = std::strtoul(at, &end, 10);
        if (end == at) return out;
        out.push_back(static_cast<int>(id));
        at = end;
    }
}

uint64_t status_hex(const Status& status, std::string_view key) {
    return std::strtoull(status_value(status, key).c_str(), nullptr, 16);
}

Result<std::vector<pid_t>> read_tasks(pid_t pid) {
    auto tasks = TRY(numbers_in(fmt::format("/proc/{}/task", pid)));
    // Thread ids wrap around: the leader is not always the lowest.
    const auto leader = std::find(tasks.begin(), tasks.end(), pid);
    if (leader != tasks.end()) std::rotate(tasks.begin(), leader, leader + 1);
    return tasks;
}

Result<std::vector<pid_t>> read_children(pid_t pid) {
    std::vector<pid_t> out;
    for (const pid_t tid : TRY(read_tasks(pid))) {
        const auto text = read_file(fmt::format("/proc/{}/task/{}/children", pid, tid));
        if (!text) {
            if (text.error().error == ENOENT || text.error().error == ESRCH) continue;
            return Failure(text.error());
        }
        const char* at = text->c_str();
        for (;;) {
            char* end = nullptr;
            const long child = std::strtol(at, &end, 10);
            if (end == at) break;
            out.push_back(static_cast<pid_t>(child));
            at = end;
        }
    }
    return out;
}

Result<std::vector<pid_t>> read_processes() { return numbers_in("/proc"); }

Result<std::vector<int>> read_fd_numbers(pid_t pid) {
    return numbers_in(fmt::format("/proc/{}/fd", pid));
}

Result<std::string> read_link(const std::string& path) {
    char buffer[4096 * 2];
    const ssize_t size = ::readlink(path.c_str(), buffer, sizeof buffer);
    if (size < 0) return fail_errno("cannot read the link " + path);
    return std::string(buffer, static_cast<size_t>(size));
}

Result<std::vector<std::string>> read_fdinfo(pid_t pid, int fd) {
    const std::string text = TRY(read_file(fmt::format("/proc/{}/fdinfo/{}", pid, fd)));
    std::vector<std::string> out;
    for (const auto line : lines_of(text)) out.emplace_back(line);
    return out;
}

Result<uint64_t> namespace_inode(pid_t pid, const std::string& kind) {
    struct stat info;
    const std::string path = fmt::format("/proc/{}/ns/{}", pid, kind);
    if (::stat(path.c_str(), &info) != 0) return fail_errno("cannot look at " + path);
    return static_cast<uint64_t>(info.st_ino);
}

}  // namespace godwit
