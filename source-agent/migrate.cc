#include "source-agent/migrate.h"

#include <fmt/format.h>
#include <sys/resource.h>

#include <algorithm>
#include <memory>
#include <optional>

#include "common/base/defer.h"
#include "common/base/fault.h"
#include "common/base/ledger.h"
#include "common/base/log.h"
#include "common/base/uuid.h"
#include "common/kernel/machine.h"
#include "source-agent/commit.h"
#include "source-agent/page_streams.h"
#include "transport/handshake.h"

namespace godwit {
namespace {

constexpr milliseconds plan_limit{60'000};    // the destination hashes files
constexpr milliseconds freeze_limit{30'000};  // all tasks of the tree are stopped within
constexpr milliseconds round_limit{300'000};  // the last pages are written, after they were all sent
constexpr milliseconds abort_limit{2'000};

// The connections of one migration. Shut down together, from any thread.
class Connections {
  public:
    Connections(const MigrateOptions& options, std::string id) : options_(options), id_(std::move(id)) {
        on_link_cut([this] { shut_down(); });
    }
    ~Connections() { on_link_cut({}); }

    Result<void> open_control() {
        control_ = TRY(open(image::ROLE_CONTROL, 0));
        return {};
    }
    Result<void> open_data() {
        std::vector<std::unique_ptr<Channel>> channels;
        for (uint32_t stream = 0; stream < options_.streams; ++stream) channels.push_back(TRY(open(image::ROLE_DATA, stream)));
        pages_ = std::make_unique<PageStreams>(std::move(channels), options_.compression);
        return {};
    }
    // Tells the destination why we give up, so that it need not find out by a time-out.
    void abort(const Problem& problem) {
        if (control_) control_->abort({&problem, 1}, Deadline::in(abort_limit));
    }
    // Everything that the destination's ABORT named.
    std::vector<Problem> troubles() const { return control_ ? control_->troubles() : std::vector<Problem>{}; }
    Channel& control() { return *control_; }
    PageStreams& pages() { return *pages_; }
    uint64_t bytes_sent() const {
        return (control_ ? control_->counters().bytes_sent : 0) + (pages_ ? pages_->bytes_sent() : 0);
    }

  private:
    Result<std::unique_ptr<Channel>> open(image::Role role, uint32_t stream) {
        const auto deadline = Deadline::in(options_.connect_limit);
        auto channel = std::make_unique<Channel>(TRY(connect_link(options_.to, options_.security, deadline)), Side::source);
        TRY(say_hello(*channel, role, id_, stream, deadline));
        return channel;
    }
    void shut_down() {
        if (control_) control_->shut_down();
        if (pages_) pages_->shut_down();
    }

    const MigrateOptions& options_;
    std::string id_;
    std::unique_ptr<Channel> control_;
    std::unique_ptr<PageStreams> pages_;
};

// A tree whose every task is stopped. Its end lets whatever is left of it run on.
class FrozenTree {
  public:
    explicit FrozenTree(std::vector<StoppedProcess> processes) : processes_(std::move(processes)) {}
    FrozenTree(FrozenTree&&) = default;
    FrozenTree& operator=(FrozenTree&&) = delete;
    ~FrozenTree() {
        for (StoppedProcess& process : processes_) release_process(process);
    }
    std::vector<StoppedProcess>& processes() { return processes_; }

  private:
    std::vector<StoppedProcess> processes_;
};

class Migration {
  public:
    Migration(const MigrateOptions& options, std::string id) : options_(options), id_(std::move(id)), links_(options, id_) {
        report().migration_id = id_;
        report().mode = "stop";
    }

    MigrateOutcome run();
    MigrateOutcome check(bool ask_destination);

  private:
    Report& report() { return outcome_.report; }
    Result<void> survey_tree();
    Result<void> agree();
    Result<void> freeze_copy_commit();
    Result<FrozenTree> freeze();
    Result<void> copy(FrozenTree& frozen);
    Result<void> send_memory(std::vector<Subject>& subjects);
    Result<void> send_round_end();
    Result<void> send_state(std::vector<Subject>& subjects, std::vector<Remote>& executors);
    Result<void> commit(SourceCommit& commit, FrozenTree& frozen);
    void close_ledger(const SourceCommit& commit);
    MigrateOutcome finish(Result<void> result);

    const MigrateOptions& options_;
    std::string id_;
    Connections links_;
    Tree tree_;
    image::Plan plan_;
    std::string peer_state_id_;
    Ledger ledger_;
    Clock::time_point begun_ = Clock::now();
    Clock::time_point frozen_at_{};
    MigrateOutcome outcome_;
};

MigrateOutcome Migration::run() {
    // Refuse before anything is touched: what the source sees, then what the destination sees.
    if (auto surveyed = survey_tree(); !surveyed) return finish(std::move(surveyed));
    if (!outcome_.problems.empty()) return finish({});
    if (auto agreed = agree(); !agreed) return finish(std::move(agreed));
    if (!outcome_.problems.empty()) return finish({});
    // Beyond this point the tree is touched, and every change has a guard.
    return finish(freeze_copy_commit());
}

MigrateOutcome Migration::check(bool ask_destination) {
    if (auto surveyed = survey_tree(); !surveyed) return finish(std::move(surveyed));
    if (!ask_destination) return finish({});
    return finish(agree());
}

Result<void> Migration::survey_tree() {
    tree_ = Tree{options_.tree, {options_.tree}};
    plan_.set_mode(options_.mode);
    outcome_.problems = TRY(survey(tree_, options_.collect, plan_));
    return {};
}

Result<void> Migration::agree() {
    *plan_.mutable_machine() = TRY(this_machine());
    plan_.set_streams(options_.streams);
    plan_.set_state_id(TRY(open_state_dir(options_.state_dir)));
    plan_.set_tcp_close(options_.collect.tcp_close);
    for (const std::string& pattern : options_.collect.trusted_files) plan_.add_trusted_files(pattern);
    TRY(links_.open_control());
    *plan_.mutable_clocks() = TRY(clocks_of(options_.tree));
    TRY(links_.control().send(FrameType::plan, plan_));
    image::PlanReply reply;
    TRY(links_.control().expect(FrameType::plan_reply, reply, Deadline::in(plan_limit)));
    for (Problem& problem : from_wire(reply.problems())) outcome_.problems.push_back(std::move(problem));
    peer_state_id_ = reply.state_id();
    return {};
}

Result<void> Migration::freeze_copy_commit() {
    SourceCommitOptions commit_options;
    commit_options.state_dir = options_.state_dir;
    commit_options.migration_id = id_;
    commit_options.peer = peer_address(options_.to, options_.security);
    commit_options.peer_state_id = peer_state_id_;
    commit_options.dial = dial_peer;
    SourceCommit guard = TRY(SourceCommit::prepare(std::move(commit_options), tree_.pids));
    TRY(links_.open_data());

    // The agent must get its turn however busy the tree's host is, the tree's own threads included.
    ::setpriority(PRIO_PROCESS, 0, -20);
    FrozenTree frozen = TRY(freeze());
    TRY(copy(frozen));
    return commit(guard, frozen);
}

Result<FrozenTree> Migration::freeze() {
    frozen_at_ = Clock::now();
    ledger_.start();
    std::vector<StoppedProcess> processes;
    for (const pid_t pid : tree_.pids) processes.push_back(TRY(seize_process(pid, Deadline::in(freeze_limit))));
    ledger_.mark("freeze");
    return FrozenTree(std::move(processes));
}

// Every task is stopped. Executors come and go in here: afterwards registers are as at the stop again.
Result<void> Migration::copy(FrozenTree& frozen) {
    std::vector<Remote> executors;
    std::vector<Subject> subjects;
    executors.reserve(frozen.processes().size());
    for (StoppedProcess& process : frozen.processes()) {
        executors.push_back(TRY(Remote::attach(process.tasks.front())));
        subjects.push_back({&process, &executors.back(), process.pid});
    }
    ledger_.mark("executor");
    std::vector<image::Layout> layouts;
    TRY(send_memory(subjects));
    TRY(send_round_end());
    ledger_.mark("memory");
    TRY(send_state(subjects, executors));
    ledger_.mark("state");
    return {};
}

// Zero pages of private anonymous memory are left out: the destination's are zero from the start.
void add_jobs(const PageSource& source, const image::Layout& layout, const std::vector<ByteRange>& ranges, std::vector<PageJob>& jobs) {
    PageJob anonymous, other;
    anonymous.pid = other.pid = static_cast<uint32_t>(layout.pid());
    anonymous.source = other.source = &source;
    anonymous.zeros_there = true;
    auto range = ranges.begin();
    for (const image::MappingRange& mapping : layout.mappings()) {
        while (range != ranges.end() && range->end <= mapping.start()) ++range;
        PageJob& job = mapping.kind() == image::MAPPING_FILE_PRIVATE ? other : anonymous;
        for (auto part = range; part != ranges.end() && part->start < mapping.end(); ++part)
            job.ranges.push_back({std::max(part->start, mapping.start()), std::min(part->end, mapping.end())});
    }
    jobs.push_back(std::move(anonymous));
    jobs.push_back(std::move(other));
}

Result<void> Migration::send_memory(std::vector<Subject>& subjects) {
    std::vector<std::unique_ptr<PageSource>> sources;
    std::vector<PageJob> jobs;
    for (Subject& subject : subjects) {
        const image::Layout layout = TRY(collect_layout(subject));
        TRY(links_.control().send(FrameType::layout, layout));
        sources.push_back(process_pages(subject.process->pid));
        add_jobs(*sources.back(), layout, TRY(content_ranges(subject.process->pid, layout)), jobs);
    }
    const auto begun = Clock::now();
    const SentPages sent = TRY(links_.pages().send(0, jobs));
    RoundReport round;
    round.frozen = true;
    round.pages = sent.pages, round.zero_pages = sent.zero_pages, round.bytes = sent.bytes;
    round.milliseconds = std::chrono::duration<double, std::milli>(Clock::now() - begun).count();
    report().rounds.push_back(round);
    return {};
}

Result<void> Migration::send_round_end() {
    image::RoundEnd end;
    links_.pages().count(end);
    TRY(links_.control().send(FrameType::round_end, end));
    image::RoundReply reply;
    TRY(links_.control().expect(FrameType::round_reply, reply, Deadline::in(round_limit)));
    if (reply.round() != end.round()) return peer_failed("the destination answered another round");
    return {};
}

Result<void> Migration::send_state(std::vector<Subject>& subjects, std::vector<Remote>& executors) {
    const image::Files files = TRY(collect_files(subjects, options_.collect));
    std::vector<image::Process> processes;
    for (Subject& subject : subjects) processes.push_back(TRY(collect_process(subject)));
    for (Remote& executor : executors) TRY(executor.leave());
    // Beyond this point nothing of ours is in the tree: it would run on as it was if it were let go.
    for (size_t i = 0; i < subjects.size(); ++i) {
        TRY(collect_stopped(*subjects[i].process, processes[i]));
        TRY(links_.control().send(FrameType::process, processes[i]));
    }
    TRY(links_.control().send(FrameType::files, files));
    return links_.control().send(FrameType::state_end, image::Troubles{});
}

Result<void> Migration::commit(SourceCommit& commit, FrozenTree& frozen) {
    const SourceOutcome result = TRY(commit.commit(links_.control(), frozen.processes()));
    if (result == SourceOutcome::uncertain) return Failure(commit.problem());
    close_ledger(commit);
    return {};
}

void Migration::close_ledger(const SourceCommit& commit) {
    const auto ms = [](auto duration) { return std::chrono::duration<double, std::milli>(duration).count(); };
    const CommitTimes& times = commit.times();
    for (const auto& [name, microseconds] : ledger_.phases())
        report().downtime_phases_ms.emplace_back(name, static_cast<double>(microseconds) / 1000);
    report().downtime_phases_ms.emplace_back("restore", ms(times.ready_received - ledger_.last()));
    report().downtime_phases_ms.emplace_back("hold", ms(times.go_sent - times.ready_received));
    report().downtime_phases_ms.emplace_back("go", ms(times.running_received - times.go_sent));
    for (const auto& [name, microseconds] : times.destination_phases)
        report().destination_phases_ms.emplace_back(name, static_cast<double>(microseconds) / 1000);
    report().downtime_ms = ms(times.running_received - frozen_at_);
    report().total_ms = ms(Clock::now() - begun_);
    report().bytes_sent = links_.bytes_sent();
}

MigrateOutcome Migration::finish(Result<void> result) {
    if (!result) {
        links_.abort(result.error());
        outcome_.code = result.error().code;
        outcome_.problems = links_.troubles();
        if (outcome_.problems.empty()) outcome_.problems = {result.error()};
    } else if (!outcome_.problems.empty()) {
        outcome_.code = outcome_.problems.front().code;
    }
    return std::move(outcome_);
}

}  // namespace

MigrateOutcome migrate_out(const MigrateOptions& options) {
    auto id = new_uuid();
    if (!id) return {id.error().code, {id.error()}, {}};
    return Migration(options, *id).run();
}

MigrateOutcome check_tree(const MigrateOptions& options, bool ask_destination) {
    auto id = new_uuid();
    if (!id) return {id.error().code, {id.error()}, {}};
    return Migration(options, *id).check(ask_destination);
}

}  // namespace godwit
