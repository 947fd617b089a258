// The journal of one migration on one host: a small JSON file that is fsynced before what it says is relied upon.
//
//   STATE_DIR/id                        random UUID of this state directory, made once
//   STATE_DIR/<uuid>.source.json        what this host knows as source of migration <uuid>
//   STATE_DIR/<uuid>.destination.json   … as destination
//   STATE_DIR/<uuid>.<role>.lock        flock(2)ed by the living agent, so that recover tells the living from the dead
//
// The default is /var/lib/godwit, which survives a reboot: a destination that comes back with an empty state
// directory could no longer say what became of a tree. Journals carry the boot id, because processes and cgroups do
// not survive one.
//
// Ownership: a Journal holds the lock until destroyed. The lock is close-on-exec but passes to forked children:
// a child that neither execs nor exits keeps the migration "living". Threads: one Journal belongs to one thread at a
// time; several agents (threads or processes) may share a state directory.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <string>
#include <vector>

#include "common/base/result.h"
#include "common/base/unique_fd.h"
#include "common/recovery/table.h"

namespace godwit {

inline constexpr const char* default_state_dir = "/var/lib/godwit";

// Makes the directory (0700) when missing, and its id file (O_EXCL, once). Returns the id.
Result<std::string> open_state_dir(const std::string& state_dir);

// /proc/sys/kernel/random/boot_id.
Result<std::string> current_boot_id();
// Field 22 of /proc/PID/stat: with the pid it names one process for the time of one boot.
Result<uint64_t> process_start_time(pid_t pid);

enum class JournalRole { source, destination };

// How `recover` reaches the peer again: the address and the options that `migrate` was given, as text.
struct PeerAddress {
    std::string address;   // host:port, [v6]:port or unix:PATH
    std::string security;  // "tls", "unix", "insecure"
    std::string keys_dir;  // of "tls"
};

struct JournalProcess {
    pid_t pid = 0;
    uint64_t start_time = 0;
    std::string cgroup;  // where it was before the hold cgroup, as a path in the file system
};

struct JournalEntry {
    std::string migration_id;
    JournalRole role = JournalRole::source;
    std::string state;  // name_of(SourceState or DestinationState)
    std::string boot_id;
    std::string hold_cgroup;  // path in the file system
    std::string home_cgroup;  // source: where what was born in the hold cgroup goes; destination: the tree's own cgroup
    std::vector<JournalProcess> processes;
    PeerAddress peer;           // source only
    std::string peer_state_id;  // who may ask, and whose answers count
    int64_t written_at = 0;     // seconds since 1970, of the last write
};

class Journal {
  public:
    // Locks, and writes the first entry; fails if there is a journal of this migration and role already (a tombstone
    // too).
    static Result<Journal> create(const std::string& state_dir, JournalEntry entry);
    // Locks and reads what a dead agent left. error == EWOULDBLOCK: a living agent holds it; ENOENT: there is none.
    static Result<Journal> open(const std::string& state_dir, const std::string& migration_id, JournalRole role);

    Journal(Journal&&) noexcept = default;
    Journal& operator=(Journal&&) noexcept = default;

    const JournalEntry& entry() const { return entry_; }
    JournalEntry& edit() { return entry_; }
    // The entry with this state is on disk when this returns. On failure the file holds the old entry or the new one.
    Result<void> write(std::string_view state);
    // Removes journal and lock. The Journal is empty afterwards.
    Result<void> remove();

    bool same_boot() const { return same_boot_; }

  private:
    Journal() = default;
    std::string path_;  // without ".json"
    JournalEntry entry_;
    UniqueFd lock_;
    bool same_boot_ = true;
};

struct JournalName {
    std::string migration_id;
    JournalRole role = JournalRole::source;
};
// Every journal in the directory, sorted; files of other names are passed over. A missing directory holds none.
Result<std::vector<JournalName>> list_journals(const std::string& state_dir);
// Removes lock files without a journal, of agents that died before their first write or after the last.
Result<void> remove_stray_files(const std::string& state_dir);

}  // namespace godwit
