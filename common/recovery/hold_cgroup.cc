#include "common/recovery/hold_cgroup.h"

#include <dirent.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <ctime>
#include <memory>

#include "common/base/text.h"
#include "common/base/uuid.h"
#include "common/kernel/proc.h"

namespace godwit {
namespace {

constexpr std::string_view tree_prefix = "godwit-tree-";

std::string base_name(const std::string& path) { return path.substr(path.rfind('/') + 1); }
std::string parent_of(const std::string& path) { return path.substr(0, path.rfind('/')); }

// The migration that a cgroup's name speaks of; empty where it is none of ours.
std::string migration_of(const std::string& name) {
    const std::string_view all = name;
    std::string_view id;
    if (all.starts_with(tree_prefix))
        id = all.substr(tree_prefix.size());
    else if (all.starts_with("godwit-") && all.size() > 43 &&
             (all.substr(43) == "-source" || all.substr(43) == "-destination"))
        id = all.substr(7, 36);
    return is_uuid(id) ? std::string(id) : std::string();
}

// Where a process of the hold cgroup was, if the journal knows this very process and the cgroup is still there.
Cgroup origin_of(pid_t pid, const std::vector<JournalProcess>& processes, const Cgroup& home) {
    const auto known =
        std::find_if(processes.begin(), processes.end(), [pid](const JournalProcess& each) { return each.pid == pid; });
    if (known == processes.end() || known->cgroup.empty()) return home;
    const auto start = process_start_time(pid);
    const Cgroup origin(known->cgroup);
    return start && *start == known->start_time && origin.exists() ? origin : home;
}

// Where the first thread of a process has ended and others live, those move and it stays listed until they end, too.
bool has_ended(pid_t pid) {
    const auto stat = read_stat(pid);
    return !stat || stat->state == 'Z' || stat->state == 'X';
}

// Moves out of `from` until it is empty: what forks meanwhile is born in it, and dying processes stay listed for a
// moment.
template <class Target>
Result<void> move_all(const Cgroup& from, Target target_of) {
    const Deadline deadline = Deadline::in(cgroup_limit);
    for (int dead_only = 0;;) {
        const std::vector<pid_t> pids = TRY(from.processes());
        bool alive = false;
        for (const pid_t pid : pids) {
            alive |= !has_ended(pid);
            const auto moved = target_of(pid).move_in(pid);
            if (!moved && moved.error().error != ESRCH) return moved;
        }
        // The second time nothing was born of them before they moved.
        dead_only = alive ? 0 : dead_only + 1;
        if (dead_only == 2) return {};
        if (deadline.passed()) return fail("processes keep appearing in cgroup " + printable(from.path()));
    }
}

void find_ours(const std::string& path, std::vector<std::string>& found) {
    const std::unique_ptr<DIR, int (*)(DIR*)> dir(::opendir(path.c_str()), ::closedir);
    while (const dirent* each = dir ? ::readdir(dir.get()) : nullptr) {
        if (each->d_type != DT_DIR || each->d_name[0] == '.') continue;
        const std::string below = path + "/" + each->d_name;
        find_ours(below, found);
        if (!migration_of(each->d_name).empty()) found.push_back(below);
    }
}

}  // namespace

Result<HoldCgroup> HoldCgroup::for_source(const std::string& migration_id, pid_t root) {
    HoldCgroup held;
    held.home_ = TRY(Cgroup::of(root));
    held.hold_ = Cgroup(fmt::format("{}/godwit-{}-source", held.home_.path(), migration_id));
    return held;
}

Result<HoldCgroup> HoldCgroup::for_destination(const std::string& migration_id) {
    HoldCgroup held;
    const Cgroup top = TRY(Cgroup::top());
    held.hold_ = Cgroup(fmt::format("{}/godwit-{}-destination", top.path(), migration_id));
    held.home_ = Cgroup(fmt::format("{}/{}{}", top.path(), tree_prefix, migration_id));
    return held;
}

HoldCgroup HoldCgroup::of(const JournalEntry& entry) {
    HoldCgroup held;
    held.hold_ = Cgroup(entry.hold_cgroup);
    held.home_ = Cgroup(entry.home_cgroup);
    return held;
}

Result<void> HoldCgroup::make() const {
    if (hold_.exists()) return {};
    (void)TRY(Cgroup(parent_of(hold_.path())).make_child(base_name(hold_.path())));
    return {};
}

Result<void> HoldCgroup::give_back(const std::vector<JournalProcess>& processes) const {
    if (!hold_.exists()) return {};
    TRY(hold_.thaw());
    TRY(move_all(hold_, [&](pid_t pid) { return origin_of(pid, processes, home_); }));
    return hold_.remove(Deadline::in(cgroup_limit));
}

Result<void> HoldCgroup::move_home() const {
    if (!hold_.exists()) return {};
    // Another state directory's agent may take the empty cgroup for a stray one: then it is made anew.
    for (int attempt = 0;; ++attempt) {
        if (!home_.exists()) (void)TRY(Cgroup(parent_of(home_.path())).make_child(base_name(home_.path())));
        const auto moved = move_all(hold_, [&](pid_t) { return home_; });
        if (moved) break;
        if (moved.error().error != ENOENT || attempt == 2) return moved;
    }
    TRY(hold_.remove(Deadline::in(cgroup_limit)));
    // A tree that ended on the way leaves nothing to keep its cgroup for.
    if (!TRY(home_.populated())) return home_.remove(Deadline::in(cgroup_limit));
    return {};
}

Result<void> HoldCgroup::destroy() const {
    if (hold_.exists()) {
        TRY(hold_.kill(Deadline::in(cgroup_limit)));
        TRY(hold_.remove(Deadline::in(cgroup_limit)));
    }
    const bool ours = base_name(home_.path()).starts_with(tree_prefix);
    if (!ours || !home_.exists()) return {};
    if (!TRY(home_.populated())) return home_.remove(Deadline::in(cgroup_limit));
    return {};
}

Result<JournalProcess> describe_process(pid_t pid) {
    JournalProcess process;
    process.pid = pid;
    process.start_time = TRY(process_start_time(pid));
    process.cgroup = TRY(Cgroup::of(pid)).path();
    return process;
}

Result<std::vector<std::string>> remove_stray_cgroups(const std::string& state_dir) {
    std::vector<std::string> named;
    const std::vector<JournalName> journals = TRY(list_journals(state_dir));
    for (const JournalName& each : journals) named.push_back(each.migration_id);
    std::vector<std::string> candidates, removed;
    find_ours(TRY(Cgroup::top()).path(), candidates);
    for (const std::string& path : candidates) {
        const Cgroup cgroup(path);
        if (std::find(named.begin(), named.end(), migration_of(base_name(path))) != named.end()) continue;
        // Another state directory may be using this hierarchy and be about to move a tree in.
        struct stat made {};
        const bool tree = base_name(path).starts_with(tree_prefix);
        if (!tree && (::stat(path.c_str(), &made) != 0 || ::time(nullptr) - made.st_ctime < 60)) continue;
        const auto populated = cgroup.populated();
        if (!populated || *populated) continue;
        if (cgroup.remove(Deadline::in(milliseconds{1000}))) removed.push_back(path);
    }
    return removed;
}

Result<void> remove_ended_trees() {
    const std::string top = TRY(Cgroup::top()).path();
    const std::unique_ptr<DIR, int (*)(DIR*)> dir(::opendir(top.c_str()), ::closedir);
    while (const dirent* each = dir ? ::readdir(dir.get()) : nullptr) {
        if (!std::string_view(each->d_name).starts_with(tree_prefix) || migration_of(each->d_name).empty()) continue;
        const Cgroup cgroup(top + "/" + each->d_name);
        const auto populated = cgroup.populated();
        if (populated && !*populated) (void)cgroup.remove(Deadline::in(milliseconds{0}));
    }
    return {};
}

}  // namespace godwit
