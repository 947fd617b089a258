// What a Remote knows; shared by attach.cc and remote.cc.
#pragma once

#include <bitset>

#include "common/remote/remote.h"
#include "common/remote/x86_64/image.h"

namespace godwit {

constexpr milliseconds executor_patience{30'000};

struct Remote::State {
    explicit State(Tracee& task) : host(&task) {}

    Tracee* host;
    pid_t pid = 0;
    UniqueFd pidfd;
    UniqueFd socket;
    ProcessMemory memory;
    RemotePtr boot;
    RemotePtr region;
    int socket_number = -1;
    bool resident = false;
    std::vector<pid_t> new_tasks;
    std::bitset<GW_MOST_UNDO> undo;

    RemotePtr host_slot() const { return region + GW_HOST_SLOT; }
    RemotePtr visitor_slot() const { return region + GW_VISITOR_SLOT; }

    // attach.cc
    Result<void> enter(const RemoteOptions& options);
    Result<void> install();
    Result<void> take_socket();
    Result<void> clean_earlier(const std::vector<RemotePtr>& regions);
    Result<void> leave();
    void give_up();
    Result<void> hand_back();
    void erase_boot();

    // remote.cc: where a piece of a batch runs
    using Runner = Result<uint64_t> (State::*)(Tracee&, const executor::Header&);
    Result<void> run(Tracee& task, Batch& batch, Runner runner);
    Result<void> run_pieces(Tracee& task, Batch& batch, RemotePtr data, Runner runner);
    Result<RemotePtr> grow(size_t size);
    Result<uint64_t> run_in_host(Tracee& task, const executor::Header& header);
    Result<uint64_t> run_in_visitor(Tracee& task, const executor::Header& header);
    Result<void> start_visit(Tracee& task);
    Result<void> end_visit(Tracee& task);
    Result<uint64_t> await_reply(Tracee& task);
};

// What `task`, stopped, goes on with if we die, given the signals that are pending now.
Result<executor::SavedTask> save_for_executor(const Tracee& task);

}  // namespace godwit
