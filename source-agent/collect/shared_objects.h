// The shared memory of a tree as objects: each is found once, however many mappings and descriptors of however many
// processes lead to it, and its content is told and read by offset, through a descriptor of ours.
//
//   look:  begin_look() → for each process: find(), then changed() → end_look()
//   round: tell() with the first layout → jobs() → sent()
//
// What was written is what the trackers of all mapping processes say, and what they cannot see:
//   - content that comes or goes with no page table (write(2), fallocate(2), ftruncate(2), MADV_REMOVE): the object
//   itself is asked
//     (SEEK_DATA, some 8 ms for each GiB), whenever its ctime moved;
//   - pages that MADV_REMOVE took and a read brought back, as zeros: where the ctime moved and nobody holds a descriptor
//     (ObjectPages::zeros_among());
//   - bytes that write(2) changed in pages that are there already: where the tree holds a descriptor of it, whenever
//   the ctime
//     moved all content is compared with what was sent (object_pages.h; some 0.7 s for each GiB).
// The kernel stamps times by ticks: a stamp from the last moments before a look counts as moved. It moves too when a
// page is written through a mapping, so that a memfd that is mapped, written and held open is compared in every round;
// one whose descriptor was closed, and anonymous memory, never.
//
// The descriptors are open for reading only and change nothing of the program's: seals, positions and access times
// stay. What happens if we die: they are closed. Threads: one at a time; the pages are read by others (PageSource).
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "common/base/unique_fd.h"
#include "common/image/process.pb.h"
#include "source-agent/collect/object_pages.h"
#include "source-agent/page_streams.h"
#include "source-agent/track/dirty_tracker.h"
#include "source-agent/track/ranges.h"

namespace godwit {

// SharedObject.id of the file that stat(2) shows; the same in every process and round.
uint64_t shared_object_id(uint64_t device, uint64_t inode);

// st_dev of the file system of the kernel's own on which anonymous shared memory, memfds and SysV segments live.
Result<uint64_t> shared_memory_device();

// The descriptors of a process that are memfds or one of `files` (on tmpfs, by path): number and id. What is closed
// meanwhile is passed over.
struct HeldObject {
    int fd = -1;
    uint64_t id = 0;
};
Result<std::vector<HeldObject>> held_objects(pid_t pid, const std::map<std::string, uint64_t>& files = {});

class SharedObjects {
  public:
    SharedObjects();
    ~SharedObjects();
    SharedObjects(const SharedObjects&) = delete;
    SharedObjects& operator=(const SharedObjects&) = delete;

    void begin_look();
    // All objects that the process maps or holds. Mappings of one that is gone when it is looked at leave `layout`,
    // unless that is the last: then it is a Problem.
    Result<void> find(pid_t pid, image::Layout& layout);
    // What its tracker told. Without a tracker there is one look, to which everything is new. What `before` mapped and
    // `layout` does not may have been written before it went.
    void changed(const image::Layout& before, const image::Layout& layout, const MemoryChanges& changes);
    Result<void> end_look();

    uint64_t pending_bytes() const;  // found and not sent yet

    // Adds all objects, with what was dropped since the last time, to the layout; returns the bytes dropped.
    uint64_t tell(image::Layout& layout);
    // Pages of what was told.
    std::vector<PageJob> jobs(bool may_vanish) const;
    // They were sent.
    void sent();

    // The files on tmpfs among them: paths and ids.
    const std::map<std::string, uint64_t>& files() const { return files_; }

  private:
    struct Object;
    void touch(const image::MappingRange& mapping, Ranges addresses);
    Result<Object*> add(UniqueFd fd, uint64_t id);
    Result<void> find_mapped(pid_t pid, const image::MappingRange& mapping);
    Result<void> find_held(pid_t pid);

    std::map<uint64_t, std::unique_ptr<Object>> objects_;
    std::map<std::string, uint64_t> files_;  // paths and ids of those on tmpfs
};

}  // namespace godwit
