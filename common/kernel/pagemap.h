// The page tables of another process, by the PAGEMAP_SCAN ioctl of /proc/PID/pagemap (Linux 6.7) or, before it, by reading
// the entries themselves (Documentation/admin-guide/mm/pagemap.rst).
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <vector>

#include "common/base/result.h"
#include "common/base/unique_fd.h"

namespace godwit {

// Categories of a page, as PAGEMAP_SCAN numbers them.
inline constexpr uint64_t page_is_file = 1u << 2;  // belongs to a file or to shared memory
inline constexpr uint64_t page_is_present = 1u << 3;
inline constexpr uint64_t page_is_swapped = 1u << 4;
inline constexpr uint64_t page_is_pfnzero = 1u << 5;  // the kernel's page of zeros
inline constexpr uint64_t page_is_guard = 1u << 8;    // Linux 6.15: MADV_GUARD_INSTALL

struct PageRegion {
    uint64_t start = 0;  // bytes
    uint64_t end = 0;
    uint64_t categories = 0;
};

class Pagemap {
  public:
    static Result<Pagemap> open(pid_t pid);
    // Present or swapped pages in [start, end), ascending, with the categories above except guard. Reads only: page tables that
    // are not there stay so, whatever the size of the range.
    Result<std::vector<PageRegion>> populated(uint64_t start, uint64_t end) const;
    // Whether the kernel has PAGEMAP_SCAN. Without it populated() costs 8 bytes read for each page of the range, there or not, and
    // takes the kernel's page of zeros for content.
    Result<bool> scans() const;
    // Whether some page of the range is a guard page; false on kernels that do not know them.
    Result<bool> has_guards(uint64_t start, uint64_t end) const;

  private:
    Result<std::vector<PageRegion>> read_entries(uint64_t start, uint64_t end) const;
    UniqueFd fd_;
    pid_t pid_ = 0;
};

}  // namespace godwit
