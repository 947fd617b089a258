// Two agents that do nothing but the commit, as processes that a test kills, and `recover` of either host.
//
// The tree is one process that counts in shared memory: the source's copy and the destination's each have a counter,
// and each watches the other's, so that two copies running at any time are seen by them and not only by who happens to
// look.
#pragma once

#include <sys/types.h>

#include <atomic>
#include <cstdint>
#include <string>

namespace godwit::test {

struct Shared {
    std::atomic<uint64_t> source_count;
    std::atomic<uint64_t> destination_count;
    std::atomic<uint64_t> violations;  // a copy ran after, or while, the other did
    std::atomic<int> destination_pid;
};

// What the processes of one case are told. Handed over in the environment, because an agent is a fresh program:
// fault points read their orders once per process.
struct AgentOrders {
    std::string part;       // "source", "destination", "recover-source", "recover-destination"
    std::string state_dir;  // this host's
    std::string peer_dir;   // the other host's
    std::string migration_id;
    int link = -1;          // one end of a socket pair
    int shared = -1;        // memfd of Shared
    pid_t tree = 0;         // source: the tree
    bool reachable = true;  // whether a new connection reaches the destination
    std::string word;       // recover: --peer-is-lost
    int limit_ms = 20'000;  // recover-source: how long it asks

    std::string fault;  // GODWIT_FAULT
    std::string trace;  // GODWIT_FAULT_TRACE
};

// Starts the agent; the caller waits for it. Exit codes as those of godwit.
pid_t start_agent(const AgentOrders& orders);
// In the started program: plays the part. Does not return.
[[noreturn]] void play_part();

// The bodies of the two copies; do not return.
[[noreturn]] void count_as_source(Shared& shared);
[[noreturn]] void count_as_destination(Shared& shared, int gate);

Shared* map_shared(int fd);

}  // namespace godwit::test
