#include "tests/support/commit_agents.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>
#include <nlohmann/json.hpp>
#include <thread>

#include "common/base/fault.h"
#include "common/base/file.h"
#include "dest-agent/commit.h"
#include "dest-agent/recover.h"
#include "source-agent/commit.h"
#include "source-agent/recover.h"
#include "transport/channel.h"
#include "transport/handshake.h"

namespace godwit::test {
namespace {

constexpr milliseconds patience{20'000};
constexpr const char* orders_variable = "GODWIT_TEST_AGENT";

[[noreturn]] void end(const Problem& problem) {
    std::fprintf(stderr, "%s\n", problem.what.c_str());
    std::_Exit(static_cast<int>(problem.code));
}
template <class T>
T must(Result<T> result) {
    if (!result) end(result.error());
    if constexpr (!std::is_void_v<T>) return std::move(*result);
}

// The destination's `serve`, as a thread on the other end of a socket pair.
Dial dial_of(const AgentOrders& orders) {
    return [orders](const PeerAddress&, const std::string& migration_id,
                    Deadline deadline) -> Result<std::unique_ptr<Channel>> {
        if (!orders.reachable) return peer_failed("the destination is not reachable");
        int ends[2];
        if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) != 0) return fail_errno("socketpair");
        std::thread([dir = orders.peer_dir, fd = ends[1]] {
            Channel channel(plain_link(UniqueFd(fd), "source"), Side::destination);
            if (answer_hello(channel, Deadline::in(patience)))
                (void)answer_recover(channel, dir, Deadline::in(patience), milliseconds{2000});
        }).detach();
        auto channel = std::make_unique<Channel>(plain_link(UniqueFd(ends[0]), "destination"), Side::source);
        (void)TRY(say_hello(*channel, image::ROLE_RECOVER, migration_id, 0, deadline));
        return channel;
    };
}

// The phases before the commit, without content.
Result<void> begin_source(Channel& channel, const AgentOrders& orders, std::string& peer_state_id) {
    (void)TRY(say_hello(channel, image::ROLE_CONTROL, orders.migration_id, 0, Deadline::in(patience)));
    image::Plan plan;
    plan.set_mode(image::MODE_STOP);
    plan.set_state_id(TRY(open_state_dir(orders.state_dir)));
    TRY(channel.send(FrameType::plan, plan));
    image::PlanReply reply;
    TRY(channel.expect(FrameType::plan_reply, reply, Deadline::in(patience)));
    peer_state_id = reply.state_id();
    return {};
}
Result<void> copy_source(Channel& channel) {
    TRY(channel.send(FrameType::round_end, image::RoundEnd()));
    image::RoundReply reply;
    TRY(channel.expect(FrameType::round_reply, reply, Deadline::in(patience)));
    TRY(channel.send(FrameType::process, image::Commit()));
    TRY(channel.send(FrameType::files, image::Commit()));
    return channel.send(FrameType::state_end, image::Commit());
}

[[noreturn]] void play_source(const AgentOrders& orders) {
    Channel channel(plain_link(UniqueFd(orders.link), "destination"), Side::source);
    on_link_cut([&channel] { channel.shut_down(); });
    SourceCommitOptions options;
    options.state_dir = orders.state_dir;
    options.migration_id = orders.migration_id;
    options.dial = dial_of(orders);
    options.settle_limit = orders.reachable ? patience : milliseconds{50};
    must(begin_source(channel, orders, options.peer_state_id));
    auto commit = must(SourceCommit::prepare(options, {orders.tree}));
    std::vector<StoppedProcess> tree;
    tree.push_back(must(seize_process(orders.tree, Deadline::in(patience))));
    const auto copied = copy_source(channel);
    if (!copied) {
        release_process(tree.front());
        { const auto undone = std::move(commit); }
        end(copied.error());
    }
    const auto outcome = commit.commit(channel, tree);
    if (!outcome) {
        for (StoppedProcess& process : tree) release_process(process);
        end(outcome.error());
    }
    if (*outcome == SourceOutcome::uncertain) end(commit.problem());
    std::_Exit(0);
}

Result<void> begin_destination(Channel& channel, std::string& peer_state_id) {
    (void)TRY(answer_hello(channel, Deadline::in(patience)));
    image::Plan plan;
    TRY(channel.expect(FrameType::plan, plan, Deadline::in(patience)));
    peer_state_id = plan.state_id();
    return {};
}
Result<void> copy_destination(Channel& channel, const std::string& state_id) {
    image::PlanReply plan;
    plan.set_state_id(state_id);
    TRY(channel.send(FrameType::plan_reply, plan));
    image::RoundEnd round;
    TRY(channel.expect(FrameType::round_end, round, Deadline::in(patience)));
    TRY(channel.send(FrameType::round_reply, image::RoundReply()));
    image::Commit nothing;
    TRY(channel.expect(FrameType::process, nothing, Deadline::in(patience)));
    TRY(channel.expect(FrameType::files, nothing, Deadline::in(patience)));
    return channel.expect(FrameType::state_end, nothing, Deadline::in(patience));
}

// A copy that waits at a gate until it was stopped; what opens the gate lets it run only once nothing stops it. Like a
// real skeleton it is not traced before it has let go of the agent's descriptors, the journal's lock among them.
Result<StoppedProcess> build_skeleton(Shared& shared) {
    int gate[2];
    if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, gate) != 0) return fail_errno("socketpair");
    const pid_t child = ::fork();
    if (child == 0) {
        ::dup2(gate[0], 3);
        ::close_range(4, ~0u, 0);
        count_as_destination(shared, 3);
    }
    const UniqueFd theirs(gate[0]), ours(gate[1]);
    shared.destination_pid = child;
    char byte = 0;
    TRY(read_all(ours.get(), &byte, 1));
    auto stopped = TRY(seize_process(child, Deadline::in(patience), PTRACE_O_EXITKILL));
    TRY(write_all(ours.get(), "g", 1));
    return stopped;
}

