// What the agent and its spawner say to each other over a SOCK_SEQPACKET pair.
//
//   agent → helper   Clocks                               once
//   helper → agent   int32 errno, 0: the time namespace is there
//   agent → helper   int32 pid, with the end of a gate    per process
//   helper → agent   int32 errno, 0: the process waits at its gate
//
// The gate is a SOCK_STREAM pair: the new process reads one byte from its end and executes the stub, which closes it. Should that
// fail, it writes an int32 errno. End-of-file at its end, the agent being dead, makes it exit.
#pragma once

#include <cstdint>

namespace godwit::spawner {

constexpr int socket_number = 3;

// Offsets against the clocks of the host (time_namespaces(7)).
struct Clocks {
    int64_t monotonic_ns = 0;
    int64_t boottime_ns = 0;
};

}  // namespace godwit::spawner
