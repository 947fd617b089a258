// What a process writes while its memory is being copied.
//
//   make_tracker → start (process stopped, executor resident) → [ round: refresh(maps) → collect ] ... → destructor
//
// Two backends:
//   wp_async    userfaultfd write protection that the kernel lifts by itself, read by PAGEMAP_SCAN (Linux 6.7).
//               refresh() and collect() work while the process runs.
//   soft_dirty  /proc/PID/clear_refs and bit 55 of pagemap (Linux 3.11, CONFIG_MEM_SOFT_DIRTY). The process must be
//               stopped around collect(): a write between its reading and its clearing would be lost.
//
// What is told holds for the mappings that refresh() was last given. The last round, of the stopped process, therefore begins with a
// refresh(); what a list misses that was read while the process ran is told then, wholly.
//
// Not seen, and the caller's: writes to a shared object that do not go through this process's page tables (another mapper,
// write(2) to a memfd), changes of the file under a clean private page, pinned pages that a device or io_uring writes.
//
// What happens if we die: the kernel closes the userfaultfd, which lifts protection and registration; soft-dirty bits do nothing. The
// process runs on. What happens if it dies or executes another program: refresh() and collect() return a
// Problem with error ESRCH; a program that was executed needs a new tracker.
//
// Threads: start() on the thread that seized the tasks, all else on any one thread at a time.
#pragma once

#include <sys/types.h>

#include <memory>
#include <vector>

#include "common/base/result.h"
#include "common/kernel/proc.h"
#include "common/remote/remote.h"
#include "source-agent/collect/collect.h"

namespace godwit {

// Ascending, page-aligned, merged, in bytes.
struct MemoryChanges {
    // Pages written since the last collect(). A mapping that is new to the tracker, as all are to the first collect(), is told
    // wholly: all that is populated, of a shared object on tmpfs all of its content that is mapped. A page of a shared mapping
    // that the process touches for the first time counts as written even if it only read it; one that left the page tables
    // after it was written is told. soft_dirty cannot tell which did: what is not in the page tables counts as written each time.
    std::vector<ByteRange> written;
    // Pages which had content and have none now (MADV_DONTNEED, MADV_REMOVE, unmapped and mapped anew): they are what a fresh
    // mapping has there, zeros or the file's page. Of shared mappings only those on tmpfs (a MADV_DONTNEED there loses
    // nothing), and those by wp_async alone.
    std::vector<ByteRange> dropped;
};

class DirtyTracker {
  public:
    DirtyTracker() = default;
    DirtyTracker(const DirtyTracker&) = delete;
    DirtyTracker& operator=(const DirtyTracker&) = delete;
    // Tracking ends; the process is as if it had never been.
    virtual ~DirtyTracker() = default;

    // The process is stopped and `remote` resident in it; takes a fraction of a millisecond, whatever the memory. On failure
    // nothing stays in the process.
    virtual Result<void> start(Remote& remote) = 0;
    // The mappings as they are now (read_maps(); without the executor's if one is resident).
    virtual Result<void> refresh(const std::vector<Vma>& now) = 0;
    // Whatever was told of [start, end) is lost at the caller's: the next collect() tells all content there.
    virtual void forget(uint64_t start, uint64_t end) = 0;
    // Reads and resets. After a Problem the tracker is of no more use: what it had reset is lost. Its cost follows the populated pages, not the size of the mappings.
    virtual Result<MemoryChanges> collect() = 0;
    // True if the process must be stopped around collect().
    virtual bool needs_stop() const = 0;
};

enum class TrackerBackend { automatic, wp_async, soft_dirty };

// Picks wp_async if this kernel has it, else soft_dirty; a Problem names what the kernel lacks.
// With wp_async start() refuses by name a process that uses userfaultfd itself, and start() and refresh() one that has hardly any
// mappings left (vm.max_map_count): what is mapped beside a tracked mapping does not merge with it before the next
// collect(), and if it is written before that, never.
Result<std::unique_ptr<DirtyTracker>> make_tracker(pid_t pid, TrackerBackend backend = TrackerBackend::automatic);

// What keeps a process from being tracked, as far as it can be seen while it runs. Touches nothing.
std::vector<Problem> check_tracking(pid_t pid, TrackerBackend backend);

}  // namespace godwit
