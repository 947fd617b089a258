// Puts content into pages that a skeleton does not have yet, by UFFDIO_COPY of userfaultfd(2): the kernel makes each page with
// the content, where process_vm_writev(2) makes it by a fault, clears it and then writes it (2.5-4.0 against 1.7-2.1 GB/s).
//
// Not for memory that gets transparent huge pages, which are faster still by plain writes. While a filler lives, no fault makes a
// page in its mappings, and what the kernel would read or write there in the skeleton's name fails (UFFD_USER_MODE_ONLY: nothing
// ever waits for us). If we die, its end is that of the skeleton.
// Threads: the tracer thread; fill() any.
#pragma once

#include "common/base/result.h"
#include "common/base/unique_fd.h"
#include "common/image/process.pb.h"
#include "common/remote/remote.h"

namespace godwit {

class PageFiller {
  public:
    // Fills nothing.
    PageFiller() = default;
    // For a skeleton; one that fills nothing where the kernel has no userfaultfd or makes all memory of huge pages. A Problem only
    // when the skeleton is gone.
    static Result<PageFiller> make(Remote& remote, int pidfd);

    // Takes a part of a mapping that was just made, if it is private anonymous memory without huge pages; else, or where that fails, its
    // pages are made by plain writes. What is unmapped or moved later leaves by itself.
    void add(const image::MappingRange& of, uint64_t start, uint64_t end) const;

    struct Filled {
        size_t bytes = 0;
        int error = 0;  // why no more: EEXIST a page is there already, ENOENT not in a mapping of ours, ENOMEM, ESRCH
    };
    // Copies whole pages of one mapping up to the first that is there already.
    Filled fill(uint64_t address, const std::byte* content, size_t size) const;

  private:
    UniqueFd fd_;
};

}  // namespace godwit
