// The commit between two agents that are killed, and whose link is cut, at every step; then `recover`.
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <set>

#include "common/base/file.h"
#include "common/base/uuid.h"
#include "common/recovery/hold_cgroup.h"
#include "tests/support/commit_agents.h"

namespace godwit {
namespace {

using test::AgentOrders;
using test::Shared;

TEST(CommitAgent, DISABLED_PlaysItsPart) { test::play_part(); }

// One migration of one counting process between two state directories.
class World {
  public:
    World() {
        ::prctl(PR_SET_CHILD_SUBREAPER, 1);  // copies outlive the agents that made them
        char name[] = "/tmp/godwit-commit-XXXXXX";
        dir_ = ::mkdtemp(name);
        id_ = new_uuid().value();
        shared_fd_ = UniqueFd(::memfd_create("shared", MFD_CLOEXEC));
        (void)::ftruncate(shared_fd_.get(), 4096);
        shared_ = test::map_shared(shared_fd_.get());
        home_ = Cgroup::top()->make_child("godwit-test-" + id_).value();
        tree_ = ::fork();
        if (tree_ == 0) test::count_as_source(*shared_);
        EXPECT_TRUE(home_.move_in(tree_));
    }
    ~World() {
        ::kill(tree_, SIGKILL);
        if (shared_->destination_pid > 0) ::kill(shared_->destination_pid, SIGKILL);
        const Cgroup moved(Cgroup::top()->path() + "/godwit-tree-" + id_);
        for (const Cgroup& each : {home_, moved}) {
            if (!each.exists()) continue;
            EXPECT_TRUE(each.kill(Deadline::in(cgroup_limit)));
            EXPECT_TRUE(each.remove(Deadline::in(cgroup_limit)));
        }
        while (::waitpid(-1, nullptr, WNOHANG) > 0) continue;
        ::munmap(shared_, sizeof(Shared));
        std::filesystem::remove_all(dir_);
    }

    AgentOrders orders(const std::string& part) const {
        AgentOrders made;
        made.part = part;
        const bool source = part.ends_with("source");
        made.state_dir = dir_ + (source ? "/source" : "/destination");
        made.peer_dir = dir_ + (source ? "/destination" : "/source");
        made.migration_id = id_;
        made.shared = shared_fd_.get();
        made.tree = tree_;
        return made;
    }

    // Both agents, to their ends. Exit codes; 256 + signal where killed.
    struct Codes {
        int source = -1;
        int destination = -1;
    };
    Codes migrate(AgentOrders source, AgentOrders destination) {
        int ends[2];
        EXPECT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), 0);
        source.link = ends[0];
        destination.link = ends[1];
        const pid_t d = test::start_agent(destination);
        const pid_t s = test::start_agent(source);
        ::close(ends[0]);
        ::close(ends[1]);
        Codes codes;
        codes.source = wait_for(s);
        codes.destination = wait_for(d);
        return codes;
    }
    int recover(const std::string& host, bool reachable = true, const std::string& word = {},
                const std::string& fault = {}, const std::string& trace = {}) {
        AgentOrders made = orders("recover-" + host);
        made.limit_ms = recover_limit_ms;
        made.reachable = reachable;
        made.word = word;
        made.fault = fault;
        made.trace = trace;
        return wait_for(test::start_agent(made));
    }

    bool source_runs() const { return advances(shared_->source_count); }
    bool destination_runs() const { return advances(shared_->destination_count); }

