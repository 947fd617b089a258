// A userfaultfd of another process in WP_ASYNC mode (userfaultfd(2), Linux 6.7), held by us alone.
//
// The kernel takes requests on any mapping of that process from whoever holds the descriptor. Closing it, by the destructor or because
// we died, lifts every protection and registration.
#pragma once

#include <cstdint>
#include <optional>

#include "common/base/result.h"
#include "common/base/unique_fd.h"
#include "common/remote/remote.h"

namespace godwit {

class Userfaultfd {
  public:
    // Made in the process (stopped, executor resident), fetched, closed there: by the system call, or where that is not
    // permitted, by a descriptor of /dev/userfaultfd that we open and send.
    static Result<Userfaultfd> make(Remote& remote);
    static Result<Userfaultfd> make_by_call(Remote& remote);
    static Result<Userfaultfd> make_by_device(Remote& remote);
    // What this kernel lacks; nothing when all is there.
    static std::optional<Problem> missing();

    enum class Registered {
        yes,
        vanished,    // no such mapping any more, or of a kind that cannot be registered (MAP_DROPPABLE)
        never_write  // a shared mapping of a file opened for reading
    };
    // Registers all mappings in the range; those that are already stay as they are. A mapping under a userfaultfd of the process's own
    // is a Problem.
    Result<Registered> add(uint64_t start, uint64_t end) const;
    // Undoes add() and every protection in the range.
    Result<void> remove(uint64_t start, uint64_t end) const;
    // Protects pages that are populated; for those that PAGEMAP_SCAN takes for protected but are not.
    Result<void> protect(uint64_t start, uint64_t end) const;

  private:
    Userfaultfd(UniqueFd fd, pid_t pid) : fd_(std::move(fd)), pid_(pid) {}
    static Result<Userfaultfd> fetch(Remote& remote, int number);

    UniqueFd fd_;
    pid_t pid_ = 0;
};

}  // namespace godwit
