// What /proc says of a process (proc(5)), parsed. Everything here can change or vanish while the process
// runs: a Problem with error ENOENT or ESRCH means that it is gone.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "common/base/result.h"

namespace godwit {

// One line of /proc/PID/smaps with what collecting needs of its details.
struct Vma {
    uint64_t start = 0;
    uint64_t end = 0;
    uint32_t protection = 0;  // PROT_*
    bool shared = false;
    uint64_t offset = 0;
    uint64_t device = 0;      // makedev() of the line's major:minor
    uint64_t inode = 0;
    std::string path;         // as printed (octal escapes undone), " (deleted)" kept; "[heap]" and the like
    std::vector<std::string> flags;  // VmFlags: "rd", "wr", "ac" ...; empty unless read from smaps
    uint64_t resident_kb = 0;
    uint64_t swap_kb = 0;
    uint64_t protection_key = 0;  // of pkey_mprotect(2)

    bool has(std::string_view flag) const;
    uint64_t size() const { return end - start; }
};

Result<std::vector<Vma>> read_maps(pid_t pid);
Result<std::vector<Vma>> read_smaps(pid_t pid);

// Fields of /proc/PID/stat that are used.
struct Stat {
    std::string name;
    char state = 0;
    pid_t ppid = 0;
    pid_t pgid = 0;
    pid_t sid = 0;
    int tty = 0;
    uint64_t flags = 0;  // PF_*; PF_KTHREAD is 0x00200000
    uint64_t start_time = 0;
    uint64_t start_code = 0, end_code = 0, start_stack = 0;
    uint64_t start_data = 0, end_data = 0, start_brk = 0;
    uint64_t arg_start = 0, arg_end = 0, env_start = 0, env_end = 0;
    int exit_signal = 0;
};
Result<Stat> read_stat(pid_t pid);                    // of the process
Result<Stat> read_task_stat(pid_t pid, pid_t tid);    // of one task

// /proc/PID/task/TID/status as key → value ("Uid" → "0\t0\t0\t0").
using Status = std::vector<std::pair<std::string, std::string>>;
Result<Status> read_status(pid_t pid, pid_t tid);
std::string status_value(const Status& status, std::string_view key);  // empty where missing
std::vector<int> status_ids(const Status& status, std::string_view key);  // "NSpid" → ids
uint64_t status_hex(const Status& status, std::string_view key);

Result<std::vector<pid_t>> read_tasks(pid_t pid);        // ascending, leader first
Result<std::vector<pid_t>> read_children(pid_t pid);     // of all its tasks
Result<std::vector<int>> read_fd_numbers(pid_t pid);     // ascending
Result<std::string> read_link(const std::string& path);
// All that /proc shows, ascending.
Result<std::vector<pid_t>> read_processes();
// /proc/PID/fdinfo/FD as lines.
Result<std::vector<std::string>> read_fdinfo(pid_t pid, int fd);
// The inode number of a namespace link such as "net", "mnt".
Result<uint64_t> namespace_inode(pid_t pid, const std::string& kind);

}  // namespace godwit
