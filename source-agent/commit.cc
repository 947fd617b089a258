#include "source-agent/commit.h"

#include <fmt/format.h>
#include <sys/wait.h>

#include <algorithm>

#include "common/base/fault.h"
#include "common/base/log.h"
#include "source-agent/recover.h"
#include "transport/channel.h"
#include "source-agent/end_copy.h"

namespace godwit {
namespace {

// The tracees are dead or dying. As their tracer we are told of it first; only then their parent is.
void bury(std::vector<StoppedProcess>& tree) {
    for (StoppedProcess& process : tree) {
        for (auto task = process.tasks.rbegin(); task != process.tasks.rend(); ++task) {
            ::waitpid(task->tid(), nullptr, __WALL);  // a killed task ends; one that is not ours any more gives ECHILD
            task->forget();
        }
    }
    tree.clear();
}

void note_phases(const image::Commit& message, CommitTimes& times) {
    for (const image::PhaseTime& phase : message.phases())
        times.destination_phases.emplace_back(phase.name(), phase.microseconds());
}

Result<void> same_migration(const image::Commit& message, const std::string& migration_id, Channel& channel) {
    if (message.migration_id() == migration_id) return {};
    return peer_failed(channel.peer() + " speaks of another migration");
}

}  // namespace

SourceCommit::SourceCommit(SourceCommit&& other) noexcept
    : options_(std::move(other.options_)),
      hold_(std::move(other.hold_)),
      journal_(std::exchange(other.journal_, std::nullopt)),
      times_(std::move(other.times_)),
      problem_(std::move(other.problem_)) {}

SourceCommit::~SourceCommit() {
    if (journal_) undo();
}

Result<SourceCommit> SourceCommit::prepare(SourceCommitOptions options, const std::vector<pid_t>& pids) {
    if (pids.empty()) return fail("no process to migrate");
    SourceCommit commit;
    commit.options_ = std::move(options);
    commit.hold_ = TRY(HoldCgroup::for_source(commit.options_.migration_id, pids.front()));
    JournalEntry entry;
    entry.migration_id = commit.options_.migration_id;
    entry.role = JournalRole::source;
    entry.state = name_of(SourceState::preparing);
    entry.hold_cgroup = commit.hold_.cgroup().path();
    entry.home_cgroup = commit.hold_.home().path();
    entry.peer = commit.options_.peer;
    entry.peer_state_id = commit.options_.peer_state_id;
    for (const pid_t pid : pids) entry.processes.push_back(TRY(describe_process(pid)));
    // First written, then done: a crash leaves no cgroup that no journal names.
    commit.journal_ = TRY(Journal::create(commit.options_.state_dir, std::move(entry)));
    fault_point("source:preparing");
    TRY(commit.hold_.make());
    fault_point("source:cgroup-made");
    for (const pid_t pid : pids) {
        TRY(commit.hold_.move_in(pid));
        fault_point("source:moved-in");
    }
    return commit;
}

// Everything up to the GO: whatever fails here leaves the tree with the source.
Result<void> SourceCommit::reach_go(Channel& channel, const std::vector<StoppedProcess>& tree) {
    image::Commit ready;
    TRY(channel.expect(FrameType::ready, ready, Deadline::in(options_.ready_limit)));
    TRY(same_migration(ready, options_.migration_id, channel));
    times_.ready_received = Clock::now();
    note_phases(ready, times_);
    // Processes that were forked between prepare() and their parent's move are not in the cgroup yet.
    const std::vector<pid_t> held = TRY(hold_.cgroup().processes());
    for (const StoppedProcess& process : tree) {
        if (std::find(held.begin(), held.end(), process.pid) != held.end()) continue;
        journal_->edit().processes.push_back(TRY(describe_process(process.pid)));
        TRY(hold_.move_in(process.pid));
    }
    fault_point("source:ready");
    TRY(journal_->write(name_of(SourceState::committed)));
    fault_point("source:committed");
    TRY(hold_.freeze());
    fault_point("source:frozen");
    return {};
}

// From the first byte of GO on the tree is not ours to run.
Result<void> SourceCommit::hand_over(Channel& channel) {
    image::Commit message;
    message.set_migration_id(options_.migration_id);
    times_.go_sent = Clock::now();
    TRY(channel.send(FrameType::go, message));
    image::Commit running;
    TRY(channel.expect(FrameType::running, running, Deadline::in(options_.answer_limit)));
    TRY(same_migration(running, options_.migration_id, channel));
    times_.running_received = Clock::now();
    note_phases(running, times_);
    return {};
}

Result<void> SourceCommit::finish(Channel& channel, std::vector<StoppedProcess>& tree) {
    fault_point("source:running");
    TRY(end_copy(hold_, *journal_));
    bury(tree);
    fault_point("source:killed");
    TRY(journal_->write(name_of(SourceState::done)));
    fault_point("source:done");
    image::Commit message;
    message.set_migration_id(options_.migration_id);
    TRY(channel.send(FrameType::done, message));
    image::Commit reply;
    TRY(channel.expect(FrameType::done_reply, reply, Deadline::in(options_.answer_limit)));
    fault_point("source:forgotten");
    return journal_->remove();
}

// The link is lost or the peer answers nonsense while our copy is frozen: ask on new connections, act by the table.
Result<SourceOutcome> SourceCommit::settle_lost(Problem why, std::vector<StoppedProcess>& tree) {
    spdlog::warn("{}; asking the destination again", why.what);
    SourceRecoverOptions options;
    options.state_dir = options_.state_dir;
    options.dial = options_.dial;
    options.limit = options_.settle_limit;
    const bool was_running = times_.running_received != Clock::time_point{};
    const Settled settled = settle_source(*journal_, options);
    journal_.reset();
    if (settled.action == SourceAction::kill) {
        bury(tree);
        if (!was_running) times_.running_received = Clock::now();
        if (!settled.report.hint.empty()) spdlog::warn("{}; {}", settled.report.what, settled.report.hint);
        return SourceOutcome::done;
    }
    if (settled.action == SourceAction::resume) return Failure(std::move(why).coded(ExitCode::peer));
    // Held: registers as at the stop, so that whoever thaws the tree finds nothing of ours in it. The freezer holds it.
    for (StoppedProcess& process : tree) release_process(process);
    tree.clear();
    problem_ = Problem{fmt::format("{}: {}", why.what, settled.report.what), settled.report.hint, ExitCode::uncertain,
                       why.error};
    return SourceOutcome::uncertain;
}

Result<SourceOutcome> SourceCommit::commit(Channel& channel, std::vector<StoppedProcess>& tree) {
    const auto reached = reach_go(channel, tree);
    if (!reached) {
        undo();
        return Failure(reached.error());
    }
    auto done = hand_over(channel);
    if (done) done = finish(channel, tree);
    if (!done) {
        channel.shut_down();
        return settle_lost(std::move(done.error()), tree);
    }
    journal_.reset();
    return SourceOutcome::done;
}

void SourceCommit::undo() {
    const auto given_back = hold_.give_back(journal_->entry().processes);
    fault_point("source:given-back");
    const auto removed = given_back ? journal_->remove() : Result<void>(Failure(given_back.error()));
    if (!removed) spdlog::warn("{}; run: godwit recover", removed.error().what);
    journal_.reset();
}

}  // namespace godwit
