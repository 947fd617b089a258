// Backend of DirtyTracker: userfaultfd WP_ASYNC and PAGEMAP_SCAN (Linux 6.7).
//
// A mapping's state is the kernel's: a scan of one that is not registered fails, whatever made it so (new, moved by mremap,
// grown as a separate neighbour, unmapped and mapped anew at the same place), and then it is registered and told wholly.
#pragma once

#include <optional>

#include "common/kernel/pagemap.h"
#include "source-agent/track/dirty_tracker.h"
#include "source-agent/track/ranges.h"
#include "source-agent/track/userfaultfd.h"

namespace godwit {

class WpAsyncTracker final : public DirtyTracker {
  public:
    explicit WpAsyncTracker(pid_t pid) : pid_(pid) {}
    Result<void> start(Remote& remote) override;
    Result<void> refresh(const std::vector<Vma>& now) override;
    void forget(uint64_t start, uint64_t end) override { content_ = subtract(content_, {{start, end}}); }
    Result<MemoryChanges> collect() override;
    bool needs_stop() const override { return false; }

  private:
    // One mapping, one scan: what has content, and what of it was written.
    struct Scan {
        Ranges content;
        Ranges written;
        Ranges marked;  // of a shared mapping: in the page tables, or with the mark that a protected page leaves there
    };
    Result<Scan> scan(const Vma& vma, const Ranges& before) const;
    // Parts of a mapping; false if it is not registered.
    Result<bool> scan_part(const Vma& vma, ByteRange part, Scan& out) const;
    Result<bool> scan_full_blocks(ByteRange blocks, Scan& out) const;
    Result<Scan> scan_new(const Vma& vma, const Ranges& before) const;
    Result<Scan> scan_populated(const Vma& vma) const;
    Result<void> add_unmapped(const Vma& vma, const Ranges& before, Scan& out) const;
    Result<void> protect(const Ranges& ranges) const;
    Result<Ranges> without_page_table(ByteRange blocks) const;
    Result<Ranges> content_of(const PageRegion& region, bool shared) const;
    // The object behind a shared mapping; no descriptor if the mapping is not (or no longer) exactly this.
    Result<UniqueFd> open_object(const Vma& vma) const;
    Result<void> check_alive() const;

    pid_t pid_ = 0;
    std::optional<Userfaultfd> userfaultfd_;
    Pagemap pagemap_;
    std::vector<Vma> mappings_;
    Ranges content_;  // as of the last collect()
    bool first_ = true;
};

}  // namespace godwit
