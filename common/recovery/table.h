// What `recover` does: one pure function from what both sides' journals (and kernels) say to what each side does.
//
// Two rules order every settlement. No copy is let run before the other is known to be unable to: a destination
// that gives up answers so before the source resumes. No copy is destroyed before the other is known to be held
// by its owner: a destination that owns the tree answers that it runs before the source kills its frozen copy.
// docs/recovery.md prints the table. tests/unit/recovery_table_test.cc goes through every row, and explores every
// crash of either agent and of the link around each step of the commit.
#pragma once

#include <optional>
#include <string_view>

#include "common/base/result.h"

namespace godwit {

enum class SourceState {
    none,       // no journal
    preparing,  // GO was never sent: the tree runs, or runs as soon as nobody traces it
    committed,  // GO may have been sent: the tree is frozen in the hold cgroup
    done,       // the destination runs the tree; the frozen copy is being killed or is dead
    aborted,    // the source runs the tree; the destination may still have to forget its tombstone
};

enum class DestinationState {
    none,         // no journal, in the state directory that the migration began with
    preparing,    // skeletons under PTRACE_O_EXITKILL; READY was not sent
    ready,        // READY was sent, GO may have come, OWNED was not written
    owned,        // the tree is the destination's, held frozen, never thawed
    running,      // the tree is the destination's and was thawed
    aborted,      // tombstone: discarded, must never accept a GO
    lost,         // was owned or running, and the tree is gone: it ended, was killed, or its host was started anew
    busy,         // a living agent holds the journal: ask again
    unreachable,  // no answer, or an answer from another state directory
};

// The operator's --peer-is-lost; counts only where the destination is unreachable or lost.
enum class OperatorWord { none, resume, discard };

enum class SourceAction { nothing, resume, kill };
enum class DestinationAction { nothing, discard, thaw };

struct Settlement {
    // Acts first, and its answer is known before the source acts.
    DestinationAction destination = DestinationAction::nothing;
    SourceAction source = SourceAction::nothing;
    // Afterwards the destination drops its journal or tombstone, then the source its own. If that cannot be said to
    // the destination now, the source keeps its journal and the exit code stays as it is.
    bool forget = false;
    ExitCode code = ExitCode::done;
    std::string_view why;  // one line for the operator

    bool operator==(const Settlement&) const = default;
};

Settlement settle(SourceState source, DestinationState destination, OperatorWord word = OperatorWord::none);

// What the destination does by itself, nobody having asked: after its agent died, or when `recover` is run there.
// Safe in every state of the source, because a source only acts on an answer which is given after this.
DestinationAction settle_alone(DestinationState destination);

std::string_view name_of(SourceState state);
std::string_view name_of(DestinationState state);
std::string_view name_of(DestinationAction action);
std::optional<SourceState> source_state(std::string_view name);
std::optional<DestinationState> destination_state(std::string_view name);
std::optional<DestinationAction> destination_action(std::string_view name);
std::optional<OperatorWord> operator_word(std::string_view name);  // "resume", "discard"; "" is none

}  // namespace godwit
