#include "source-agent/migrate.h"

#include <fmt/format.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <optional>

#include "common/base/defer.h"
#include "common/base/fault.h"
#include "common/base/ledger.h"
#include "common/base/log.h"
#include "common/base/text.h"
#include "common/base/text.h"
#include "common/base/uuid.h"
#include "common/kernel/machine.h"
#include "common/kernel/proc.h"
#include "source-agent/calibration.h"
#include "source-agent/commit.h"
#include "source-agent/convergence.h"
#include "source-agent/memory_rounds.h"
#include "source-agent/track/dirty_tracker.h"
#include "transport/handshake.h"

namespace godwit {
namespace {

constexpr milliseconds plan_limit{60'000};    // the destination hashes files
constexpr milliseconds freeze_limit{30'000};  // all tasks of the tree are stopped within
constexpr milliseconds abort_limit{5'000};
constexpr milliseconds alive_every{5'000};    // the destination hears of us while pages go by other connections

double milliseconds_between(Clock::time_point from, Clock::time_point to) {
    return std::chrono::duration<double, std::milli>(to - from).count();
}

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
        data_ = std::make_unique<PageStreams>(std::move(channels), options_.compression);
        return {};
    }
    // Tells the destination why we give up, so that it need not find out by a time-out.
    void abort(const Problem& problem) {
        if (control_) control_->abort({&problem, 1}, Deadline::in(abort_limit));
    }
    // Everything that the destination's ABORT named.
    std::vector<Problem> troubles() const { return control_ ? control_->troubles() : std::vector<Problem>{}; }
    Channel& control() { return *control_; }
    PageStreams& data() { return *data_; }
    uint64_t bytes_sent() const {
        return (control_ ? control_->counters().bytes_sent : 0) + (data_ ? data_->bytes_sent() : 0);
    }
    void stay_alive() {
        if (Clock::now() - said_ < alive_every) return;
        said_ = Clock::now();
        (void)control_->keep_alive();  // a broken connection is found by whoever needs it
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
        if (data_) data_->shut_down();
    }

    const MigrateOptions& options_;
    std::string id_;
    std::unique_ptr<Channel> control_;
    std::unique_ptr<PageStreams> data_;
    Clock::time_point said_ = Clock::now();
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
        report().mode = options.mode == image::MODE_STOP ? "stop" : "pre-copy";
    }

    MigrateOutcome run();
    MigrateOutcome check(bool ask_destination);

  private:
    Report& report() { return outcome_.report; }
    Result<void> survey_tree();
    Result<void> agree();
    Result<void> move_tree();
    Result<void> copy_running(MemoryRounds& memory);
    Failure does_not_converge(const Convergence& convergence) const;
    Result<FrozenTree> freeze();
    Result<void> copy_frozen(FrozenTree& frozen, MemoryRounds& memory);
    std::optional<milliseconds> last_limit() const;
    Result<std::vector<image::Process>> collect_state(FrozenTree& frozen, image::Files& files);
    Result<void> send_state(const std::vector<image::Process>& processes, const image::Files& files);
    Result<void> commit(SourceCommit& commit, FrozenTree& frozen, const MemoryRounds& memory);
    void remove_moved_files(const MemoryRounds& memory) const;
    void close_ledger(const SourceCommit& commit, const MemoryRounds& memory);
    void note_round(const MemoryRounds& memory, bool frozen);
    uint64_t count_items() const;
    void tell(Stage stage, const MemoryRounds* memory = nullptr);
    std::optional<Problem> own_end() const;
    MigrateOutcome finish(Result<void> result);

    const MigrateOptions& options_;
    std::string id_;
    Connections links_;
    CollectOptions collect_ = options_.collect;
    Tree tree_;
    std::optional<Stat> surveyed_;  // its root then
    image::Plan plan_;
    std::string peer_state_id_;
    Calibration calibration_;
    Ledger ledger_;
    Progress progress_;
    Clock::time_point begun_ = Clock::now();
    Clock::time_point round_begun_{};
    double scan_ms_ = 0;
    uint64_t items_ = 0;
    Clock::time_point frozen_at_{};
    MigrateOutcome outcome_;
};

MigrateOutcome Migration::run() {
    tell(Stage::survey);
    // Refuse before anything is touched: what the source sees, then what the destination sees.
    if (auto surveyed = survey_tree(); !surveyed) return finish(std::move(surveyed));
    if (!outcome_.problems.empty()) return finish({});
    if (auto agreed = agree(); !agreed) return finish(std::move(agreed));
    if (!outcome_.problems.empty()) return finish({});
    // Beyond this point the tree is touched, and every change has a guard.
    return finish(move_tree());
}

MigrateOutcome Migration::check(bool ask_destination) {
    if (auto surveyed = survey_tree(); !surveyed) return finish(std::move(surveyed));
    if (!ask_destination) return finish({});
    return finish(agree());
}

Result<void> Migration::survey_tree() {
    tree_ = Tree{options_.tree, {options_.tree}};
    if (auto stat = read_stat(options_.tree)) surveyed_ = std::move(*stat);
    plan_.set_mode(options_.mode);
    outcome_.problems = TRY(survey(tree_, options_.collect, plan_));
    if (options_.mode == image::MODE_STOP) return {};
    if (!outcome_.problems.empty()) return {};  // of a process that cannot be looked into nothing more is asked
    for (const pid_t pid : tree_.pids)
        for (Problem& problem : check_tracking(pid, options_.tracker)) outcome_.problems.push_back(std::move(problem));
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
    for (const std::string& path : reply.moving_files())
        for (const image::FileIdentity& file : plan_.files())
            if (file.memory() && file.path() == path) collect_.moving_files.insert(shared_object_id(file.device(), file.inode()));
    calibration_ = Calibration::load(options_.state_dir, peer_state_id_);
    return {};
}

Result<void> Migration::move_tree() {
    SourceCommitOptions commit_options;
    commit_options.state_dir = options_.state_dir;
    commit_options.migration_id = id_;
    commit_options.peer = peer_address(options_.to, options_.security);
    commit_options.peer_state_id = peer_state_id_;
    commit_options.dial = dial_peer;
    SourceCommit guard = TRY(SourceCommit::prepare(std::move(commit_options), tree_.pids));
    TRY(links_.open_data());

    MemoryRounds memory(links_.control(), links_.data(), [&] {
        links_.stay_alive();
        tell(progress_.stage, &memory);
    });
    for (const pid_t pid : tree_.pids) TRY(memory.add(pid, pid, plan_, collect_));
    if (options_.mode != image::MODE_STOP) TRY(copy_running(memory));

    // The agent must get its turn however busy the tree's host is, the tree's own threads included.
    ::setpriority(PRIO_PROCESS, 0, -20);
    FrozenTree frozen = TRY(freeze());
    progress_.stage = Stage::final_round;
    progress_.round = options_.mode == image::MODE_STOP ? 0 : progress_.round + 1;
    TRY(copy_frozen(frozen, memory));
    tell(Stage::restore, &memory);
    return commit(guard, frozen, memory);
}

// Rounds of the running tree, until the downtime would be short enough. The tree was not stopped for longer than it takes to
// put the tracker in; if anything fails it runs on, untracked.
Result<void> Migration::copy_running(MemoryRounds& memory) {
    TRY(memory.track(options_.tracker));
    report().tracker = memory.backend();
    const auto limit = static_cast<double>(options_.downtime_limit.count());
    items_ = count_items();
    progress_.downtime_limit_ms = limit;
    Convergence convergence({limit, options_.max_rounds, options_.force}, calibration_.fixed_ms(items_));
    Clock::time_point scanned_at{};
    for (;;) {
        round_begun_ = Clock::now();
        TRY(memory.scan_running());
        const auto now = Clock::now();
        scan_ms_ = milliseconds_between(round_begun_, now);
        const bool first = scanned_at == Clock::time_point{};
        convergence.scanned(memory.pending_bytes(), first ? 0 : milliseconds_between(scanned_at, now), scan_ms_);
        scanned_at = now;
        report().predicted_downtime_ms = progress_.predicted_downtime_ms = convergence.predicted_ms();
        report().dirty_bytes_per_second = progress_.dirty_bytes_per_second = convergence.dirty_bytes_per_second();
        report().link_bytes_per_second = convergence.link_bytes_per_second();
        const Decision decision = convergence.decide();
        if (decision == Decision::freeze) return {};
        if (decision == Decision::give_up) return does_not_converge(convergence);
        fault_point("round:begin");
        progress_.round = convergence.rounds_sent();
        progress_.stage = Stage::round;
        const uint64_t bytes = memory.pending_bytes();
        TRY(memory.send_running());
        convergence.sent(bytes, memory.last_round().milliseconds);
        note_round(memory, false);
        tell(Stage::round, &memory);
    }
}

Failure Migration::does_not_converge(const Convergence& convergence) const {
    const double predicted = convergence.predicted_ms().value_or(0);
    const double dirty = convergence.dirty_bytes_per_second().value_or(0) / 1e6;
    const double link = convergence.link_bytes_per_second().value_or(0) / 1e6;
    const double fixed = convergence.fixed_ms();
    const auto limit = options_.downtime_limit.count();
    std::string hint;
    if (fixed > static_cast<double>(limit))
        hint = fmt::format("{:.0f} ms of it do not depend on memory: use --downtime-limit {:.0f} or more, or --force", fixed, std::max(fixed * 2, predicted + 1));
    else if (dirty < link)
        hint = fmt::format("use --downtime-limit {:.0f} or more, more --max-rounds, or --force", predicted + 1);
    else
        hint = fmt::format("it writes faster than the link takes: use a faster link or more --streams, slow the program down, "
                           "use --downtime-limit {:.0f} or more, or --force", predicted + 1);
    return fail(fmt::format("pid {} does not converge: after {} rounds the downtime would be {:.0f} ms, the limit is {} ms; it dirties "
                            "{:.1f} MB/s, the link takes {:.1f} MB/s",
                            options_.tree, convergence.rounds_sent(), predicted, limit, dirty, link),
                std::move(hint));
}

Result<FrozenTree> Migration::freeze() {
    fault_point("freeze");
    frozen_at_ = Clock::now();
    ledger_.start();
    std::vector<StoppedProcess> processes;
    for (const pid_t pid : tree_.pids) processes.push_back(TRY(seize_process(pid, Deadline::in(freeze_limit))));
    ledger_.mark("freeze");
    return FrozenTree(std::move(processes));
}

// Every task is stopped. The last pages are on their way while the state is collected.
Result<void> Migration::copy_frozen(FrozenTree& frozen, MemoryRounds& memory) {
    TRY(memory.scan_stopped());
    scan_ms_ = milliseconds_between(ledger_.last(), Clock::now());
    ledger_.mark("scan");
    TRY(memory.begin_last());
    ledger_.mark("layout");
    image::Files files;
    const auto processes = TRY(collect_state(frozen, files));
    TRY(memory.finish_last(last_limit()));
    note_round(memory, true);
    ledger_.mark("memory");
    return send_state(processes, files);
}

// How long the tree may stand still for its last pages. Where the user set no limit there is none.
std::optional<milliseconds> Migration::last_limit() const {
    constexpr double patience = 10;  // times what was predicted
    constexpr milliseconds least{60'000};
    const auto& predicted = outcome_.report.predicted_downtime_ms;
    if (options_.force || !predicted) return std::nullopt;
    return std::max(least, milliseconds(static_cast<int64_t>(patience * *predicted)));
}

// Executors come and go in here: afterwards registers are as at the stop again, and nothing of ours is in the tree.
Result<std::vector<image::Process>> Migration::collect_state(FrozenTree& frozen, image::Files& files) {
    std::vector<Remote> executors;
    std::vector<Subject> subjects;
    executors.reserve(frozen.processes().size());
    for (StoppedProcess& process : frozen.processes()) {
        executors.push_back(TRY(Remote::attach(process.tasks.front())));
        subjects.push_back({&process, &executors.back(), process.pid});
    }
    ledger_.mark("executor");
    files = TRY(collect_files(subjects, collect_));
    ledger_.mark("files");
    std::vector<image::Process> processes;
    for (Subject& subject : subjects) processes.push_back(TRY(collect_process(subject)));
    ledger_.mark("process");
    for (Remote& executor : executors) TRY(executor.leave());
    for (size_t i = 0; i < subjects.size(); ++i) TRY(collect_stopped(*subjects[i].process, processes[i]));
    ledger_.mark("leave");
    return processes;
}

Result<void> Migration::send_state(const std::vector<image::Process>& processes, const image::Files& files) {
    for (const image::Process& process : processes) TRY(links_.control().send(FrameType::process, process));
    TRY(links_.control().send(FrameType::files, files));
    TRY(links_.control().send(FrameType::state_end, image::Troubles{}));
    ledger_.mark("state");
    return {};
}

Result<void> Migration::commit(SourceCommit& commit, FrozenTree& frozen, const MemoryRounds& memory) {
    const SourceOutcome result = TRY(commit.commit(links_.control(), frozen.processes()));
    if (result == SourceOutcome::uncertain) return Failure(commit.problem());
    remove_moved_files(memory);
    close_ledger(commit, memory);
    return {};
}

// They are at the destination now, under the same names, and nobody here used them but the tree. If we die before, they stay.
void Migration::remove_moved_files(const MemoryRounds& memory) const {
    for (const auto& [path, id] : memory.moved_files()) {
        struct stat info {};
        if (::lstat(path.c_str(), &info) != 0 || shared_object_id(info.st_dev, info.st_ino) != id) continue;
        if (::unlink(path.c_str()) != 0) spdlog::warn("cannot remove {}, which has moved: {}", printable(path), std::strerror(errno));
    }
}

void Migration::close_ledger(const SourceCommit& commit, const MemoryRounds& memory) {
    const CommitTimes& times = commit.times();
    for (const auto& [name, microseconds] : ledger_.phases())
        report().downtime_phases_ms.emplace_back(name, static_cast<double>(microseconds) / 1000);
    report().downtime_phases_ms.emplace_back("restore", milliseconds_between(ledger_.last(), times.ready_received));
    report().downtime_phases_ms.emplace_back("hold", milliseconds_between(times.ready_received, times.go_sent));
    report().downtime_phases_ms.emplace_back("go", milliseconds_between(times.go_sent, times.running_received));
    for (const auto& [name, microseconds] : times.destination_phases)
        report().destination_phases_ms.emplace_back(name, static_cast<double>(microseconds) / 1000);
    report().downtime_ms = milliseconds_between(frozen_at_, times.running_received);
    if (options_.mode == image::MODE_STOP) return;
    // What remains without pages, for the prediction of the next one.
    const auto rate = report().link_bytes_per_second.value_or(0);
    const double pages_ms = rate > 0 ? static_cast<double>(memory.last_round().sent.pages) * 4096 / rate * 1000 : 0;
    calibration_.learn(items_, std::max(1.0, report().downtime_ms - scan_ms_ - pages_ms));
}

void Migration::note_round(const MemoryRounds& memory, bool frozen) {
    const MemoryRounds::Round& round = memory.last_round();
    RoundReport entry;
    entry.round = round.number;
    entry.frozen = frozen;
    entry.pages = round.sent.pages;
    entry.zero_pages = round.sent.zero_pages;
    entry.dropped_pages = round.dropped_pages;
    entry.bytes = round.sent.bytes;
    entry.scan_ms = scan_ms_;
    entry.milliseconds = round.milliseconds;
    report().rounds.push_back(entry);
}

// What the fixed part of the downtime grows with. Counted once, while the tree is there: predicted and learned by the same measure.
uint64_t Migration::count_items() const {
    uint64_t count = 0;
    for (const pid_t pid : tree_.pids) {
        if (const auto mappings = read_maps(pid)) count += mappings->size();
        if (const auto tasks = read_tasks(pid)) count += tasks->size();
        if (const auto fds = read_fd_numbers(pid)) count += fds->size();
    }
    return count;
}

void Migration::tell(Stage stage, const MemoryRounds* memory) {
    progress_.stage = stage;
    if (!options_.progress) return;
    progress_.bytes_sent = links_.bytes_sent();
    if (memory != nullptr) {
        progress_.pages_of_round = memory->pages_of_round();
        progress_.pages_done = memory->pages_done();
        progress_.bytes_per_second = memory->bytes_per_second();
    }
    options_.progress(progress_);
}

// The program ended or became another by itself: whichever call failed because of it, this is what there is to say.
std::optional<Problem> Migration::own_end() const {
    if (!surveyed_) return std::nullopt;
    const auto now = read_stat(options_.tree);
    const auto tasks = read_tasks(options_.tree);
    const bool threads = tasks && tasks->size() > 1;  // its first one may have ended without the others
    if (!now || now->start_time != surveyed_->start_time || ((now->state == 'Z' || now->state == 'X') && !threads))
        return Problem{fmt::format("pid {} ({}) ended while it was migrated", options_.tree, printable(surveyed_->name)),
                       "it ended by itself: nothing is left to be migrated", ExitCode::failed, 0};
    // Where the stack is differs from one execution to the next; a first thread that has ended tells of none.
    if (now->start_stack != 0 && now->start_stack != surveyed_->start_stack)
        return Problem{fmt::format("pid {} executed another program while it was migrated", options_.tree), "migrate it again", ExitCode::failed, 0};
    if (now->state == 'Z')
        return Problem{fmt::format("the first thread of pid {} ended while it was migrated", options_.tree), "such a process is not carried; it runs on here",
                       ExitCode::unsupported, 0};
    return std::nullopt;
}

MigrateOutcome Migration::finish(Result<void> result) {
    report().total_ms = milliseconds_between(begun_, Clock::now());
    report().bytes_sent = links_.bytes_sent();
    if (!result) {
        auto ended = result.error().code == ExitCode::uncertain ? std::nullopt : own_end();
        links_.abort(ended ? *ended : result.error());
        // What the destination says is the reason only where the reason came from there.
        const bool ours = ended || result.error().code != ExitCode::peer;
        if (!ours) outcome_.problems = links_.troubles();
        if (outcome_.problems.empty()) outcome_.problems = {ended ? std::move(*ended) : std::move(result.error())};
        outcome_.code = outcome_.problems.front().code;
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
