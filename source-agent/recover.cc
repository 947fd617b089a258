#include "source-agent/recover.h"

#include <fmt/format.h>
#include <unistd.h>

#include "common/base/fault.h"
#include "common/base/log.h"
#include "common/base/text.h"
#include "common/recovery/hold_cgroup.h"
#include "transport/channel.h"
#include "source-agent/end_copy.h"

namespace godwit {
namespace {

constexpr const char* run_again = "run: godwit recover";

// One RECOVER connection to the destination of one migration.
class Conversation {
  public:
    Conversation(const Journal& journal, const SourceRecoverOptions& options, Deadline deadline)
        : journal_(journal), options_(options), deadline_(deadline) {}

    // Asks, or has the destination act, and returns its state afterwards. `decision`: "", "discard", "resume",
    // "forget".
    Result<DestinationState> say(std::string_view decision) {
        auto answer = say_once(decision);
        if (!answer) channel_.reset();  // what was asked may or may not have been done: the next question finds out
        return answer;
    }

  private:
    Result<void> connect() {
        if (channel_) return {};
        const JournalEntry& entry = journal_.entry();
        const PeerAddress& peer = options_.peer.address.empty() ? entry.peer : options_.peer;
        // One silent address must not eat the whole time: a peer that comes back is found by the next try.
        const Deadline soon = Deadline::at(std::min(deadline_.when(), Clock::now() + milliseconds(5000)));
        channel_ = TRY(options_.dial(peer, entry.migration_id, soon));
        return {};
    }

    Result<DestinationState> say_once(std::string_view decision) {
        TRY(connect());
        const JournalEntry& entry = journal_.entry();
        const std::string own_id = TRY(open_state_dir(options_.state_dir));
        image::RecoverQuery query;
        query.set_migration_id(entry.migration_id);
        query.set_state_id(own_id);
        query.set_state(entry.state);
        query.set_decision(std::string(decision));
        TRY(channel_->send(FrameType::recover_query, query));
        image::RecoverReply reply;
        // Killing or moving a tree there takes the kernel's cgroup locks: as long as those may take.
        TRY(channel_->expect(FrameType::recover_reply, reply, Deadline::in(cgroup_limit + milliseconds(5000))));
        if (reply.problems_size() > 0) return Failure(from_wire(reply.problems()).front());
        if (reply.migration_id() != entry.migration_id)
            return peer_failed(channel_->peer() + " answers about another migration");
        if (reply.state_id() != entry.peer_state_id) {
            return peer_failed(
                fmt::format("{} answers from another state directory than the migration began with", channel_->peer()),
                "start `godwit serve` there with the --state-dir it had");
        }
        const auto state = destination_state(reply.state());
        if (!state || *state == DestinationState::unreachable)
            return peer_failed(channel_->peer() + " answers with an unknown state");
        return *state;
    }

    const Journal& journal_;
    const SourceRecoverOptions& options_;
    const Deadline deadline_;
    std::unique_ptr<Channel> channel_;
};

// One attempt to settle: question, the destination's act, ours, and that both forget.
class Attempt {
  public:
    Attempt(Journal& journal, const SourceRecoverOptions& options, Deadline deadline)
        : journal_(journal), options_(options), peer_(journal, options, deadline) {}

    // A Problem: not settled yet; another attempt may.
    Result<Settled> run(OperatorWord word) {
        const SourceState own = source_state(journal_.entry().state).value_or(SourceState::none);
        auto asked =
            own == SourceState::preparing ? Result<DestinationState>(DestinationState::unreachable) : peer_.say("");
        if (!asked) asked_ = asked.error();
        const DestinationState there = asked.value_or(DestinationState::unreachable);
        const Settlement settlement = settle(own, there, word);
        Settled settled{
            {journal_.entry().migration_id, JournalRole::source, settlement.code, std::string(settlement.why), {}},
            settlement.source};
        if (settlement.code != ExitCode::done) return unsettled(there, settled);
        fault_point("recover:source:decided");
        TRY(have_destination_act(settlement.destination));
        fault_point("recover:source:answered");
        TRY(act(settlement.source, settled));
        fault_point("recover:source:acted");
        forget(own, settlement.forget, settled);
        return settled;
    }
    // Both sides have forgotten the migration.
    bool finished() const { return finished_; }

  private:
    Result<Settled> unsettled(DestinationState there, Settled& settled) {
        if (there == DestinationState::unreachable || there == DestinationState::busy)
            return fail(asked_ ? settled.report.what + ": " + asked_->what : settled.report.what,
                        asked_ && !asked_->hint.empty() ? asked_->hint : run_again, ExitCode::uncertain);
        // Asking again changes nothing: the operator has to say.
        settled.report.hint = there == DestinationState::lost
                                  ? "run: godwit recover --peer-is-lost=resume (or =discard)"
                                  : "look at both hosts, and end one of the two trees";
        return settled;
    }