    // One copy runs, the other is gone, both never ran at once, and nothing else is left.
    void expect_settled() {
        const bool source = source_runs(), destination = destination_runs();
        EXPECT_NE(source, destination) << "source runs: " << source << ", destination runs: " << destination;
        EXPECT_EQ(shared_->violations, 0u);
        const pid_t copy = shared_->destination_pid;
        EXPECT_TRUE(!destination || gone(tree_)) << "the source's copy is still there";
        EXPECT_TRUE(!source || copy <= 0 || gone(copy)) << "the destination's copy is still there";
        if (source) {
            EXPECT_EQ(Cgroup::of(tree_)->path(), home_.path());
        }
        expect_clean(destination);
    }
    void expect_held() const {
        EXPECT_FALSE(source_runs());
        EXPECT_FALSE(destination_runs());
        EXPECT_EQ(shared_->violations, 0u);
    }
    void expect_clean(bool tree_cgroup) const {
        for (const char* host : {"/source", "/destination"}) {
            if (!std::filesystem::exists(dir_ + host)) continue;
            for (const auto& each : std::filesystem::directory_iterator(dir_ + host))
                EXPECT_EQ(each.path().filename(), "id") << "left behind: " << each.path();
        }
        const std::string top = Cgroup::top()->path();
        EXPECT_FALSE(Cgroup(home_.path() + "/godwit-" + id_ + "-source").exists());
        EXPECT_FALSE(Cgroup(top + "/godwit-" + id_ + "-destination").exists());
        EXPECT_EQ(Cgroup(top + "/godwit-tree-" + id_).exists(), tree_cgroup);
    }

    int recover_limit_ms = 20'000;
    const std::string& dir() const { return dir_; }
    // What a reboot leaves of the destination: its files.
    void reboot_destination() {
        const Cgroup hold(Cgroup::top()->path() + "/godwit-" + id_ + "-destination");
        EXPECT_TRUE(hold.kill(Deadline::in(cgroup_limit)));
        EXPECT_TRUE(hold.remove(Deadline::in(cgroup_limit)));
        const std::string path = dir_ + "/destination/" + id_ + ".destination.json";
        std::string text = read_file(path).value();
        const std::string boot = current_boot_id().value();
        text.replace(text.find(boot), boot.size(), new_uuid().value());
        EXPECT_TRUE(replace_file(path, text));
    }

