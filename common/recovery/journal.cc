#include "common/recovery/journal.h"

#include <dirent.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <sys/stat.h>

#include <algorithm>
#include <cstdlib>
#include <ctime>
#include <memory>
#include <nlohmann/json.hpp>
#include <tuple>

#include "common/base/file.h"
#include "common/base/text.h"
#include "common/base/uuid.h"

namespace godwit {
namespace {

using nlohmann::json;

constexpr std::string_view role_name(JournalRole role) {
    return role == JournalRole::source ? "source" : "destination";
}

std::string stem(const std::string& state_dir, const std::string& migration_id, JournalRole role) {
    return fmt::format("{}/{}.{}", state_dir, migration_id, role_name(role));
}

Result<std::string> to_text(const JournalEntry& entry) {
    json processes = json::array();
    for (const JournalProcess& process : entry.processes)
        processes.push_back({{"pid", process.pid}, {"start_time", process.start_time}, {"cgroup", process.cgroup}});
    const json peer{{"address", entry.peer.address},
                    {"security", entry.peer.security},
                    {"keys_dir", entry.peer.keys_dir},
                    {"state_id", entry.peer_state_id}};
    const json all{{"version", 1},
                   {"migration_id", entry.migration_id},
                   {"role", role_name(entry.role)},
                   {"state", entry.state},
                   {"boot_id", entry.boot_id},
                   {"hold_cgroup", entry.hold_cgroup},
                   {"home_cgroup", entry.home_cgroup},
                   {"processes", processes},
                   {"peer", peer},
                   {"written_at", entry.written_at}};
    try {
        return all.dump(2) + "\n";
    } catch (
        const json::exception&) {  // JSON is UTF-8 and paths are bytes: refused, because a changed path is a wrong one
        return unsupported(fmt::format("a path in the journal of migration {} is not UTF-8: {}", entry.migration_id,
                                       printable(entry.home_cgroup)),
                           "rename the cgroup or the folder of keys");
    }
}

Result<JournalEntry> from_text(const std::string& path, const std::string& text) {
    const std::string hint =
        "look into the file; if it is of no use, end or thaw the processes of its cgroup by hand, then remove it";
    try {
        const json all = json::parse(text);
        if (all.at("version").get<int>() != 1)
            return fail(path + " was written by another version of godwit", "run that version's `godwit recover`");
        JournalEntry entry;
        entry.migration_id = all.at("migration_id").get<std::string>();
        const auto role = all.at("role").get<std::string>();
        if (role != "source" && role != "destination")
            return fail(path + " has the unknown role " + printable(role), hint);
        entry.role = role == "source" ? JournalRole::source : JournalRole::destination;
        entry.state = all.at("state").get<std::string>();
        entry.boot_id = all.at("boot_id").get<std::string>();
        entry.hold_cgroup = all.at("hold_cgroup").get<std::string>();
        entry.home_cgroup = all.at("home_cgroup").get<std::string>();
        for (const json& process : all.at("processes"))
            entry.processes.push_back({process.at("pid").get<pid_t>(), process.at("start_time").get<uint64_t>(),
                                       process.at("cgroup").get<std::string>()});
        const json& peer = all.at("peer");
        entry.peer = {peer.at("address").get<std::string>(), peer.at("security").get<std::string>(),
                      peer.at("keys_dir").get<std::string>()};
        entry.peer_state_id = peer.at("state_id").get<std::string>();
        entry.written_at = all.at("written_at").get<int64_t>();
        const bool known = entry.role == JournalRole::source ? source_state(entry.state).has_value()
                                                             : destination_state(entry.state).has_value();
        if (!known) return fail(path + " has the unknown state " + printable(entry.state), hint);
        return entry;
    } catch (const json::exception& error) {
        return fail(fmt::format("{} is not a journal: {}", path, printable(error.what())), hint);
    }
}

// The lock file goes away with its journal, so what was locked may be unlinked by now, or be another one's.
Result<UniqueFd> lock(const std::string& path) {
    for (;;) {
        UniqueFd fd = TRY(open_file(path, O_RDWR | O_CREAT | O_NOFOLLOW, 0600));
        if (::flock(fd.get(), LOCK_EX | LOCK_NB) != 0) {
            const int error = errno;
            return fail_errno(error, "a living agent holds " + path, "wait for it, or end it");
        }
        struct stat ours {
        }, there{};
        if (::fstat(fd.get(), &ours) != 0) return fail_errno("fstat " + path);
        if (::stat(path.c_str(), &there) == 0 && ours.st_ino == there.st_ino && ours.st_dev == there.st_dev) return fd;
    }
}

// Names of the files in the directory that begin with a migration id; none where there is no directory.
Result<std::vector<std::string>> migration_files(const std::string& state_dir) {
    std::vector<std::string> found;
    const std::unique_ptr<DIR, int (*)(DIR*)> dir(::opendir(state_dir.c_str()), ::closedir);
    if (!dir && errno != ENOENT) return fail_errno("cannot open " + state_dir);
    while (const dirent* each = dir ? ::readdir(dir.get()) : nullptr) {
        const std::string_view name = each->d_name;
        if (name.size() > 37 && name[36] == '.' && is_uuid(name.substr(0, 36))) found.emplace_back(name);
    }
    return found;
}

}  // namespace

Result<std::string> open_state_dir(const std::string& state_dir) {
    TRY(make_folders(state_dir, 0700));
    const std::string path = state_dir + "/id";
    // Written whole beside it and linked, so that nobody ever reads a half one; who comes second uses the first's.
    if (::access(path.c_str(), F_OK) != 0) {
        const std::string id = TRY(new_uuid());
        const std::string fresh = fmt::format("{}.{}", path, id);
        TRY(replace_file(fresh, id + "\n"));
        const int done = ::link(fresh.c_str(), path.c_str());
        const int error = errno;
        ::unlink(fresh.c_str());
        if (done != 0 && error != EEXIST) return fail_errno(error, "cannot make " + path);
        const UniqueFd folder = TRY(open_file(state_dir, O_RDONLY | O_DIRECTORY));
        if (::fsync(folder.get()) != 0) return fail_errno("cannot fsync " + state_dir);
    }
    std::string id = TRY(read_file(path, 4096));
    while (!id.empty() && id.back() == '\n') id.pop_back();
    if (!is_uuid(id))
        return fail(path + " does not hold a UUID", "remove it if no migration of this host is unsettled");
    return id;
}

Result<std::string> current_boot_id() {
    std::string id = TRY(read_file("/proc/sys/kernel/random/boot_id", 4096));
    while (!id.empty() && id.back() == '\n') id.pop_back();
    return id;
}

Result<uint64_t> process_start_time(pid_t pid) {
    const std::string path = fmt::format("/proc/{}/stat", pid);
    const std::string text = TRY(read_file(path, 65536));
    // comm may hold anything, brackets and blanks too: fields are counted from its last bracket (field 2).
    size_t at = text.rfind(')');
    for (int field = 2; field < 22 && at != std::string::npos; ++field) at = text.find(' ', at + 1);
    if (at == std::string::npos) return fail("cannot understand " + path);
    return std::strtoull(text.c_str() + at + 1, nullptr, 10);
}

Result<Journal> Journal::create(const std::string& state_dir, JournalEntry entry) {
    if (!is_uuid(entry.migration_id)) return fail("not a migration id: " + printable(entry.migration_id));
    (void)TRY(open_state_dir(state_dir));
    Journal journal;
    journal.path_ = stem(state_dir, entry.migration_id, entry.role);
    journal.lock_ = TRY(lock(journal.path_ + ".lock"));
    if (::access((journal.path_ + ".json").c_str(), F_OK) == 0) {
        return fail(journal.path_ + ".json exists already: this migration was begun before", "run: godwit recover");
    }
    entry.boot_id = TRY(current_boot_id());
    const std::string state = entry.state;
    journal.entry_ = std::move(entry);
    const auto written = journal.write(state);
    if (!written) {
        ::unlink((journal.path_ + ".json").c_str());
        ::unlink((journal.path_ + ".lock").c_str());
        return Failure(written.error());
    }
    return journal;
}

Result<Journal> Journal::open(const std::string& state_dir, const std::string& migration_id, JournalRole role) {
    if (!is_uuid(migration_id)) return fail("not a migration id: " + printable(migration_id));
    Journal journal;
    journal.path_ = stem(state_dir, migration_id, role);
    const std::string path = journal.path_ + ".json";
    // Looked for first, so that a question about an unknown migration leaves no lock file.
    if (::access(path.c_str(), F_OK) != 0) return fail_errno("no journal " + path);
    journal.lock_ = TRY(lock(journal.path_ + ".lock"));
    auto text = read_file(path, 16u << 20);
    if (!text) {  // removed between the look and the lock, by the agent that held it
        if (text.error().error == ENOENT) ::unlink((journal.path_ + ".lock").c_str());
        return Failure(text.error());
    }
    journal.entry_ = TRY(from_text(path, *text));
    if (journal.entry_.migration_id != migration_id || journal.entry_.role != role)
        return fail(path + " is the journal of another migration or role");
    journal.same_boot_ = journal.entry_.boot_id == TRY(current_boot_id());
    return journal;
}

Result<void> Journal::write(std::string_view state) {
    entry_.state = state;
    entry_.written_at = ::time(nullptr);
    const std::string text = TRY(to_text(entry_));
    return replace_file(path_ + ".json", text);
}

Result<void> Journal::remove() {
    const std::string path = path_ + ".json";
    if (::unlink(path.c_str()) != 0 && errno != ENOENT) return fail_errno("cannot remove " + path);
    ::unlink((path_ + ".json.new").c_str());  // of an agent that died in replace_file
    ::unlink((path_ + ".lock").c_str());
    lock_.reset();
    return {};
}

Result<std::vector<JournalName>> list_journals(const std::string& state_dir) {
    std::vector<JournalName> found;
    const std::vector<std::string> names = TRY(migration_files(state_dir));
    for (const std::string& name : names) {
        const std::string_view rest = std::string_view(name).substr(36);
        if (rest == ".source.json") found.push_back({name.substr(0, 36), JournalRole::source});
        if (rest == ".destination.json") found.push_back({name.substr(0, 36), JournalRole::destination});
    }
    std::sort(found.begin(), found.end(), [](const JournalName& a, const JournalName& b) {
        return std::tie(a.migration_id, a.role) < std::tie(b.migration_id, b.role);
    });
    return found;
}

Result<void> remove_stray_files(const std::string& state_dir) {
    const std::vector<std::string> names = TRY(migration_files(state_dir));
    for (const std::string& name : names) {
        if (!name.ends_with(".lock")) continue;
        const std::string path = state_dir + "/" + name.substr(0, name.size() - 5);
        const auto held = lock(path + ".lock");
        if (!held || ::access((path + ".json").c_str(), F_OK) == 0) continue;
        ::unlink((path + ".json.new").c_str());
        ::unlink((path + ".lock").c_str());
    }
    return {};
}

}  // namespace godwit
