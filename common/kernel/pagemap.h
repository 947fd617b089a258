// The page tables of another process, by the PAGEMAP_SCAN ioctl of /proc/PID/pagemap (Linux 6.7) or, before it, by reading
// the entries themselves (Documentation/admin-guide/mm/pagemap.rst).
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <vector>

#include "common/base/result.h"
#include "common/base/unique_fd.h"

namespace godwit {

// Categories of a page, as PAGEMAP_SCAN numbers them.
inline constexpr uint64_t page_is_written = 1u << 1;  // and not protected by a userfaultfd since
inline constexpr uint64_t page_is_file = 1u << 2;  // belongs to a file or to shared memory
inline constexpr uint64_t page_is_present = 1u << 3;
inline constexpr uint64_t page_is_swapped = 1u << 4;
inline constexpr uint64_t page_is_pfnzero = 1u << 5;  // the kernel's page of zeros
inline constexpr uint64_t page_is_guard = 1u << 8;    // Linux 6.15: MADV_GUARD_INSTALL

// Bits of an entry of /proc/PID/pagemap.
inline constexpr uint64_t entry_is_present = 1ull << 63;
inline constexpr uint64_t entry_is_swapped = 1ull << 62;
inline constexpr uint64_t entry_is_file = 1ull << 61;        // Linux 3.5
inline constexpr uint64_t entry_is_exclusive = 1ull << 56;   // Linux 4.2: mapped here only
inline constexpr uint64_t entry_is_soft_dirty = 1ull << 55;  // Linux 3.11, with CONFIG_MEM_SOFT_DIRTY
inline constexpr uint64_t entry_frame = (1ull << 55) - 1;    // of a present page; 0 without CAP_SYS_ADMIN

struct PageRegion {
    uint64_t start = 0;  // bytes
    uint64_t end = 0;
    uint64_t categories = 0;
};

class Pagemap {
  public:
    static Result<Pagemap> open(pid_t pid);
    // Present or swapped pages in [start, end), ascending, with the categories above except guard. Reads only: page tables that
    // are not there stay so, whatever the size of the range. To ask for page_is_file costs several times as much as not to.
    Result<std::vector<PageRegion>> populated(uint64_t start, uint64_t end, bool tell_file = true) const;
    // Whether the kernel has PAGEMAP_SCAN. Without it populated() costs 8 bytes read for each page of the range, there or not, and
    // takes the kernel's page of zeros for content.
    Result<bool> scans() const;
    // Whether some page of the range is a guard page; false on kernels that do not know them.
    Result<bool> has_guards(uint64_t start, uint64_t end) const;

    // Linux 6.7, for a range within one mapping: the pages that populated() tells of, with page_is_written as well, and in the
    // same step write-protects those that are written. Nothing when the range is not registered with a userfaultfd in
    // WP_ASYNC mode, or is so in part; then part of the answer is lost, and all of the range counts as written.
    // With `skip_file` pages that belong to a file are left out and alone, else page_is_file is not told.
    Result<std::optional<std::vector<PageRegion>>> take_written(uint64_t start, uint64_t end, bool skip_file) const;
    // The same several times as fast, for ranges in which nearly all is populated: pages that are written or missing (no category says
    // which). Missing ones are protected too: the target gets markers for them. A stretch that has no page table at all
    // is passed over in silence.
    Result<std::optional<std::vector<PageRegion>>> take_written_or_missing(uint64_t start, uint64_t end) const;

    // The entries themselves, in pieces, ascending; `take` gets the address of the first.
    Result<void> entries(uint64_t start, uint64_t end,
                         const std::function<Result<void>(uint64_t, std::span<const uint64_t>)>& take) const;

    // One of them; 0 where nothing is mapped.
    Result<uint64_t> entry(uint64_t address) const;

    // False once the memory that was opened is nobody's: the process exited or executed another program.
    bool alive() const;

  private:
    struct Selection {
        uint64_t inverted, all_of, any_of, told;
    };
    Result<std::optional<std::vector<PageRegion>>> take(uint64_t start, uint64_t end, const Selection& selection) const;
    Result<std::vector<PageRegion>> read_entries(uint64_t start, uint64_t end) const;
    UniqueFd fd_;
    pid_t pid_ = 0;
};

}  // namespace godwit