  private:
    static int wait_for(pid_t pid) {
        // A stuck agent fails its case instead of the whole run.
        const UniqueFd fd(static_cast<int>(::syscall(SYS_pidfd_open, pid, 0)));
        pollfd end{fd.get(), POLLIN, 0};
        if (::poll(&end, 1, 60'000) != 1) {
            ADD_FAILURE() << "agent " << pid << " does not end";
            ::kill(pid, SIGKILL);
        }
        int status = 0;
        ::waitpid(pid, &status, 0);
        return WIFEXITED(status) ? WEXITSTATUS(status) : 256 + WTERMSIG(status);
    }
    static bool advances(const std::atomic<uint64_t>& count) {
        const uint64_t before = count;
        for (int i = 0; i < 25 && count == before; ++i) ::usleep(1000);
        return count != before;
    }
    static bool gone(pid_t pid) {
        for (int i = 0; i < 2000; ++i) {
            while (::waitpid(pid, nullptr, WNOHANG) > 0) continue;
            if (::kill(pid, 0) != 0) return true;
            ::usleep(1000);
        }
        return false;
    }

    std::string dir_;
    std::string id_;
    UniqueFd shared_fd_;
    Shared* shared_ = nullptr;
    Cgroup home_;
    pid_t tree_ = 0;
};

// Names in the order of their first appearance.
std::vector<std::string> points_in(const std::string& trace) {
    std::vector<std::string> names;
    std::set<std::string> seen;
    std::ifstream lines(trace);
    unsigned long number = 0;
    for (std::string name; lines >> number >> name;)
        if (seen.insert(name).second) names.push_back(name);
    return names;
}
bool is_step(const std::string& name) { return name.starts_with("source:") || name.starts_with("dest:"); }
// Of the commit's own frames; those before them end a migration that has done nothing yet.
bool is_frame(const std::string& name) {
    for (const char* frame : {":state_end:", ":ready:", ":go:", ":running:", ":done:", ":done_reply:"})
        if (name.find(frame) != std::string::npos) return true;
    return false;
}

struct Points {
    std::vector<std::string> source;
    std::vector<std::string> destination;
};
// The points that an undisturbed migration passes.
Points discover() {
    World world;
    AgentOrders source = world.orders("source"), destination = world.orders("destination");
    source.trace = world.dir() + "/source.trace";
    destination.trace = world.dir() + "/destination.trace";
    const auto codes = world.migrate(source, destination);
    EXPECT_EQ(codes.source, 0);
    EXPECT_EQ(codes.destination, 0);
    EXPECT_TRUE(world.destination_runs());
    world.expect_settled();
    return {points_in(source.trace), points_in(destination.trace)};
}

// Whatever state both are in: recover at the source, then at the destination.
void recover_and_expect_settled(World& world) {
    EXPECT_EQ(world.recover("source"), 0);
    EXPECT_EQ(world.recover("destination"), 0);
    world.expect_settled();
}

class CommitTest : public testing::Test {
  protected:
    void SetUp() override {
        if (::geteuid() != 0) GTEST_SKIP() << "needs root";
    }
};

TEST_F(CommitTest, UndisturbedTheTreeRunsAtTheDestinationAndNothingIsLeft) {
    const Points points = discover();
    EXPECT_GT(points.source.size(), 15u);
    EXPECT_GT(points.destination.size(), 15u);
}

TEST_F(CommitTest, EitherAgentKilledAtEveryStepAndFrame) {
    const Points points = discover();
    int cases = 0;
    for (const bool at_source : {true, false}) {
        for (const std::string& name : at_source ? points.source : points.destination) {
            if (!is_step(name) && !is_frame(name)) continue;
            SCOPED_TRACE((at_source ? "source killed at " : "destination killed at ") + name);
            ++cases;
            World world;
            AgentOrders source = world.orders("source"), destination = world.orders("destination");
            (at_source ? source : destination).fault = "kill@" + name;
            source.reachable = false;  // so that it is recover that settles
            const auto codes = world.migrate(source, destination);
            EXPECT_EQ(at_source ? codes.source : codes.destination, 256 + SIGKILL);
            EXPECT_TRUE(codes.source != 5 || !world.source_runs()) << "held, it said";
            EXPECT_TRUE((codes.source != 1 && codes.source != 4) || world.source_runs()) << "runs on, it said";
            recover_and_expect_settled(world);
        }
    }
    RecordProperty("cases", cases);
    EXPECT_GE(cases, 45);
}

TEST_F(CommitTest, TheLinkCutAtEveryFrameSettlesItselfWhenThePeerIsReachable) {
    const Points points = discover();
    int cases = 0;
    for (const bool at_source : {true, false}) {
        for (const std::string& name : at_source ? points.source : points.destination) {
            if (!is_frame(name)) continue;
            ++cases;
            SCOPED_TRACE((at_source ? "cut by the source at " : "cut by the destination at ") + name);
            World world;
            AgentOrders source = world.orders("source"), destination = world.orders("destination");
            (at_source ? source : destination).fault = "cut@" + name;
            const auto codes = world.migrate(source, destination);
            EXPECT_TRUE(codes.source == 0 || codes.source == 4) << codes.source;
            EXPECT_EQ(codes.source == 0, world.destination_runs());
            world.expect_settled();
        }
    }
    EXPECT_GE(cases, 24);  // six frames, either end, before and after
}

TEST_F(CommitTest, RecoverKilledAtEveryStepIsFinishedByTheNext) {
    // Each leaves another row of the table to recover: source committed × ready, owned, running; source done × running.
    struct Start {
        const char* agent;
        const char* fault;
    };
    for (const Start& start : {Start{"source", "kill@source:frozen"}, Start{"destination", "kill@dest:owned"},
                               Start{"destination", "kill@dest:thawed"}, Start{"source", "kill@source:done"}}) {
        std::vector<std::string> names;
        for (size_t at = 0; at <= names.size(); ++at) {  // the first round only finds the names
            SCOPED_TRACE(std::string(start.fault) + ", then recover " +
                         (at == 0 ? "traced" : "killed at " + names[at - 1]));
            World world;
            AgentOrders source = world.orders("source"), destination = world.orders("destination");
            (std::string(start.agent) == "source" ? source : destination).fault = start.fault;
            source.reachable = false;
            world.migrate(source, destination);
            const std::string trace = world.dir() + "/recover.trace";
            const int code = world.recover("source", true, {}, at == 0 ? "" : "kill@" + names[at - 1], trace);
            EXPECT_EQ(code, at == 0 ? 0 : 256 + SIGKILL);
            if (at == 0)
                for (const std::string& name : points_in(trace))
                    if (name.starts_with("recover:")) names.push_back(name);
            recover_and_expect_settled(world);
        }
    }
}

TEST_F(CommitTest, AnUnreachablePeerLeavesTheTreeHeldUntilTheOperatorDecides) {
    for (const std::string word : {"resume", "discard"}) {
        SCOPED_TRACE(word);
        World world;
        AgentOrders source = world.orders("source"), destination = world.orders("destination");
        destination.fault = "kill@receive:go:before";
        source.reachable = false;
        EXPECT_EQ(world.migrate(source, destination).source, 5);
        world.expect_held();
        EXPECT_EQ(world.recover("source", false), 5);
        world.expect_held();
        EXPECT_EQ(world.recover("source", false, word), 0);
        EXPECT_EQ(world.source_runs(), word == "resume");
        // The peer comes back after all, without having run the tree: what both noted is dropped.
        EXPECT_EQ(world.recover("source"), 0);
        EXPECT_EQ(world.recover("destination"), 0);
        EXPECT_EQ(world.source_runs(), word == "resume");
        EXPECT_FALSE(world.destination_runs());
        world.expect_clean(false);
    }
}

TEST_F(CommitTest, TheDestinationAloneThawsWhatItOwnsAndTheSourceFindsOut) {
    World world;
    AgentOrders source = world.orders("source"), destination = world.orders("destination");
    destination.fault = "kill@dest:owned";
    source.reachable = false;
    EXPECT_EQ(world.migrate(source, destination).source, 5);
    world.expect_held();
    EXPECT_EQ(world.recover("destination"), 5) << "the source has to be asked to give up its copy";
    EXPECT_TRUE(world.destination_runs());
    recover_and_expect_settled(world);
    EXPECT_TRUE(world.destination_runs());
}

TEST_F(CommitTest, ATreeThatWasLostWithItsHostIsTheOperatorsToDecide) {
    World world;
    AgentOrders source = world.orders("source"), destination = world.orders("destination");
    destination.fault = "kill@dest:owned";
    source.reachable = false;
    EXPECT_EQ(world.migrate(source, destination).source, 5);
    world.reboot_destination();
    EXPECT_EQ(world.recover("source"), 5);
    world.expect_held();
    EXPECT_EQ(world.recover("source", true, "resume"), 0);
    EXPECT_TRUE(world.source_runs());
    world.expect_settled();
}

TEST_F(CommitTest, AnEmptyStateDirectoryIsNotBelieved) {
    World world;
    AgentOrders source = world.orders("source"), destination = world.orders("destination");
    destination.fault = "kill@dest:owned";
    source.reachable = false;
    EXPECT_EQ(world.migrate(source, destination).source, 5);
    std::filesystem::rename(world.dir() + "/destination", world.dir() + "/away");
    world.recover_limit_ms = 300;
    EXPECT_EQ(world.recover("source"), 5) << "it says that it knows nothing of the migration, but it is not the peer";
    world.expect_held();
    std::filesystem::remove_all(world.dir() + "/destination");
    std::filesystem::rename(world.dir() + "/away", world.dir() + "/destination");
    world.recover_limit_ms = 20'000;
    recover_and_expect_settled(world);
    EXPECT_TRUE(world.destination_runs());
}

}  // namespace
}  // namespace godwit