[[noreturn]] void play_destination(const AgentOrders& orders) {
    Channel channel(plain_link(UniqueFd(orders.link), "source"), Side::destination);
    on_link_cut([&channel] { channel.shut_down(); });
    DestCommitOptions options;
    options.state_dir = orders.state_dir;
    options.migration_id = orders.migration_id;
    must(begin_destination(channel, options.peer_state_id));
    Result<DestOutcome> outcome = [&]() -> Result<DestOutcome> {
        DestCommit commit = TRY(DestCommit::prepare(options));
        const std::string own_id = TRY(open_state_dir(orders.state_dir));
        TRY(copy_destination(channel, own_id));
        std::vector<StoppedProcess> tree;
        tree.push_back(TRY(build_skeleton(*map_shared(orders.shared))));
        return commit.commit(channel, tree);
    }();
    if (!outcome) end(outcome.error());
    std::_Exit(0);
}

[[noreturn]] void play_recover_source(const AgentOrders& orders) {
    SourceRecoverOptions options;
    options.state_dir = orders.state_dir;
    options.migration_id = orders.migration_id;
    options.dial = dial_of(orders);
    options.limit = orders.reachable ? milliseconds{orders.limit_ms} : milliseconds{50};
    options.word = operator_word(orders.word).value();
    const auto reports = must(recover_sources(options));
    for (const Recovered& report : reports)
        if (report.code != ExitCode::done) end(Problem{report.what, report.hint, report.code, 0});
    std::_Exit(0);
}

[[noreturn]] void play_recover_destination(const AgentOrders& orders) {
    const auto reports =
        must(recover_destinations(orders.state_dir, orders.migration_id, operator_word(orders.word).value()));
    for (const DestinationRecovered& report : reports)
        if (!report.settled) end(Problem{report.what, report.hint, ExitCode::uncertain, 0});
    std::_Exit(0);
}

}  // namespace

Shared* map_shared(int fd) {
    void* at = ::mmap(nullptr, sizeof(Shared), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    return at == MAP_FAILED ? nullptr : static_cast<Shared*>(at);
}

void count_as_source(Shared& shared) {
    for (;;) {
        if (shared.destination_count != 0) ++shared.violations;
        ++shared.source_count;
        ::usleep(300);
    }
}

void count_as_destination(Shared& shared, int gate) {
    char byte = 'r';
    const bool opened = ::write(gate, &byte, 1) == 1 && ::read(gate, &byte, 1) == 1;
    if (!opened) ::_exit(1);  // the agent died before it traced us
    const uint64_t there = shared.source_count;
    for (;;) {
        ++shared.destination_count;
        if (shared.source_count != there) ++shared.violations;
        ::usleep(300);
    }
}

pid_t start_agent(const AgentOrders& orders) {
    const nlohmann::json text{{"part", orders.part},         {"state_dir", orders.state_dir},
                              {"peer_dir", orders.peer_dir}, {"migration_id", orders.migration_id},
                              {"link", orders.link},         {"shared", orders.shared},
                              {"tree", orders.tree},         {"reachable", orders.reachable},
                              {"word", orders.word},         {"limit_ms", orders.limit_ms}};
    const std::string packed = text.dump();
    const pid_t pid = ::fork();
    if (pid != 0) return pid;
    for (const int fd : {orders.link, orders.shared})
        if (fd >= 0) ::fcntl(fd, F_SETFD, 0);
    ::setenv(orders_variable, packed.c_str(), 1);
    if (!orders.fault.empty()) ::setenv("GODWIT_FAULT", orders.fault.c_str(), 1);
    if (!orders.trace.empty()) ::setenv("GODWIT_FAULT_TRACE", orders.trace.c_str(), 1);
    ::execl("/proc/self/exe", "unit_tests", "--gtest_filter=CommitAgent.DISABLED_PlaysItsPart",
            "--gtest_also_run_disabled_tests", "--gtest_brief=1", nullptr);
    ::_exit(127);
}

void play_part() {
    const char* packed = std::getenv(orders_variable);
    if (packed == nullptr) std::_Exit(2);
    const nlohmann::json text = nlohmann::json::parse(packed);
    AgentOrders orders;
    text.at("part").get_to(orders.part);
    text.at("state_dir").get_to(orders.state_dir);
    text.at("peer_dir").get_to(orders.peer_dir);
    text.at("migration_id").get_to(orders.migration_id);
    text.at("link").get_to(orders.link);
    text.at("shared").get_to(orders.shared);
    text.at("tree").get_to(orders.tree);
    text.at("reachable").get_to(orders.reachable);
    text.at("word").get_to(orders.word);
    text.at("limit_ms").get_to(orders.limit_ms);
    if (orders.part == "source") play_source(orders);
    if (orders.part == "destination") play_destination(orders);
    if (orders.part == "recover-source") play_recover_source(orders);
    play_recover_destination(orders);
}

}  // namespace godwit::test
