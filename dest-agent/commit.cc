#include "dest-agent/commit.h"

#include <fmt/format.h>
#include <sys/ptrace.h>
#include <sys/wait.h>

#include <algorithm>

#include "common/base/fault.h"
#include "common/base/log.h"
#include "transport/channel.h"

namespace godwit {
namespace {

constexpr const char* settle_hint = "run: godwit recover, first on the source's host";

// The skeletons were killed: their tracer takes note, so that no zombie holds their PIDs.
void bury(std::vector<StoppedProcess>& tree) {
    for (StoppedProcess& process : tree) {
        for (auto task = process.tasks.rbegin(); task != process.tasks.rend(); ++task) {
            if (task->tid() != 0) ::waitpid(task->tid(), nullptr, __WALL);  // ECHILD where it is not ours any more
            task->forget();
        }
    }
    tree.clear();
}

Result<void> same_migration(const image::Commit& message, const std::string& migration_id, Channel& channel) {
    if (message.migration_id() == migration_id) return {};
    return peer_failed(channel.peer() + " speaks of another migration");
}

}  // namespace

DestCommit::DestCommit(DestCommit&& other) noexcept
    : options_(std::move(other.options_)),
      hold_(std::move(other.hold_)),
      journal_(std::exchange(other.journal_, std::nullopt)) {}

DestCommit::~DestCommit() {
    if (journal_) discard();
}

Result<DestCommit> DestCommit::prepare(DestCommitOptions options) {
    DestCommit commit;
    commit.options_ = std::move(options);
    commit.hold_ = TRY(HoldCgroup::for_destination(commit.options_.migration_id));
    JournalEntry entry;
    entry.migration_id = commit.options_.migration_id;
    entry.role = JournalRole::destination;
    entry.state = name_of(DestinationState::preparing);
    entry.hold_cgroup = commit.hold_.cgroup().path();
    entry.home_cgroup = commit.hold_.home().path();
    entry.peer_state_id = commit.options_.peer_state_id;
    // First written, then done: a crash leaves no cgroup that no journal names.
    commit.journal_ = TRY(Journal::create(commit.options_.state_dir, std::move(entry)));
    fault_point("dest:preparing");
    TRY(commit.hold_.make());
    fault_point("dest:cgroup-made");
    return commit;
}

Result<void> DestCommit::adopt(pid_t pid) {
    TRY(hold_.move_in(pid));
    journal_->edit().processes.push_back(TRY(describe_process(pid)));
    return {};
}

// If we die anywhere in here, EXITKILL is set: the kernel kills every skeleton, frozen or not.
Result<void> DestCommit::reach_go(Channel& channel, const std::vector<StoppedProcess>& tree) {
    const std::vector<pid_t> held = TRY(hold_.cgroup().processes());
    for (const StoppedProcess& process : tree)
        if (std::find(held.begin(), held.end(), process.pid) == held.end()) TRY(adopt(process.pid));
    TRY(hold_.freeze());
    fault_point("dest:frozen");
    TRY(journal_->write(name_of(DestinationState::ready)));
    fault_point("dest:ready");
    image::Commit ready;
    ready.set_migration_id(options_.migration_id);
    for (const auto& [name, microseconds] : options_.phases) {
        image::PhaseTime& phase = *ready.add_phases();
        phase.set_name(name);
        phase.set_microseconds(microseconds);
    }
    TRY(channel.send(FrameType::ready, ready));
    image::Commit go;
    TRY(channel.expect(FrameType::go, go, Deadline::in(options_.go_limit)));
    TRY(same_migration(go, options_.migration_id, channel));
    fault_point("dest:go");
    return {};
}

// If we die before the last PTRACE_SETOPTIONS, the tasks that still have EXITKILL die with us, and with them their
// processes; a tree of which only some processes died is held frozen, not OWNED, and will be discarded. After it all
// are held by the freezer, until OWNED is on disk to be discarded, from then on to be thawed.
Result<void> DestCommit::own(std::vector<StoppedProcess>& tree) {
    for (const StoppedProcess& process : tree) {
        for (const Tracee& task : process.tasks) {
            if (::ptrace(PTRACE_SETOPTIONS, task.tid(), nullptr, PTRACE_O_TRACESYSGOOD) != 0)
                return fail_errno(fmt::format("cannot drop EXITKILL of task {}", task.tid()));
            fault_point("dest:exitkill-dropped");
        }
    }
    for (StoppedProcess& process : tree) {
        for (Tracee& task : process.tasks) {
            TRY(task.detach());
            fault_point("dest:detached");
        }
    }
    TRY(journal_->write(name_of(DestinationState::owned)));
    fault_point("dest:owned");
    return {};
}

Result<void> DestCommit::hear_done(Channel& channel) {
    image::Commit done;
    TRY(channel.expect(FrameType::done, done, Deadline::in(options_.done_limit)));
    TRY(same_migration(done, options_.migration_id, channel));
    fault_point("dest:done");
    TRY(journal_->remove());
    fault_point("dest:forgotten");
    journal_.reset();
    image::Commit reply;
    reply.set_migration_id(options_.migration_id);
    return channel.send(FrameType::done_reply, reply);
}

Result<DestOutcome> DestCommit::commit(Channel& channel, std::vector<StoppedProcess>& tree) {
    auto owned = reach_go(channel, tree);
    if (owned) owned = own(tree);
    if (!owned) {
        discard();
        bury(tree);
        return Failure(owned.error());
    }
    for (StoppedProcess& process : tree)
        for (Tracee& task : process.tasks) task.forget();
    tree.clear();
    const auto thawed = hold_.thaw();
    if (!thawed) {  // held and ours: recover tries again
        journal_.reset();
        return Failure(Problem(thawed.error()).coded(ExitCode::uncertain).hinted(settle_hint));
    }
    fault_point("dest:thawed");
    image::Commit running;
    running.set_migration_id(options_.migration_id);
    auto told = channel.send(FrameType::running, running);
    // The tree runs, whatever fails from here on.
    const auto noted = journal_->write(name_of(DestinationState::running));
    if (!noted) spdlog::warn("{}", noted.error().what);
    fault_point("dest:running");
    // Before DONE, after which no journal names the hold cgroup any more. The source kills its copy meanwhile.
    const auto moved = hold_.move_home();
    if (!moved) spdlog::warn("the tree runs, but stays in cgroup {}: {}", hold_.cgroup().path(), moved.error().what);
    fault_point("dest:home");
    if (told && moved) told = hear_done(channel);
    if (journal_)
        spdlog::warn("the tree runs here, but the migration is not closed{}; {}", told ? "" : ": " + told.error().what,
                     settle_hint);
    const bool confirmed = !journal_;
    journal_.reset();
    return confirmed ? DestOutcome::done : DestOutcome::running;
}

// Kills what was built. The journal goes last: a question about this migration finds it, or finds nothing there to be
// run.
void DestCommit::discard() {
    const auto destroyed = hold_.destroy();
    fault_point("dest:discarded");
    const auto removed = destroyed ? journal_->remove() : Result<void>(Failure(destroyed.error()));
    if (!removed) spdlog::warn("{}; run: godwit recover", removed.error().what);
    journal_.reset();
}

}  // namespace godwit
