#include "dest-agent/recover.h"

#include <fmt/format.h>
#include <unistd.h>

#include <ctime>

#include "common/base/fault.h"
#include "common/base/log.h"
#include "common/base/text.h"
#include "common/base/uuid.h"
#include "common/recovery/hold_cgroup.h"
#include "transport/channel.h"

namespace godwit {
namespace {

// What the journal and the kernel say together.
DestinationState observe(const Journal& journal) {
    const auto written = destination_state(journal.entry().state).value_or(DestinationState::none);
    if (written != DestinationState::owned && written != DestinationState::running) return written;
    if (!journal.same_boot()) return DestinationState::lost;
    // Noted as running, it was thawed; that the program has ended since is its own business.
    if (written == DestinationState::running) return written;
    const HoldCgroup hold = HoldCgroup::of(journal.entry());
    const auto held = hold.cgroup().exists() ? hold.cgroup().populated() : Result<bool>(false);
    const auto home = hold.home().exists() ? hold.home().populated() : Result<bool>(false);
    if (held && *held) {
        const auto frozen = hold.cgroup().freeze_asked();
        return frozen && !*frozen ? DestinationState::running : DestinationState::owned;
    }
    return home && *home ? DestinationState::running : DestinationState::lost;
}

// Each of these may be cut short at any line and be done again.
Result<void> discard(Journal& journal) {
    TRY(HoldCgroup::of(journal.entry()).destroy());
    fault_point("recover:dest:killed");
    TRY(journal.write(name_of(DestinationState::aborted)));
    fault_point("recover:dest:aborted");
    return {};
}

Result<void> thaw(Journal& journal) {
    const HoldCgroup hold = HoldCgroup::of(journal.entry());
    TRY(hold.thaw());
    fault_point("recover:dest:thawed");
    TRY(journal.write(name_of(DestinationState::running)));
    fault_point("recover:dest:running");
    return hold.move_home();
}

Result<void> forget(Journal& journal, DestinationState state) {
    const HoldCgroup hold = HoldCgroup::of(journal.entry());
    if (state == DestinationState::running)
        TRY(hold.move_home());
    else
        TRY(hold.destroy());
    fault_point("recover:dest:forgetting");
    return journal.remove();
}

// The journal of a migration, waiting for a living agent to let go of it: it does when it sees its own link end.
Result<Journal> open_patiently(const std::string& state_dir, const std::string& migration_id, Deadline deadline) {
    for (;;) {
        auto journal = Journal::open(state_dir, migration_id, JournalRole::destination);
        if (journal || journal.error().error != EWOULDBLOCK || deadline.passed()) return journal;
        ::usleep(20'000);  // a lock that is let go of gives no event without blocking in flock(2)
    }
}

// "Discarded" about a migration that nothing is known of: a tombstone, so that it cannot begin after the answer.
Result<DestinationState> never_begin(const std::string& state_dir, const image::RecoverQuery& query) {
    JournalEntry entry;
    entry.migration_id = query.migration_id();
    entry.role = JournalRole::destination;
    entry.state = name_of(DestinationState::aborted);
    entry.peer_state_id = query.state_id();
    TRY(Journal::create(state_dir, std::move(entry)));
    return DestinationState::aborted;
}

// Does what the source asks for if the table says so for what both sides are: no peer can have anything else done.
Result<DestinationState> act(Journal& journal, DestinationState state, SourceState source,
                             const std::string& decision) {
    const Settlement settlement = settle(source, state);
    if (decision == "forget") {
        if (!settlement.forget || settlement.destination != DestinationAction::nothing)
            return fail(fmt::format("a {} migration cannot be forgotten while the source is {}", name_of(state),
                                    name_of(source)));
        TRY(forget(journal, state));
        return DestinationState::none;
    }
    const auto action = destination_action(decision);
    if (!action) return fail("unknown decision " + printable(decision));
    if (*action == DestinationAction::discard && state == DestinationState::aborted) return state;
    if (*action == DestinationAction::thaw && state == DestinationState::running) return state;
    if (*action != settlement.destination)
        return fail(fmt::format("cannot {} a {} migration of which the source is {}", decision, name_of(state),
                                name_of(source)));
    if (*action == DestinationAction::discard) {
        TRY(discard(journal));
        return DestinationState::aborted;
    }
    TRY(thaw(journal));
    return DestinationState::running;
}

Result<DestinationState> answer(const image::RecoverQuery& query, const std::string& state_dir,
                                milliseconds busy_limit) {
    if (!is_uuid(query.migration_id()) || !is_uuid(query.state_id())) return fail("a question about no migration");
    const auto source = source_state(query.state());
    if (!source) return fail("the source's state is unknown: " + printable(query.state()));
    auto journal = open_patiently(state_dir, query.migration_id(), Deadline::in(busy_limit));
    if (!journal) {
        if (journal.error().error == EWOULDBLOCK) return DestinationState::busy;
        if (journal.error().error != ENOENT) return Failure(journal.error());
        if (query.decision() == "discard") return never_begin(state_dir, query);
        if (query.decision().empty() || query.decision() == "forget") return DestinationState::none;
        return fail("there is no such migration here");
    }
    if (journal->entry().peer_state_id != query.state_id())
        return fail("this migration was begun by another source", "run recover with the --state-dir of the migration");
    const DestinationState state = observe(*journal);
    if (query.decision().empty()) return state;
    return act(*journal, state, *source, query.decision());
}

DestinationRecovered settled_alone(Journal& journal, OperatorWord word) {
    DestinationState state = observe(journal);
    DestinationRecovered report{journal.entry().migration_id, state, true, {}, {}};
    const auto end = [&](Result<void> result, std::string_view done) {
        report.settled = result.has_value();
        report.what = result ? std::string(done) : result.error().what;
        report.hint = result ? std::string() : result.error().hint;
        return report;
    };
    const auto drop = [&](std::string_view done) { return end(forget(journal, state), done); };
    if (state == DestinationState::owned && word == OperatorWord::discard)
        return drop("the held tree was killed, as the operator decided");
    switch (settle_alone(state)) {
        case DestinationAction::discard:
            return drop("nothing was owned; what was built is discarded");
        case DestinationAction::thaw: {
            const auto thawed = thaw(journal);
            if (!thawed) return end(thawed, {});
            report.state = state = DestinationState::running;
            break;
        }
        case DestinationAction::nothing:
            break;
    }
    constexpr int64_t day = 86'400;
    const bool old = ::time(nullptr) - journal.entry().written_at > day;
    if (state == DestinationState::aborted && (old || !journal.same_boot()))
        return drop("the note that it was discarded is dropped");
    if (word != OperatorWord::none) return drop("the journal is dropped, as the operator decided");
    if (state == DestinationState::aborted)
        return end({}, "discarded; the note of it goes when the source has been told, or after a day");
    report.settled = false;
    report.hint = "run on the source's host: godwit recover";
    report.what = state == DestinationState::running
                      ? "the tree runs here; the source has not confirmed that its copy is gone"
                      : "the tree was owned and is gone; the source may still hold its copy";
    return report;
}

}  // namespace

Result<void> answer_recover(Channel& channel, const std::string& state_dir, Deadline deadline,
                            milliseconds busy_limit) {
    const std::string own_id = TRY(open_state_dir(state_dir));
    for (bool asked = false;; asked = true) {
        image::RecoverQuery query;
        const auto received = channel.expect(FrameType::recover_query, query, deadline);
        if (!received) return asked ? Result<void>() : received;  // a source that has its answers hangs up
        image::RecoverReply reply;
        reply.set_migration_id(query.migration_id());
        reply.set_state_id(own_id);
        const auto state = answer(query, state_dir, busy_limit);
        if (state) reply.set_state(std::string(name_of(*state)));
        if (!state) to_wire(std::span(&state.error(), 1), *reply.mutable_problems());
        TRY(channel.send(FrameType::recover_reply, reply));
    }
}

Result<std::vector<DestinationRecovered>> recover_destinations(const std::string& state_dir,
                                                               const std::string& migration_id, OperatorWord word) {
    std::vector<DestinationRecovered> reports;
    const std::vector<JournalName> names = TRY(list_journals(state_dir));
    for (const JournalName& name : names) {
        if (name.role != JournalRole::destination || (!migration_id.empty() && migration_id != name.migration_id))
            continue;
        auto journal = Journal::open(state_dir, name.migration_id, name.role);
        if (!journal && journal.error().error == ENOENT) continue;  // settled by its own agent since the list was made
        if (journal)
            reports.push_back(settled_alone(*journal, word));
        else if (journal.error().error == EWOULDBLOCK)
            reports.push_back({name.migration_id, DestinationState::busy, false,
                               "the agent of this migration is still at work", "wait for it, or end it"});
        else
            reports.push_back(
                {name.migration_id, DestinationState::unreachable, false, journal.error().what, journal.error().hint});
    }
    TRY(remove_stray_files(state_dir));
    const std::vector<std::string> strays = TRY(remove_stray_cgroups(state_dir));
    for (const std::string& stray : strays) spdlog::info("removed the empty cgroup {}", printable(stray));
    return reports;
}

}  // namespace godwit
