// Backend of DirtyTracker: soft-dirty bits (Documentation/admin-guide/mm/soft-dirty.rst; Linux 3.11, CONFIG_MEM_SOFT_DIRTY).
// The process is stopped around collect().
#pragma once

#include <functional>
#include <span>

#include "common/kernel/pagemap.h"
#include "source-agent/track/dirty_tracker.h"
#include "source-agent/track/ranges.h"

namespace godwit {

// What the entries of a mapping's pages from `start` on say. A new mapping has the dirty bit on every page; mremap and the kernel
// keep it so when it moves or merges.
//   skip_file   a private file mapping: pages that are still the file's are no content
//   shared      an entry that is not present is a page of the object that is not mapped, if there is one: it counts as written
//   is_zero     whether a page frame is the kernel's page of zeros. Asked of pages that are not exclusive to this process only.
//               A read after MADV_DONTNEED maps it, with a clear dirty bit: no content, or the old one would stay.
struct SoftDirtyPages {
    Ranges content;
    Ranges written;
};
using IsZeroFrame = std::function<bool(uint64_t)>;
void add_soft_dirty(uint64_t start, std::span<const uint64_t> entries, bool skip_file, bool shared, const IsZeroFrame& is_zero,
                    SoftDirtyPages& pages);

class SoftDirtyTracker final : public DirtyTracker {
  public:
    explicit SoftDirtyTracker(pid_t pid) : pid_(pid) {}
    // Whether this kernel keeps the bits.
    static Result<bool> available();

    Result<void> start(Remote& remote) override;
    Result<void> refresh(const std::vector<Vma>& now) override;
    void forget(uint64_t start, uint64_t end) override;
    Result<MemoryChanges> collect() override;
    bool needs_stop() const override { return true; }

  private:
    Result<SoftDirtyPages> read(const Vma& vma, const IsZeroFrame& is_zero) const;
    Result<void> check_alive() const;

    pid_t pid_ = 0;
    Pagemap pagemap_;
    std::vector<Vma> mappings_;
    Ranges content_;    // as of the last collect(), of private mappings
    Ranges forgotten_;  // of which all is told by the next collect(), shared mappings too
};

}  // namespace godwit
