#include <gtest/gtest.h>

#include <compare>
#include <deque>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "common/recovery/table.h"

namespace godwit {
namespace {

using S = SourceState;
using D = DestinationState;
using DA = DestinationAction;
using SA = SourceAction;

const std::vector<S> sources{S::none, S::preparing, S::committed, S::done, S::aborted};
const std::vector<D> destinations{D::none,    D::preparing, D::ready, D::owned,      D::running,
                                  D::aborted, D::lost,      D::busy,  D::unreachable};
const std::vector<OperatorWord> words{OperatorWord::none, OperatorWord::resume, OperatorWord::discard};

TEST(RecoveryTable, NamesGoThereAndBack) {
    for (const S s : sources) EXPECT_EQ(source_state(name_of(s)), s);
    for (const D d : destinations) EXPECT_EQ(destination_state(name_of(d)), d);
    for (const DA a : {DA::nothing, DA::discard, DA::thaw}) EXPECT_EQ(destination_action(name_of(a)), a);
    EXPECT_FALSE(source_state("owned"));
    EXPECT_FALSE(operator_word("maybe"));
}

TEST(RecoveryTable, EveryRowOfACommittedSource) {
    struct Row {
        D there;
        DA first;
        SA then;
        bool forget;
        ExitCode code;
    };
    for (const Row& row : std::vector<Row>{
             {D::none, DA::discard, SA::resume, true, ExitCode::done},
             {D::preparing, DA::discard, SA::resume, true, ExitCode::done},
             {D::ready, DA::discard, SA::resume, true, ExitCode::done},
             {D::aborted, DA::nothing, SA::resume, true, ExitCode::done},
             {D::owned, DA::thaw, SA::kill, true, ExitCode::done},
             {D::running, DA::nothing, SA::kill, true, ExitCode::done},
             {D::lost, DA::nothing, SA::nothing, false, ExitCode::uncertain},
             {D::busy, DA::nothing, SA::nothing, false, ExitCode::uncertain},
             {D::unreachable, DA::nothing, SA::nothing, false, ExitCode::uncertain},
         }) {
        const Settlement got = settle(S::committed, row.there);
        EXPECT_EQ(got.destination, row.first) << name_of(row.there);
        EXPECT_EQ(got.source, row.then) << name_of(row.there);
        EXPECT_EQ(got.forget, row.forget) << name_of(row.there);
        EXPECT_EQ(got.code, row.code) << name_of(row.there);
    }
}

TEST(RecoveryTable, TheWordCountsOnlyWhereThePeerIsUnreachableOrHasLostTheTree) {
    for (const S s : sources)
        for (const D d : destinations)
            for (const OperatorWord word : words) {
                const bool counts =
                    s == S::committed && (d == D::unreachable || d == D::lost) && word != OperatorWord::none;
                if (!counts) {
                    EXPECT_EQ(settle(s, d, word), settle(s, d)) << name_of(s) << " × " << name_of(d);
                    continue;
                }
                EXPECT_EQ(settle(s, d, word).source, word == OperatorWord::resume ? SA::resume : SA::kill);
                EXPECT_EQ(settle(s, d, word).code, ExitCode::done);
            }
}

TEST(RecoveryTable, NoRowLetsTheSourceRunBesideADestinationThatMay) {
    for (const S s : sources)
        for (const D d : destinations)
            for (const OperatorWord word : words) {
                const Settlement got = settle(s, d, word);
                const std::string row = std::string(name_of(s)) + " × " + std::string(name_of(d));
                EXPECT_FALSE(got.why.empty() && s != S::none) << row;
                EXPECT_FALSE(got.source == SA::resume && (d == D::running || got.destination == DA::thaw)) << row;
                EXPECT_FALSE(got.source == SA::resume && d == D::owned && got.destination != DA::discard) << row;
                EXPECT_FALSE(got.source == SA::resume && s == S::done) << row;
                EXPECT_FALSE(got.source == SA::kill && (s == S::preparing || s == S::aborted)) << row;
                // Nothing is killed here while the peer says that it holds nothing, unless it had it before or by the
                // word.
                EXPECT_FALSE(got.source == SA::kill && s == S::committed && word == OperatorWord::none &&
                             d != D::owned && d != D::running)
                    << row;
                if (got.code == ExitCode::uncertain) {
                    EXPECT_TRUE(got.source == SA::nothing && got.destination == DA::nothing && !got.forget) << row;
                }
                EXPECT_TRUE(got.code == ExitCode::done || got.code == ExitCode::uncertain) << row;
            }
}

TEST(RecoveryTable, TheDestinationAloneNeverTouchesWhatRuns) {
    for (const D d : {D::none, D::running, D::aborted, D::lost, D::busy, D::unreachable})
        EXPECT_EQ(settle_alone(d), DA::nothing);
    EXPECT_EQ(settle_alone(D::preparing), DA::discard);
    EXPECT_EQ(settle_alone(D::ready), DA::discard);
    EXPECT_EQ(settle_alone(D::owned), DA::thaw);
}

// A model of the commit and of recover: both agents, their journals, the tree on both hosts, the link and the frames
// in flight. Each actor's step is one durable or visible act; either actor may be killed before any step, and the link
// be cut (what was sent may still arrive, or not). Every reachable state is visited.
enum class Tree {
    absent,
    running,
    traced,
    frozen,
    dead
};  // traced: stopped by ptrace alone; runs on when its agent dies
enum Frames : int { ready = 1, go = 2, running = 4, done = 8, done_reply = 16 };

// Where an actor is. Numbers below 100: the agent's steps in order; from 100 on: recover; idle: nobody is at work.
constexpr int idle = -1;

struct World {
    S source_journal = S::none;
    Tree source_tree = Tree::running;
    int source = 0;
    D destination_journal = D::none;
    Tree destination_tree = Tree::absent;
    int destination = 0;
    bool link = true;
    int frames = 0;
    S asked_as = S::none;  // recover: the source's state when it asked …
    D answered = D::none;  // … and what it was told
    auto operator<=>(const World&) const = default;
};

D observed(const World& w) {
    if (w.destination != idle) return D::busy;
    if (w.destination_journal == D::owned && w.destination_tree == Tree::running) return D::running;
    return w.destination_journal;
}

// One step of what answers a question at the destination: false when there is nothing (more) to do for the action.
bool destination_step(World& w, DA action) {
    if (action == DA::discard) {
        if (w.destination_tree == Tree::frozen || w.destination_tree == Tree::traced)
            return w.destination_tree = Tree::dead, true;
        if (w.destination_journal != D::aborted) return w.destination_journal = D::aborted, true;
    }
    if (action == DA::thaw) {
        if (w.destination_tree == Tree::frozen) return w.destination_tree = Tree::running, true;
        if (w.destination_journal != D::running) return w.destination_journal = D::running, true;
    }
    return false;
}

void recover_at_source(const World& w, std::vector<World>& next) {
    World n = w;
    const Settlement plan = settle(w.asked_as, w.answered);
    switch (w.source) {
        case 100:  // ask; a source that is preparing need not
            if (w.source_journal == S::none) return n.source = idle, next.push_back(n);
            n.asked_as = w.source_journal;
            n.answered = w.source_journal == S::preparing ? D::unreachable : observed(w);
            n.source = settle(n.asked_as, n.answered).code == ExitCode::done ? 101 : idle;
            return next.push_back(n);
        case 101: {  // the destination acts, if what it is now still allows it
            if (plan.destination == DA::nothing) return n.source = 102, next.push_back(n);
            const D now = observed(w);
            const bool reached = now == (plan.destination == DA::discard ? D::aborted : D::running);
            if (reached && !destination_step(n, plan.destination)) return n.source = 102, next.push_back(n);
            if (!reached && settle(w.asked_as, now).destination != plan.destination)
                return n.source = 100, next.push_back(n);
            if (!reached && !destination_step(n, plan.destination)) n.source = 100;
            return next.push_back(n);
        }
        case 102:  // the source acts
            if (plan.source == SA::resume && w.source_tree == Tree::frozen) n.source_tree = Tree::running;
            if (plan.source == SA::kill) n.source_tree = Tree::dead;
            n.source = 103;
            return next.push_back(n);
        case 103:
            if (plan.source == SA::resume && w.source_journal == S::committed) n.source_journal = S::aborted;
            if (plan.source == SA::kill) n.source_journal = S::done;
            n.source = w.asked_as == S::preparing ? 105 : plan.forget ? 104 : idle;
            return next.push_back(n);
        case 104: {  // forget
            const Settlement now = settle(w.source_journal, observed(w));
            if (!now.forget || now.destination != DA::nothing) return n.source = 100, next.push_back(n);
            n.destination_journal = D::none;
            n.source = 105;
            return next.push_back(n);
        }
        case 105:
            n.source_journal = S::none;
            n.source = idle;
            return next.push_back(n);
    }
}

void recover_at_destination(const World& w, std::vector<World>& next) {
    World n = w;
    n.destination = idle;
    const D now = observed(n);
    n.destination = 100;
    switch (settle_alone(now)) {
        case DA::discard:
            if (w.destination_tree == Tree::frozen || w.destination_tree == Tree::traced)
                n.destination_tree = Tree::dead;
            else
                n.destination_journal = D::none, n.destination = idle;
            break;
        case DA::thaw:
            n.destination_tree = Tree::running;
            break;  // observed as running from here on
        case DA::nothing:
            if (now == D::running) n.destination_journal = D::running;
            n.destination = idle;
    }
    next.push_back(n);
}

// Sending: the frame is in flight, or the link turns out to be gone and the sender takes the `lost` way.
void send(const World& w, Frames frame, int World::*actor, int then, int lost, std::vector<World>& next) {
    World n = w;
    if (w.link) {
        n.frames |= frame;
        n.*actor = then;
        next.push_back(n);
        n.link = false;  // sent, or half sent, and the sender sees an error
        n.*actor = lost;
        next.push_back(n);
    }
    n = w;
    n.link = false;
    n.*actor = lost;
    next.push_back(n);
}
void receive(const World& w, Frames frame, int World::*actor, int then, int lost, std::vector<World>& next) {
    World n = w;
    if (w.frames & frame) {
        n.frames &= ~frame;
        n.*actor = then;
        next.push_back(n);
    }
    if (!w.link) {
        n = w;
        n.*actor = lost;
        next.push_back(n);
    }
}

void source_steps(const World& w, std::vector<World>& next) {
    if (w.source == idle) {
        if (w.source_journal == S::none) return;
        World n = w;
        n.source = 100;
        return next.push_back(n);
    }
    if (w.source >= 100) return recover_at_source(w, next);
    World n = w;
    n.source = w.source + 1;
    switch (w.source) {
        case 0:
            n.source_journal = S::preparing;
            break;
        case 1:
            n.source_tree = Tree::traced;
            break;
        case 2:
            return receive(w, ready, &World::source, 3, 20, next);
        case 3:
            n.source_journal = S::committed;
            break;
        case 4:
            n.source_tree = Tree::frozen;
            break;
        case 5:
            return send(w, go, &World::source, 6, 100, next);
        case 6:
            return receive(w, running, &World::source, 7, 100, next);
        case 7:
            n.source_tree = Tree::dead;
            break;
        case 8:
            n.source_journal = S::done;
            break;
        case 9:
            return send(w, done, &World::source, 10, 100, next);
        case 10:
            return receive(w, done_reply, &World::source, 11, 100, next);
        case 11:
            n.source_journal = S::none, n.source = idle;
            break;
        case 20:
            n.source_tree = Tree::running;
            break;  // aborted before GO
        case 21:
            n.source_journal = S::none, n.source = idle;
            break;
    }
    next.push_back(n);
}

void destination_steps(const World& w, std::vector<World>& next) {
    if (w.destination == idle) {
        if (w.destination_journal == D::none) return;
        World n = w;
        n.destination = 100;
        return next.push_back(n);
    }
    if (w.destination >= 100) return recover_at_destination(w, next);
    World n = w;
    n.destination = w.destination + 1;
    switch (w.destination) {
        case 0:
            if (w.destination_journal != D::none)
                n.destination = idle;  // a tombstone: refused
            else
                n.destination_journal = D::preparing;
            break;
        case 1:
            n.destination_tree = Tree::traced;
            break;
        case 2:
            n.destination_journal = D::ready;
            break;
        case 3:
            return send(w, ready, &World::destination, 4, 20, next);
        case 4:
            return receive(w, go, &World::destination, 5, 20, next);
        case 5:
            n.destination_tree = Tree::frozen;
            break;  // EXITKILL dropped: the freezer alone holds
        case 6:
            n.destination_journal = D::owned;
            break;
        case 7:
            n.destination_tree = Tree::running;
            break;
        case 8:
            return send(w, running, &World::destination, 9, 9, next);
        case 9:
            n.destination_journal = D::running;
            break;
        case 10:
            return receive(w, done, &World::destination, 11, idle, next);
        case 11:
            n.destination_journal = D::none;
            break;
        case 12:
            return send(w, done_reply, &World::destination, idle, idle, next);
        case 20:
            n.destination_tree = Tree::dead;
            break;
        case 21:
            n.destination_journal = D::none, n.destination = idle;
            break;
    }
    next.push_back(n);
}

World kill_source(World w) {
    if (w.source_tree == Tree::traced) w.source_tree = Tree::running;
    w.source = idle;
    w.link = false;
    return w;
}
World kill_destination(World w) {
    if (w.destination_tree == Tree::traced) w.destination_tree = Tree::dead;  // EXITKILL
    w.destination = idle;
    w.link = false;
    return w;
}

std::vector<World> successors(const World& w) {
    std::vector<World> next;
    source_steps(w, next);
    destination_steps(w, next);
    if (w.source != idle) next.push_back(kill_source(w));
    if (w.destination != idle) next.push_back(kill_destination(w));
    if (w.link) {
        next.push_back(w);
        next.back().link = false;
    }
    return next;
}

bool source_may_run(const World& w) { return w.source_tree == Tree::running || w.source_tree == Tree::traced; }

std::string text(const World& w) {
    return "source " + std::string(name_of(w.source_journal)) + " tree " + std::to_string(int(w.source_tree)) + " at " +
           std::to_string(w.source) + ", destination " + std::string(name_of(w.destination_journal)) + " tree " +
           std::to_string(int(w.destination_tree)) + " at " + std::to_string(w.destination) + ", frames " +
           std::to_string(w.frames);
}

World run_alone(World w, void (*steps)(const World&, std::vector<World>&)) {
    for (int i = 0; i < 100; ++i) {
        std::vector<World> next;
        steps(w, next);
        if (next.empty()) break;
        const World before = w;
        w = next.front();
        const int World::*actor = steps == source_steps ? &World::source : &World::destination;
        if (w.*actor == idle && i > 0) break;
        if (w == before) break;
    }
    return w;
}

TEST(RecoveryModel, NoCrashOfAgentsOrLinkEverMakesTwoCopiesOrNone) {
    std::set<World> seen{World{}};
    std::deque<World> open{World{}};
    while (!open.empty()) {
        const World w = open.front();
        open.pop_front();
        ASSERT_FALSE(source_may_run(w) && w.destination_tree == Tree::running) << "two copies: " << text(w);
        ASSERT_FALSE(w.source_tree == Tree::dead &&
                     (w.destination_tree == Tree::absent || w.destination_tree == Tree::dead))
            << "no copy: " << text(w);
        // Whatever happened, recover on both hosts, in either order, leaves one running copy and nothing else.
        for (const bool source_first : {true, false}) {
            World end = kill_destination(kill_source(w));
            if (source_first) end = run_alone(end, source_steps);
            end = run_alone(end, destination_steps);
            if (!source_first) end = run_alone(end, source_steps);
            ASSERT_NE(end.source_tree == Tree::running, end.destination_tree == Tree::running)
                << text(w) << "\nends as " << text(end);
            ASSERT_TRUE(end.source_journal == S::none && end.destination_journal == D::none)
                << text(w) << "\nends as " << text(end);
            ASSERT_TRUE(end.source_tree != Tree::frozen && end.destination_tree != Tree::frozen)
                << text(w) << "\nends as " << text(end);
        }
        for (const World& n : successors(w))
            if (seen.insert(n).second) open.push_back(n);
    }
    RecordProperty("states", static_cast<int>(seen.size()));
    EXPECT_GT(seen.size(), 500u);
    // Both ends are reachable at all: a model that gets stuck early would pass everything above.
    const auto ends = [&](Tree source, Tree destination) {
        for (const World& w : seen)
            if (w.source_tree == source && w.destination_tree == destination && w.source == idle &&
                w.destination == idle && w.source_journal == S::none && w.destination_journal == D::none)
                return true;
        return false;
    };
    EXPECT_TRUE(ends(Tree::dead, Tree::running));
    EXPECT_TRUE(ends(Tree::running, Tree::dead));
}

}  // namespace
}  // namespace godwit
