// The end of the established TCP connections of a tree that has moved with --tcp-close.
#pragma once

#include <sys/types.h>

#include <vector>

#include "common/base/result.h"

namespace godwit {

// Makes every connected TCP socket of the frozen processes answer its peer with a reset, not an orderly end, when the
// processes are killed: SO_LINGER {1, 0}, set on duplicates (pidfd_getfd(2)).
//
// To be called after RUNNING and right before the kill, never before: it changes the sockets, and a tree that may still run
// on at the source must not get them so. Keeps nothing, so `recover` can call it as well as the migration itself.
// All processes and sockets are tried; the Problem is of the first that failed. A process that is gone is passed over.
// If we die inside: the sockets that were reached reset their peers, the others end in order.
// Threads: any.
Result<void> reset_connections(const std::vector<pid_t>& pids);

}  // namespace godwit
