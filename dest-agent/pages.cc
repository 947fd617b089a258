// Content of a skeleton's memory.
#include <fmt/format.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>

#include <algorithm>

#include "common/base/fault.h"
#include "common/kernel/pagemap.h"
#include "dest-agent/named_calls.h"
#include "dest-agent/skeleton_state.h"

namespace godwit {

using image::MappingRange;

// Pages of one mapping that are to get this content.
struct Skeleton::State::Piece {
    uint64_t address = 0;
    uint64_t size = 0;
    const std::byte* content = nullptr;
    bool private_anonymous = false;  // zero where it has no page
};

namespace {

constexpr const char* hostile = "the source is broken or hostile";
constexpr size_t most_pieces = 1024;  // UIO_MAXIOV
alignas(page_size) constexpr std::byte zeros[64 * 1024] = {};

// What one attempt came to: whole pages, and the errno that ended it.
struct Step {
    size_t bytes = 0;
    int error = 0;
};

// Writes, from the first piece on, into pages that are writable there, as far as that goes.
template <class Piece>
Step write_plainly(pid_t pid, std::span<const Piece> pieces) {
    std::vector<iovec> local, remote;
    for (const Piece& piece : pieces.first(std::min(pieces.size(), most_pieces))) {
        std::byte* from = const_cast<std::byte*>(piece.content);
        if (!local.empty() && static_cast<std::byte*>(local.back().iov_base) + local.back().iov_len == from)
            local.back().iov_len += piece.size;
        else
            local.push_back({from, piece.size});
        remote.push_back({reinterpret_cast<void*>(piece.address), piece.size});
    }
    const ssize_t count = ::process_vm_writev(pid, local.data(), local.size(), remote.data(), remote.size(), 0);
    if (count < 0) return {0, errno};
    return {static_cast<size_t>(count) / page_size * page_size, 0};
}

}  // namespace

// The mapping of the layout that holds `address` and takes content.
Result<const MappingRange*> Skeleton::State::mapping_for(uint64_t address) const {
    const auto& mappings = layout.mappings();
    const auto after = std::upper_bound(mappings.begin(), mappings.end(), address,
                                        [](uint64_t at, const MappingRange& range) { return at < range.start(); });
    if (after != mappings.begin() && std::prev(after)->end() > address) {
        const MappingRange& range = *std::prev(after);
        if (takes_pages(range)) return &range;
        return peer_failed(fmt::format("a page at {:#x} of process {} is in {}, whose content is not the source's to send", address,
                                       layout.pid(), range_name(range)),
                           hostile);
    }
    return peer_failed(fmt::format("a page at {:#x} of process {} is outside its mappings", address, layout.pid()), hostile);
}

// Checks all of the ranges and cuts them where mappings end; without content.
Result<std::vector<Skeleton::State::Piece>> Skeleton::State::cut(std::span<const PageRange> ranges) const {
    std::vector<Piece> pieces;
    for (const PageRange& range : ranges) {
        if (range.address % page_size != 0 || range.length % page_size != 0 || range.address > address_limit ||
            range.length > address_limit - range.address)
            return peer_failed(fmt::format("{} bytes at {:#x} of process {} are no range of pages", range.length, range.address, layout.pid()),
                               hostile);
        const uint64_t end = range.address + range.length;
        for (uint64_t at = range.address; at < end;) {
            const MappingRange& mapping = *TRY(mapping_for(at));
            const uint64_t size = std::min(mapping.end(), end) - at;
            pieces.push_back({at, size, nullptr, mapping.kind() == image::MAPPING_ANONYMOUS});
            at += size;
        }
    }
    return pieces;
}

Result<void> Skeleton::write(std::span<const PageRange> ranges, const std::byte* content) {
    fault_point("skeleton:write-pages");
    auto pieces = TRY(state_->cut(ranges));
    for (State::Piece& piece : pieces) {
        piece.content = content;
        content += piece.size;
    }
    return state_->write(std::move(pieces));
}

// Private memory without a page is zero already, and stays without. Elsewhere a page that is not there may be a file's.
Result<void> Skeleton::zero(std::span<const PageRange> ranges) {
    fault_point("skeleton:write-pages");
    const auto wanted = TRY(state_->cut(ranges));
    const Pagemap pagemap = TRY(Pagemap::open(pid()));
    std::vector<State::Piece> pieces;
    for (const State::Piece& range : wanted) {
        std::vector<PageRegion> regions{{range.address, range.address + range.size, 0}};
        if (range.private_anonymous) regions = TRY(pagemap.populated(range.address, range.address + range.size, false));
        for (const PageRegion& region : regions) {
            if ((region.categories & page_is_pfnzero) != 0) continue;
            for (uint64_t at = region.start; at < region.end; at += sizeof zeros) {
                pieces.push_back({at, std::min<uint64_t>(sizeof zeros, region.end - at), zeros, range.private_anonymous});
                if (pieces.size() == most_pieces) TRY(state_->write(std::exchange(pieces, {})));
            }
        }
    }
    return state_->write(std::move(pieces));
}

// There are two quick ways: missing pages of private memory are filled, those that are there written. Each goes as far as it
// can, and the one that worked last is tried first. /proc/PID/mem is for what is not writable.
Result<void> Skeleton::State::write(std::vector<Piece> pieces) {
    bool fill = filling;
    const auto attempt = [&](size_t first) -> Step {
        const Piece& piece = pieces[first];
        if (!fill) return write_plainly<Piece>(layout.pid(), std::span(pieces).subspan(first));
        if (!piece.private_anonymous) return {0, ENOENT};
        const auto [bytes, error] = filler.fill(piece.address, piece.content, piece.size);
        return {bytes, error};
    };
    for (size_t first = 0; first < pieces.size();) {
        Step step = attempt(first);
        if (step.bytes == 0) {
            const int error = step.error;
            fill = !fill;
            step = attempt(first);
            if (step.error != ENOMEM) step.error = error == ENOMEM ? error : step.error;
        }
        if (step.bytes == 0) {
            TRY(write_by_force(pieces[first], step.error));
            step.bytes = page_size;
        }
        for (; first < pieces.size() && step.bytes >= pieces[first].size; ++first) step.bytes -= pieces[first].size;
        if (step.bytes == 0) continue;
        pieces[first].address += step.bytes;
        pieces[first].size -= step.bytes;
        pieces[first].content += step.bytes;
    }
    filling = fill;
    return {};
}

// One page, whatever the mapping's protection. `error`: why the other ways failed.
Result<void> Skeleton::State::write_by_force(const Piece& piece, int error) {
    auto written = memory.write(RemotePtr(piece.address), piece.content, page_size);
    if (written) return {};
    constexpr int moment = 1000;  // it may be on its way out
    pollfd end{pidfd.get(), POLLIN, 0};
    if (::poll(&end, 1, moment) > 0)
        return fail(fmt::format("the copy of process {} was killed while its memory arrived", layout.pid()),
                    "the destination ran out of memory, if its kernel's log tells of the OOM killer");
    if (error == ENOMEM)
        return fail_errno(ENOMEM, fmt::format("no page for {:#x} of process {}: the destination ran out of memory", piece.address, layout.pid()),
                          "free some there, or raise the memory limit of the cgroup that the agent runs in");
    return written;
}

Result<void> Skeleton::finish_memory() {
    state_->filler = PageFiller();
    if (state_->corrected) TRY(state_->close_seams());
    NamedCalls calls;
    for (const MappingRange& range : layout().mappings()) {
        const uint64_t size = range.end() - range.start();
        const bool ours = range.kind() != image::MAPPING_VDSO && range.kind() != image::MAPPING_VVAR && range.kind() != image::MAPPING_VSYSCALL;
        if (ours && first_protection(range) != range.protection())
            calls.call(fmt::format("protect {}", range_name(range)), SYS_mprotect, range.start(), size, range.protection());
        if (range.locked())
            calls.call(fmt::format("lock {} into memory", range_name(range)), SYS_mlock2, range.start(), size,
                       range.lock_on_fault() ? MLOCK_ONFAULT : 0);
    }
    return calls.run(remote());
}

}  // namespace godwit
