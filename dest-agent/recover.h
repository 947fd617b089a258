// What the destination does after a failure: answers a source's questions, and tidies up by itself where it may.
//
// A destination never asks: the source has no server. So `godwit recover` run there does what is safe whatever the
// source knows (settle_alone in common/recovery/table.h), and the source's `recover` finds that out by asking.
#pragma once

#include <string>
#include <vector>

#include "common/base/deadline.h"
#include "common/base/result.h"
#include "common/recovery/journal.h"
#include "common/recovery/table.h"

namespace godwit {

class Channel;

// Serves one ROLE_RECOVER connection after its HELLO: answers RECOVER_QUERY frames until the peer closes or `deadline`.
// A query counts only from the state directory that began the migration; an unknown migration is answered "none".
// While a living agent holds the journal, waits up to `busy_limit` for it to let go, then answers "busy".
// Returns when the peer is content; a Problem is for the log.
Result<void> answer_recover(Channel& channel, const std::string& state_dir, Deadline deadline,
                            milliseconds busy_limit = milliseconds{5'000});

struct DestinationRecovered {
    std::string migration_id;
    DestinationState state = DestinationState::none;  // after what was done
    bool settled = false;                             // false: the source's recover has to be run; see hint
    std::string what;                                 // one line
    std::string hint;
};

// `godwit recover` on the destination's host: settle_alone for every destination journal that no living agent holds
// (or only `migration_id`), then removes stray cgroups. `discard`: operator's --peer-is-lost=discard kills a tree that
// is owned but was never thawed; `resume` keeps it and drops the journal.
Result<std::vector<DestinationRecovered>> recover_destinations(const std::string& state_dir,
                                                               const std::string& migration_id = {},
                                                               OperatorWord word = OperatorWord::none);

}  // namespace godwit
