// `godwit recover` on the source's host, and what commit() does when it lost the link after GO.
//
// For each source journal that no living agent holds: PREPARING and ABORTED are settled at once, COMMITTED and DONE
// by asking the destination and acting in the order of common/recovery/table.h. May be run any number of times, and
// be killed at any line: every step leaves a state from which the next run goes on.
#pragma once

#include <string>
#include <vector>

#include "common/base/result.h"
#include "common/recovery/journal.h"
#include "common/recovery/table.h"
#include "source-agent/dial.h"

namespace godwit {

struct SourceRecoverOptions {
    std::string state_dir = default_state_dir;
    std::string migration_id;                // empty: all
    OperatorWord word = OperatorWord::none;  // --peer-is-lost
    PeerAddress peer;                        // --to and security options; empty fields: as in the journal
    Dial dial = dial_peer;
    milliseconds limit{10'000};  // per migration, to reach the destination
};

// What became of one migration.
struct Recovered {
    std::string migration_id;
    JournalRole role = JournalRole::source;
    ExitCode code = ExitCode::done;  // done, or uncertain
    std::string what;                // one line
    std::string hint;
};

// One entry per journal looked at; a migration that a living agent holds is reported with exit code 5.
Result<std::vector<Recovered>> recover_sources(const SourceRecoverOptions& options);

// Settles one migration whose journal is ours. On return with code done the journal is gone, or, when the destination
// could not be told to forget, kept as ABORTED or DONE for a later run. `action` says what was done to the tree.
struct Settled {
    Recovered report;
    SourceAction action = SourceAction::nothing;
};
Settled settle_source(Journal& journal, const SourceRecoverOptions& options);

}  // namespace godwit
