// Makes the VMAs of a layout in an empty skeleton, by batches.
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#include <algorithm>
#include <map>

#include "common/base/text.h"
#include "common/kernel/abi.h"
#include "dest-agent/named_calls.h"
#include "dest-agent/skeleton_state.h"

namespace godwit {
namespace {

using image::MappingRange;

// Names are paths of at most 4096 bytes each: what a batch carries without a mapping of its own, which could take a wanted place.
constexpr int files_at_once = 32;

int extra_flags(const MappingRange& range) {
    return MAP_FIXED_NOREPLACE | (range.no_reserve() ? MAP_NORESERVE : 0) | (range.grows_down() ? MAP_GROWSDOWN : 0);
}

std::string to_map(const MappingRange& range, std::string_view what) {
    return fmt::format("map {} ({} bytes, {})", range_name(range), range.end() - range.start(), what);
}

struct SharedObject {
    uint64_t size = 0;
    bool no_reserve = false;
    std::vector<const MappingRange*> mappings;
};

struct Advice {
    bool (MappingRange::*wanted)() const;
    int advice;
    const char* name;
};
constexpr Advice advices[] = {
    {&MappingRange::huge_page, MADV_HUGEPAGE, "MADV_HUGEPAGE"},      {&MappingRange::no_huge_page, MADV_NOHUGEPAGE, "MADV_NOHUGEPAGE"},
    {&MappingRange::dont_fork, MADV_DONTFORK, "MADV_DONTFORK"},      {&MappingRange::wipe_on_fork, MADV_WIPEONFORK, "MADV_WIPEONFORK"},
    {&MappingRange::dont_dump, MADV_DONTDUMP, "MADV_DONTDUMP"},      {&MappingRange::mergeable, MADV_MERGEABLE, "MADV_MERGEABLE"},
    {&MappingRange::sequential, MADV_SEQUENTIAL, "MADV_SEQUENTIAL"}, {&MappingRange::random, MADV_RANDOM, "MADV_RANDOM"},
};

}  // namespace

// VM_ACCOUNT is set when a mapping becomes writable, and neighbours merge only when they agree in it: so what was writable once
// (RELRO) is so here, what never was is not. Content goes into the latter by /proc/PID/mem.
uint32_t first_protection(const MappingRange& range) {
    const bool private_memory = range.kind() == image::MAPPING_ANONYMOUS || range.kind() == image::MAPPING_FILE_PRIVATE;
    const bool writable = (range.protection() & PROT_WRITE) != 0;
    if (range.kind() == image::MAPPING_ANONYMOUS_SHARED || (private_memory && range.accounted() && !writable))
        return PROT_READ | PROT_WRITE;
    return range.protection();
}

Result<void> Skeleton::State::make_mappings() {
    TRY(make_anonymous());
    TRY(make_of_files());
    TRY(make_shared_objects());
    return advise();
}

Result<void> Skeleton::State::make_anonymous() {
    NamedCalls calls;
    for (const MappingRange& range : layout.mappings())
        if (range.kind() == image::MAPPING_ANONYMOUS)
            calls.call(to_map(range, "anonymous"), SYS_mmap, range.start(), range.end() - range.start(), first_protection(range),
                       MAP_PRIVATE | MAP_ANONYMOUS | extra_flags(range), -1, 0);
    return calls.run(*remote);
}

// Files are opened in the skeleton, so that the kernel's checks are those of an ordinary mapping, some at a time.
Result<void> Skeleton::State::make_of_files() {
    std::vector<std::vector<const MappingRange*>> by_file(static_cast<size_t>(layout.files_size()));
    for (const MappingRange& range : layout.mappings())
        if (range.file() != 0) by_file[range.file() - 1].push_back(&range);

    for (int begin = 0; begin < layout.files_size(); begin += files_at_once) {
        const int end = std::min(layout.files_size(), begin + files_at_once);
        NamedCalls calls;
        for (int i = begin; i < end; ++i) {
            const image::MappedFile& file = layout.files(i);
            const std::string path = printable(file.path());
            if (file.path().size() >= 4096) return peer_failed(fmt::format("mapped file {} has too long a name", path));
            // Without O_NONBLOCK a FIFO that took the place of the file would hang it.
            const int flags = (file.writable() ? O_RDWR : O_RDONLY) | O_CLOEXEC | O_NONBLOCK;
            const auto fd = calls.call("open the mapped file " + path, SYS_openat, AT_FDCWD, calls.batch().text(file.path()), flags);
            for (const MappingRange* range : by_file[static_cast<size_t>(i)]) {
                const int sharing = range->kind() == image::MAPPING_FILE_SHARED ? MAP_SHARED : MAP_PRIVATE;
                calls.call(to_map(*range, path), SYS_mmap, range->start(), range->end() - range->start(), first_protection(*range),
                           sharing | extra_flags(*range), calls.batch().result(fd), range->offset());
            }
            calls.try_call(SYS_close, calls.batch().result(fd));
        }
        TRY(calls.run(*remote));
    }
    return {};
}

// Each object is made whole at a free place; mremap(2) of old size 0 makes another mapping of the same pages.
Result<void> Skeleton::State::make_shared_objects() {
    std::map<uint64_t, SharedObject> objects;
    for (const MappingRange& range : layout.mappings()) {
        if (range.kind() != image::MAPPING_ANONYMOUS_SHARED) continue;
        SharedObject& object = objects[range.shared_object()];
        object.size = std::max(object.size, range.offset() + (range.end() - range.start()));
        object.no_reserve |= range.no_reserve();
        object.mappings.push_back(&range);
    }
    std::vector<Span> taken = spans_of(layout);
    taken.push_back({remote->start().address(), remote->start().address() + remote->size()});
    NamedCalls calls;
    for (const auto& [id, object] : objects) {
        const uint64_t whole = TRY(free_range(taken, object.size));
        calls.call(fmt::format("make shared object {} of {} bytes", id, object.size), SYS_mmap, whole, object.size, PROT_READ | PROT_WRITE,
                   MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE | (object.no_reserve ? MAP_NORESERVE : 0), -1, 0);
        for (const MappingRange* range : object.mappings)
            calls.call(to_map(*range, "shared"), SYS_mremap, whole + range->offset(), 0, range->end() - range->start(),
                       MREMAP_MAYMOVE | MREMAP_FIXED, range->start());
        calls.call("unmap a shared object", SYS_munmap, whole, object.size);
    }
    return calls.run(*remote);
}

// Before any page comes: MADV_HUGEPAGE decides how memory is made.
Result<void> Skeleton::State::advise() {
    NamedCalls calls;
    for (const MappingRange& range : layout.mappings()) {
        const uint64_t size = range.end() - range.start();
        for (const Advice& advice : advices)
            if ((range.*advice.wanted)())
                calls.call(fmt::format("advise {} for {}", advice.name, range_name(range)), SYS_madvise, range.start(), size, advice.advice);
        // A name is for people; kernels without CONFIG_ANON_VMA_NAME have none.
        if (!range.name().empty())
            calls.try_call(SYS_prctl, kernel::pr_set_vma, kernel::pr_set_vma_anon_name, range.start(), size,
                           calls.batch().text(range.name().substr(0, 79)));
    }
    return calls.run(*remote);
}

}  // namespace godwit