    Result<void> have_destination_act(DestinationAction action) {
        if (action == DestinationAction::nothing) return {};
        const DestinationState wanted =
            action == DestinationAction::discard ? DestinationState::aborted : DestinationState::running;
        const DestinationState after = TRY(peer_.say(name_of(action)));
        if (after != wanted)
            return peer_failed(fmt::format("the destination was to {} the tree and answers that it is {}",
                                           name_of(action), name_of(after)),
                               run_again);
        return {};
    }

    Result<void> act(SourceAction action, Settled& settled) {
        const HoldCgroup hold = HoldCgroup::of(journal_.entry());
        if (action == SourceAction::resume) {
            TRY(hold.give_back(journal_.entry().processes));
            fault_point("recover:source:resumed");
            if (!journal_.same_boot())
                settled.report.what = "the tree is gone: the source's host was started anew while it was there";
            if (journal_.entry().state == name_of(SourceState::committed))
                TRY(journal_.write(name_of(SourceState::aborted)));
        }
        if (action == SourceAction::kill) {
            TRY(end_copy(hold, journal_));
            fault_point("recover:source:killed");
            if (journal_.entry().state != name_of(SourceState::done)) TRY(journal_.write(name_of(SourceState::done)));
        }
        return {};
    }

    // The tree's fate is settled; what is left is that both sides drop what they wrote. Failure here costs only a later
    // run.
    void forget(SourceState before, bool tell, Settled& settled) {
        if (before != SourceState::preparing) {
            const auto told =
                tell ? peer_.say("forget") : Result<DestinationState>(peer_failed("the destination does not answer"));
            if (!told || *told != DestinationState::none) {
                settled.report.hint = "the destination could not be told; when it is back, run: godwit recover";
                return;
            }
        }
        const auto removed = journal_.remove();
        if (!removed) settled.report.hint = removed.error().what;
        finished_ = true;
    }

    Journal& journal_;
    const SourceRecoverOptions& options_;
    Conversation peer_;
    std::optional<Problem> asked_;
    bool finished_ = false;
};

Recovered unreadable(const JournalName& name, const Problem& problem) {
    const bool living = problem.error == EWOULDBLOCK;
    return {name.migration_id, name.role, ExitCode::uncertain,
            living ? "the agent of this migration is still at work" : problem.what, problem.hint};
}

}  // namespace

Settled settle_source(Journal& journal, const SourceRecoverOptions& options) {
    const Deadline deadline = Deadline::in(options.limit);
    std::optional<Settled> settled;  // the tree's fate; that the destination forgets may still be wanting
    Problem why;
    OperatorWord word = OperatorWord::none;
    for (;;) {
        Attempt attempt(journal, options, deadline);
        auto result = attempt.run(word);
        if (!result) why = std::move(result.error());
        if (result) settled = std::move(*result);
        if (attempt.finished()) return std::move(*settled);
        const bool fate_known = settled && settled->report.code == ExitCode::done;
        const bool asking_is_idle = settled && settled->report.code != ExitCode::done;
        if (deadline.passed() || asking_is_idle) {
            // The operator's word counts only after the peer had its whole time to answer.
            if (fate_known || word == options.word) break;
            word = options.word;
            continue;
        }
        ::usleep(100'000);  // a peer that is being started gives no event: ask ten times a second
    }
    if (settled) return std::move(*settled);
    return {{journal.entry().migration_id, JournalRole::source, ExitCode::uncertain, why.what,
             why.hint.empty() ? run_again : why.hint},
            SourceAction::nothing};
}

Result<std::vector<Recovered>> recover_sources(const SourceRecoverOptions& options) {
    std::vector<Recovered> reports;
    const std::vector<JournalName> names = TRY(list_journals(options.state_dir));
    for (const JournalName& name : names) {
        if (name.role != JournalRole::source) continue;
        if (!options.migration_id.empty() && options.migration_id != name.migration_id) continue;
        auto journal = Journal::open(options.state_dir, name.migration_id, name.role);
        if (!journal && journal.error().error == ENOENT) continue;  // settled by its own agent since the list was made
        reports.push_back(journal ? settle_source(*journal, options).report : unreadable(name, journal.error()));
    }
    TRY(remove_stray_files(options.state_dir));
    const std::vector<std::string> strays = TRY(remove_stray_cgroups(options.state_dir));
    for (const std::string& stray : strays) spdlog::info("removed the empty cgroup {}", printable(stray));
    return reports;
}

}  // namespace godwit
