// What the source learns of a tree. Two passes over the same objects:
//
//   survey    while the tree runs and nothing was touched: finds everything that cannot be carried, all at once,
//             and fills the Plan. What it reads may change under it: an object that vanishes meanwhile is passed over.
//   collect   while the tree is frozen, with an executor resident: fills Layout, Process and Files. What appeared
//             after the survey and cannot be carried is a Problem here, and the tree runs on.
//
// Mappings are looked at again and again while the tree runs: collect/layout.h.
//
// Both use the same classifiers, so that what the survey accepts collect can carry. The list is total: an object of a
// kind that is not known is refused by name, never skipped. One pair of files per group: collect/memory, collect/task,
// collect/process, collect/files_*; the restoring halves have the same names in dest-agent/restore.
//
// Threads: the tracer thread. Nothing here changes the target.
#pragma once

#include <sys/types.h>

#include <functional>
#include <set>
#include <string>
#include <vector>

#include "common/base/result.h"
#include "common/image/files.pb.h"
#include "common/image/process.pb.h"
#include "common/image/session.pb.h"
#include "common/remote/remote.h"

namespace godwit {

struct CollectOptions {
    bool tcp_close = false;
    std::vector<std::string> trusted_files;
    std::set<uint64_t> moving_files;  // shared_object_id() of the files on tmpfs that move with the tree
};

// All Problems found in one go; each names pid, fd or address, what it is, and what would help.
using Problems = std::vector<Problem>;

// The tree as the survey sees it: for now exactly one process; children are refused by name.
struct Tree {
    pid_t root = 0;
    std::vector<pid_t> pids;  // as this agent's PID namespace sees them
};

// ---- survey (survey.cc): calls the survey_* of every group, fills processes[], files[], object_kinds[].
// The Result is a Problem only when the process is gone or /proc cannot be read.
Result<Problems> survey(const Tree& tree, const CollectOptions& options, image::Plan& plan);

Result<void> survey_process(pid_t pid, const CollectOptions& options, image::Plan& plan, Problems& problems);
Result<void> survey_memory(pid_t pid, const CollectOptions& options, image::Plan& plan, Problems& problems);
// What of the tree's shared memory other processes map or hold: all of /proc is read, some 100 µs for each of them, if there is any.
Result<void> survey_objects(const Tree& tree, image::Plan& plan, Problems& problems);
Result<void> survey_files(const Tree& tree, const CollectOptions& options, image::Plan& plan, Problems& problems);

// ---- collect. `process` is stopped; `remote` is resident in its leader.
struct Subject {
    StoppedProcess* process = nullptr;
    Remote* remote = nullptr;
    pid_t pid_inside = 0;  // as the program knows itself
};

Result<image::Process> collect_process(Subject& subject);
// The rest of it, once the executor has left: registers and pending signals of tasks that are stopped by ptrace.
Result<void> collect_stopped(StoppedProcess& process, image::Process& out);
Result<image::Files> collect_files(std::vector<Subject>& subjects, const CollectOptions& options);

// Which pages of private mappings hold content that the destination cannot know: present or swapped, and for mappings of
// files and shared objects changed. Ranges are ascending, page-aligned, in bytes, and merged.
struct ByteRange {
    uint64_t start = 0;
    uint64_t end = 0;
};
// `layout` tells the mappings. Reads /proc/PID/pagemap (PAGEMAP_SCAN where the kernel has it).
Result<std::vector<ByteRange>> content_ranges(pid_t pid, const image::Layout& layout);

}  // namespace godwit
