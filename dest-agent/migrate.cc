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
#include "dest-agent/page_receiver.h"
#include "dest-agent/restore/restore.h"
#include "dest-agent/skeleton.h"

namespace godwit {
namespace {

constexpr milliseconds plan_limit{30'000};
constexpr milliseconds message_limit{120'000};
constexpr milliseconds round_limit{300'000};
constexpr milliseconds data_limit{20'000};
constexpr milliseconds abort_limit{2'000};

class Incoming {
  public:
    Incoming(Channel& control, const std::string& id, Sessions& sessions, const IncomingOptions& options)
        : control_(control), id_(id), sessions_(sessions), options_(options) {}

    Result<void> run();

  private:
    Result<bool> agree();
    Result<void> build_skeletons();
    Result<void> receive_memory();
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
    TRY(build_skeletons());
    for (Skeleton& skeleton : skeletons_) TRY(guard.adopt(skeleton.pid()));
    ledger_.mark("skeleton");
    TRY(receive_memory());
    ledger_.mark("memory");
    TRY(restore());
    return commit(guard);
}

// False: the plan was answered with what keeps us from taking the tree.
Result<bool> Incoming::agree() {
    TRY(control_.expect(FrameType::plan, plan_, Deadline::in(plan_limit)));
    plan_arrived_ns_ = now_ns(CLOCK_MONOTONIC);
    auto problems = check_plan(plan_, options_.policy);
    image::PlanReply reply;
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
    to_wire(problems, *reply.mutable_problems());
    auto sent = control_.send(FrameType::plan_reply, reply);
    if (!sent && session_) sessions_.close(id_);
    TRY(std::move(sent));
    return problems.empty();
}

Result<void> Incoming::build_skeletons() {
    Spawner spawner = TRY(Spawner::start(plan_.clocks(), plan_arrived_ns_));
    for (int i = 0; i < plan_.processes_size(); ++i) {
        image::Layout layout;
        TRY(control_.expect(FrameType::layout, layout, Deadline::in(message_limit)));
        ledger_.start();
        const auto& planned = plan_.processes();
        const bool known = std::any_of(planned.begin(), planned.end(), [&](const image::PlannedProcess& process) {
            return !process.pid().id().empty() && *process.pid().id().rbegin() == layout.pid();
        });
        if (!known) return peer_failed(fmt::format("a layout of pid {}, which the plan does not name", layout.pid()));
        skeletons_.push_back(TRY(Skeleton::build(spawner, layout)));
    }
    return {};
}

Result<void> Incoming::receive_memory() {
    std::map<uint32_t, Skeleton*> by_pid;
    for (Skeleton& skeleton : skeletons_) by_pid[static_cast<uint32_t>(skeleton.pid())] = &skeleton;
    PageReceiver receiver(TRY(session_->take(Deadline::in(data_limit))), [&](uint32_t pid, uint64_t object) -> PageTarget* {
        const auto found = by_pid.find(pid);
        return found == by_pid.end() || object != 0 ? nullptr : found->second;
    });
    receiver.open_round(0);
    on_link_cut([this, &receiver] {
        control_.shut_down();
        receiver.shut_down();
    });
    const Undo only_control([this] { on_link_cut([this] { control_.shut_down(); }); });
    image::RoundEnd end;
    TRY(control_.expect(FrameType::round_end, end, Deadline::in(round_limit)));
    TRY(receiver.wait(end, Deadline::in(round_limit)));
    for (Skeleton& skeleton : skeletons_) TRY(skeleton.finish_memory());
    image::RoundReply reply;
    reply.set_round(end.round());
    return control_.send(FrameType::round_reply, reply);
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
    TRY(restore_files(skeletons, files));
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
    const DestOutcome outcome = TRY(commit.commit(control_, tree));
    spdlog::info("migration {}: pid {} runs here{}", id_, skeletons_.front().layout().pid(),
                 outcome == DestOutcome::done ? "" : "; the source has not confirmed that its copy is gone");
    return {};
}

}  // namespace

Result<void> migrate_in(Channel& control, const std::string& migration_id, Sessions& sessions, const IncomingOptions& options) {
    on_link_cut([&control] { control.shut_down(); });
    const Undo no_link([] { on_link_cut({}); });
    Incoming incoming(control, migration_id, sessions, options);
    auto result = incoming.run();
    // The source is told why, so that it need not find out by a time-out.
    if (!result) control.abort({&result.error(), 1}, Deadline::in(abort_limit));
    return result;
}

}  // namespace godwit
