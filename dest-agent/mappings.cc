// Makes VMAs of a layout in a skeleton, where nothing is mapped, by batches.
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
using Part = LayoutChanges::Part;

// Names are paths of at most 4096 bytes each: what a batch carries without a mapping of its own, which could take a wanted place.
constexpr int files_at_once = 32;

int extra_flags(const MappingRange& range) {
    return MAP_FIXED_NOREPLACE | (range.no_reserve() ? MAP_NORESERVE : 0) | (range.grows_down() ? MAP_GROWSDOWN : 0);
}

std::string to_map(const Part& part, std::string_view what) {
    return fmt::format("map {:x}-{:x} ({} bytes, {})", part.start, part.end, part.end - part.start, what);
}

uint64_t offset_of(const Part& part) { return part.want->offset() + part.start - part.want->start(); }

struct Advice {
    bool (MappingRange::*wanted)() const;
    int give;
    int take_back;  // 0: it is replaced by another, or the memory is mapped anew
    const char* name;
};
constexpr Advice advices[] = {
    {&MappingRange::huge_page, MADV_HUGEPAGE, 0, "MADV_HUGEPAGE"},
    {&MappingRange::no_huge_page, MADV_NOHUGEPAGE, 0, "MADV_NOHUGEPAGE"},
    {&MappingRange::dont_fork, MADV_DONTFORK, MADV_DOFORK, "MADV_DONTFORK"},
    {&MappingRange::wipe_on_fork, MADV_WIPEONFORK, MADV_KEEPONFORK, "MADV_WIPEONFORK"},
    {&MappingRange::dont_dump, MADV_DONTDUMP, MADV_DODUMP, "MADV_DONTDUMP"},
    {&MappingRange::mergeable, MADV_MERGEABLE, MADV_UNMERGEABLE, "MADV_MERGEABLE"},
    {&MappingRange::sequential, MADV_SEQUENTIAL, MADV_NORMAL, "MADV_SEQUENTIAL"},
    {&MappingRange::random, MADV_RANDOM, MADV_NORMAL, "MADV_RANDOM"},
};

// What was taken back comes before what is given: MADV_NORMAL ends both kinds of read-ahead.
void add_advice(NamedCalls& calls, const Part& part, const Advice& advice, bool give) {
    const bool had = part.have != nullptr && (part.have->*advice.wanted)();
    const bool wants = (part.want->*advice.wanted)();
    if (had == wants || wants != give || (!give && advice.take_back == 0)) return;
    calls.call(fmt::format("{} {} for {:x}-{:x}", give ? "advise" : "take back", advice.name, part.start, part.end), SYS_madvise, part.start,
               part.end - part.start, give ? advice.give : advice.take_back);
}

}  // namespace

// VM_ACCOUNT is set when a mapping becomes writable, and neighbours merge only when they agree in it: so what was writable once
// (RELRO) is so here, what never was is not. Content goes into the latter by /proc/PID/mem.
uint32_t first_protection(const MappingRange& range) {
    const bool writable = (range.protection() & PROT_WRITE) != 0;
    if (takes_pages(range) && range.accounted() && !writable) return PROT_READ | PROT_WRITE;
    return range.protection();
}

Result<void> Skeleton::State::make_mappings(const image::Layout& of, const Parts& parts) {
    TRY(make_anonymous(parts));
    TRY(make_of_files(of, parts));
    TRY(make_of_objects(parts));
    for (const auto& part : parts) filler.add(*part.want, part.start, part.end);
    return advise(parts);
}

Result<void> Skeleton::State::make_anonymous(const Parts& parts) {
    NamedCalls calls;
    for (const Part& part : parts)
        if (part.want->kind() == image::MAPPING_ANONYMOUS)
            calls.call(to_map(part, "anonymous"), SYS_mmap, part.start, part.end - part.start, first_protection(*part.want),
                       MAP_PRIVATE | MAP_ANONYMOUS | extra_flags(*part.want), -1, 0);
    return calls.run(*remote);
}

// Files are opened in the skeleton, so that the kernel's checks are those of an ordinary mapping, some at a time.
Result<void> Skeleton::State::make_of_files(const image::Layout& of, const Parts& parts) {
    std::map<uint32_t, std::vector<const Part*>> by_file;
    for (const Part& part : parts)
        if (part.want->file() != 0) by_file[part.want->file()].push_back(&part);

    for (auto at = by_file.begin(); at != by_file.end();) {
        NamedCalls calls;
        for (int i = 0; i < files_at_once && at != by_file.end(); ++i, ++at) {
            const image::MappedFile& file = of.files(static_cast<int>(at->first) - 1);
            const std::string path = printable(file.path());
            if (file.path().size() >= 4096) return peer_failed(fmt::format("mapped file {} has too long a name", path));
            // Without O_NONBLOCK a FIFO that took the place of the file would hang it.
            const int flags = (file.writable() ? O_RDWR : O_RDONLY) | O_CLOEXEC | O_NONBLOCK;
            const auto fd = calls.call("open the mapped file " + path, SYS_openat, AT_FDCWD, calls.batch().text(file.path()), flags);
            for (const Part* part : at->second) {
                const int sharing = part->want->kind() == image::MAPPING_FILE_SHARED ? MAP_SHARED : MAP_PRIVATE;
                calls.call(to_map(*part, path), SYS_mmap, part->start, part->end - part->start, first_protection(*part->want),
                           sharing | extra_flags(*part->want), calls.batch().result(fd), offset_of(*part));
            }
            calls.try_call(SYS_close, calls.batch().result(fd));
        }
        TRY(calls.run(*remote));
    }
    return {};
}

// Before any page comes: MADV_HUGEPAGE decides how memory is made.
Result<void> Skeleton::State::advise(const Parts& parts) {
    NamedCalls calls;
    for (const Part& part : parts) {
        for (const bool give : {false, true})
            for (const Advice& advice : advices) add_advice(calls, part, advice, give);
        // A name is for people; kernels without CONFIG_ANON_VMA_NAME have none.
        const bool named = part.have != nullptr && !part.have->name().empty();
        if (part.want->name().empty() && !named) continue;
        const auto name = part.want->name().empty() ? Batch::Operand(0) : calls.batch().text(part.want->name().substr(0, 79));
        calls.try_call(SYS_prctl, kernel::pr_set_vma, kernel::pr_set_vma_anon_name, part.start, part.end - part.start, name);
    }
    return calls.run(*remote);
}

}  // namespace godwit
