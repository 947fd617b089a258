#include "dest-agent/migrate.h"

#include <fmt/format.h>
#include <sys/resource.h>

#include <algorithm>
#include <ctime>

#include "common/base/defer.h"
#include "common/base/fault.h"
#include "common/base/ledger.h"
#include "common/base/log.h"
#include "common/kernel/machine.h"
#include "dest-agent/check_plan.h"
#include "dest-agent/commit.h"
#include "dest-agent/made_objects.h"
#include "dest-agent/page_receiver.h"
#include "dest-agent/restore/restore.h"
#include "dest-agent/skeleton.h"

namespace godwit {
namespace {

constexpr milliseconds plan_limit{30'000};
constexpr milliseconds message_limit{120'000};
// A round takes as long as its pages; while they come by other connections the source says now and then that it lives.
constexpr milliseconds round_limit{24 * 3600 * 1000};
constexpr milliseconds silence_limit{60'000};
constexpr milliseconds writing_limit{600'000};  // what was sent is written
constexpr milliseconds alive_every{5'000};
constexpr milliseconds look_every{100};  // at what became of the data connections
constexpr milliseconds data_limit{20'000};
constexpr milliseconds abort_limit{2'000};

class Incoming {
  public:
    Incoming(Channel& control, const std::string& id, Sessions& sessions, const IncomingOptions& options)
        : control_(control), id_(id), sessions_(sessions), options_(options) {}

    Result<void> run();

  private:
    Result<bool> agree();
    Result<void> receive_memory(DestCommit& guard);
    Result<bool> receive_layouts(PageReceiver& receiver, uint32_t round, DestCommit& guard);
    Result<void> await_message(PageReceiver& receiver);
    Result<void> receive_rounds(PageReceiver& receiver, DestCommit& guard);
    Result<void> receive_layout(image::Layout layout, DestCommit& guard);
    Result<void> check_files(const image::Layout& layout);
    Result<void> finish_round(PageReceiver& receiver, uint32_t round);
    Result<void> finish_last_round(PageReceiver& receiver, uint32_t round);
    Result<void> wait_for_pages(PageReceiver& receiver, const image::RoundEnd& end, uint32_t round);
    PageTarget* find_target(uint32_t pid, uint64_t object);
    Result<void> restore();
    Result<void> check_credentials(const image::Process& process) const;
    Result<void> commit(DestCommit& commit);

    Channel& control_;
    const std::string& id_;
    Sessions& sessions_;
    const IncomingOptions& options_;
    image::Plan plan_;
    int64_t plan_arrived_ns_ = 0;
    std::shared_ptr<Session> session_;
    std::optional<Spawner> spawner_;
    CheckedFiles files_;
    MadeObjects objects_;
    std::vector<Skeleton> skeletons_;
    Ledger ledger_;
};

Result<void> Incoming::run() {
    if (!TRY(agree())) return {};
    const Undo close_session([this] { sessions_.close(id_); });

    DestCommitOptions commit_options;
    commit_options.state_dir = options_.state_dir;
    commit_options.migration_id = id_;
    commit_options.peer_state_id = plan_.state_id();
    DestCommit guard = TRY(DestCommit::prepare(std::move(commit_options)));
    // From the answer on the source may freeze its tree at any moment: our turn must come whatever this host does.
    ::setpriority(PRIO_PROCESS, 0, -20);
    TRY(receive_memory(guard));
    TRY(restore());
    return commit(guard);
}

// False: the plan was answered with what keeps us from taking the tree.
Result<bool> Incoming::agree() {
    TRY(control_.expect(FrameType::plan, plan_, Deadline::in(plan_limit)));
    plan_arrived_ns_ = now_ns(CLOCK_MONOTONIC);
    auto problems = check_plan(plan_, options_.policy);
    image::PlanReply reply;
    for (const std::string& path : files_to_come(plan_)) reply.add_moving_files(path);
    objects_.may_make({reply.moving_files().begin(), reply.moving_files().end()});
    auto state_id = open_state_dir(options_.state_dir);
    if (state_id)
        reply.set_state_id(*state_id);
    else
        problems.push_back(state_id.error());
    if (problems.empty()) {
        if (auto session = sessions_.open(id_, plan_.streams()))
            session_ = *session;
        else
            problems.push_back(session.error());
    }
    for (const image::FileIdentity& file : plan_.files()) files_.add(file);
    to_wire(problems, *reply.mutable_problems());
    auto sent = control_.send(FrameType::plan_reply, reply);
    if (!sent && session_) sessions_.close(id_);
    TRY(std::move(sent));
    return problems.empty();
}

// Round after round, until that of the frozen tree. Skeletons are made by the first layouts and corrected by the later ones,
// pages written in place.
Result<void> Incoming::receive_memory(DestCommit& guard) {
    PageReceiver receiver(TRY(session_->take(Deadline::in(data_limit))), [this](uint32_t pid, uint64_t object) { return find_target(pid, object); });
    on_link_cut([this, &receiver] {
        control_.shut_down();
        receiver.shut_down();
    });
    const Undo only_control([this] { on_link_cut([this] { control_.shut_down(); }); });
    auto received = receive_rounds(receiver, guard);
    if (received) return {};
    // What went wrong with the pages is why the source called it off.
    TRY(receiver.check());
    return received;
}

Result<void> Incoming::receive_rounds(PageReceiver& receiver, DestCommit& guard) {
    spawner_ = TRY(Spawner::start(plan_.clocks(), plan_arrived_ns_));
    for (uint32_t round = 0;; ++round) {
        const bool last = TRY(receive_layouts(receiver, round, guard));
        fault_point("round:layout");
        // Layouts of this round are in place, pages of the rounds before are written.
        receiver.open_round(round);
        fault_point("round:open");
        if (last) return finish_last_round(receiver, round);
        TRY(finish_round(receiver, round));
    }
}

// Until there is something on the control connection. Pages come by others, and what goes wrong there ends the migration.
Result<void> Incoming::await_message(PageReceiver& receiver) {
    control_.set_idle_limit(silence_limit);
    const Deadline deadline = Deadline::in(silence_limit);
    while (!TRY(control_.wait_readable(Deadline::in(look_every)))) {
        TRY(receiver.check());
        if (deadline.passed()) return {};  // whoever reads now says so
    }
    return {};
}

// One for each process; true if they are those of the frozen tree.
Result<bool> Incoming::receive_layouts(PageReceiver& receiver, uint32_t round, DestCommit& guard) {
    bool last = false;
    for (int i = 0; i < plan_.processes_size(); ++i) {
        image::Layout layout;
        TRY(await_message(receiver));
        TRY(control_.expect(FrameType::layout, layout, Deadline::in(round_limit)));
        if (i == 0) last = layout.last();
        if (layout.last()) ledger_.start();
        if (layout.round() != round || layout.last() != last)
            return peer_failed(fmt::format("a layout of round {} where one of round {} was due", layout.round(), round));
        // Before any layout of the round maps them.
        if (i == 0) TRY(objects_.take(layout));
        TRY(receive_layout(std::move(layout), guard));
    }
    if (last) ledger_.mark("layout");
    return last;
}

Result<void> Incoming::receive_layout(image::Layout layout, DestCommit& guard) {
    const auto& planned = plan_.processes();
    const bool known = std::any_of(planned.begin(), planned.end(), [&](const image::PlannedProcess& process) {
        return !process.pid().id().empty() && *process.pid().id().rbegin() == layout.pid();
    });
    if (!known) return peer_failed(fmt::format("a layout of pid {}, which the plan does not name", layout.pid()));
    TRY(check_files(layout));
    for (Skeleton& skeleton : skeletons_)
        if (skeleton.pid() == layout.pid()) return skeleton.correct(std::move(layout));
    if (layout.same_mappings() || layout.dropped_size() != 0)
        return peer_failed(fmt::format("the first layout of pid {} builds on another", layout.pid()));
    skeletons_.push_back(TRY(Skeleton::build(*spawner_, layout, &objects_)));
    return guard.adopt(skeletons_.back().pid());
}

// What a layout maps was in the plan, or comes with it: files that the tree mapped after the plan was made.
Result<void> Incoming::check_files(const image::Layout& layout) {
    if (layout.new_files_size() != 0) {
        const std::string boot_id = TRY(this_machine()).boot_id();
        for (const image::FileIdentity& file : layout.new_files()) {
            for (const Problem& problem : check_file(file, plan_, boot_id)) return Failure(problem);
            files_.add(file);
        }
    }
    return files_.require(layout);
}

Result<void> Incoming::finish_round(PageReceiver& receiver, uint32_t round) {
    image::RoundEnd end;
    TRY(await_message(receiver));
    TRY(control_.expect(FrameType::round_end, end, Deadline::in(round_limit)));
    TRY(wait_for_pages(receiver, end, round));
    image::RoundReply reply;
    reply.set_round(round);
    return control_.send(FrameType::round_reply, reply);
}

Result<void> Incoming::finish_last_round(PageReceiver& receiver, uint32_t round) {
    image::RoundEnd end;
    TRY(await_message(receiver));
    TRY(control_.expect(FrameType::last_round_end, end, Deadline::in(round_limit)));
    TRY(wait_for_pages(receiver, end, round));
    control_.set_idle_limit(milliseconds(0));
    for (Skeleton& skeleton : skeletons_) TRY(skeleton.finish_memory());
    ledger_.mark("memory");
    return {};
}

// The source hears that we are at work.
Result<void> Incoming::wait_for_pages(PageReceiver& receiver, const image::RoundEnd& end, uint32_t round) {
    if (end.round() != round) return peer_failed(fmt::format("the end of round {} in round {}", end.round(), round));
    const Deadline deadline = Deadline::in(writing_limit);
    while (!TRY(receiver.wait(end, Deadline::in(alive_every)))) {
        if (deadline.passed()) return peer_failed(fmt::format("not all pages of round {} came in time", round));
        TRY(control_.keep_alive());
    }
    fault_point("round:written");
    return {};
}

PageTarget* Incoming::find_target(uint32_t pid, uint64_t object) {
    if (object != 0) return pid == 0 ? objects_.find(object) : nullptr;
    for (Skeleton& skeleton : skeletons_)
        if (static_cast<uint32_t>(skeleton.pid()) == pid) return &skeleton;
    return nullptr;
}

Result<void> Incoming::restore() {
    std::vector<image::Process> processes(skeletons_.size());
    for (size_t i = 0; i < skeletons_.size(); ++i) {
        TRY(control_.expect(FrameType::process, processes[i], Deadline::in(message_limit)));
        if (processes[i].pid() != skeletons_[i].pid())
            return peer_failed(fmt::format("state of pid {} where that of pid {} was due", processes[i].pid(), skeletons_[i].pid()));
        TRY(check_credentials(processes[i]));
    }
    image::Files files;
    TRY(control_.expect(FrameType::files, files, Deadline::in(message_limit)));
    image::Troubles end;
    TRY(control_.expect(FrameType::state_end, end, Deadline::in(message_limit)));
    ledger_.mark("state");

    std::vector<Skeleton*> skeletons;
    for (Skeleton& skeleton : skeletons_) skeletons.push_back(&skeleton);
    TRY(restore_files(skeletons, files, &objects_));
    TRY(objects_.finish());
    ledger_.mark("files");
    for (size_t i = 0; i < skeletons_.size(); ++i) TRY(restore_process(skeletons_[i], processes[i]));
    ledger_.mark("process");
    for (size_t i = 0; i < skeletons_.size(); ++i) TRY(seal(skeletons_[i], processes[i]));
    ledger_.mark("seal");
    return {};
}

// The plan was checked; what is started now must be what the plan said, or allowed anyway.
Result<void> Incoming::check_credentials(const image::Process& process) const {
    for (const image::Task& task : process.tasks()) {
        const image::Credentials& c = task.credentials();
        const std::set<uint32_t> uids{c.uid(), c.euid(), c.suid(), c.fsuid()};
        std::set<uint32_t> gids{c.gid(), c.egid(), c.sgid(), c.fsgid()};
        gids.insert(c.groups().begin(), c.groups().end());
        const auto problems = options_.policy.check(fmt::format("tid {}", task.tid()), uids, gids,
                                                    c.permitted() | c.inheritable() | c.effective() | c.ambient());
        if (!problems.empty()) return Failure(problems.front());
    }
    return {};
}

Result<void> Incoming::commit(DestCommit& commit) {
    std::vector<StoppedProcess> tree;
    for (Skeleton& skeleton : skeletons_) {
        tree.push_back({skeleton.pid(), std::move(skeleton.tasks())});
        skeleton.release();
    }
    for (const auto& [name, microseconds] : ledger_.phases()) commit.add_phase(name, microseconds);
    const auto committed = commit.commit(control_, tree);
    // Whatever fails after the tree is ours, what it maps is its own.
    if (committed || committed.error().code == ExitCode::uncertain) objects_.release();
    const DestOutcome outcome = TRY(committed);
    spdlog::info("migration {}: pid {} runs here{}", id_, skeletons_.front().layout().pid(),
                 outcome == DestOutcome::done ? "" : "; the source has not confirmed that its copy is gone");
    return {};
}

}  // namespace

Result<void> migrate_in(Channel& control, const std::string& migration_id, Sessions& sessions, const IncomingOptions& options) {
    on_link_cut([&control] { control.shut_down(); });
    const Undo no_link([] { on_link_cut({}); });
    auto result = [&] {
        Incoming incoming(control, migration_id, sessions, options);
        return incoming.run();
    }();
    // Nothing of the tree is left here when the source is told why, or sees the connection end.
    if (!result) control.abort({&result.error(), 1}, Deadline::in(abort_limit));
    return result;
}

}  // namespace godwit
