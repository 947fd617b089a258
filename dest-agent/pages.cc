// Content of a skeleton's memory.
#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>

#include <algorithm>

#include "common/base/fault.h"
#include "dest-agent/named_calls.h"
#include "dest-agent/skeleton_state.h"

namespace godwit {
namespace {

using image::MappingRange;

// Writes into pages that are writable there; returns the whole pages written.
size_t write_plainly(pid_t pid, uint64_t address, const std::byte* content, size_t size) {
    const iovec local{const_cast<std::byte*>(content), size};
    const iovec remote{reinterpret_cast<void*>(address), size};
    const ssize_t count = ::process_vm_writev(pid, &local, 1, &remote, 1, 0);
    return count <= 0 ? 0 : static_cast<size_t>(count) / page_size * page_size;
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
        return peer_failed(fmt::format("a page at {:#x} of process {} is in {}, which has no content to be sent", address, layout.pid(),
                                       range_name(range)),
                           "the source is broken or hostile");
    }
    return peer_failed(fmt::format("a page at {:#x} of process {} is outside its mappings", address, layout.pid()),
                       "the source is broken or hostile");
}

Result<void> Skeleton::write_pages(uint64_t address, const std::byte* content, size_t size) {
    fault_point("skeleton:write-pages");
    if (address % page_size != 0 || size % page_size != 0 || address > address_limit || size > address_limit - address)
        return peer_failed(fmt::format("{} bytes at {:#x} of process {} are no range of pages", size, address, pid()),
                           "the source is broken or hostile");
    // All of it is looked at before any of it is written.
    for (uint64_t at = address; at < address + size;) at = TRY(state_->mapping_for(at))->end();
    for (uint64_t at = address; at < address + size;) {
        const MappingRange& range = *TRY(state_->mapping_for(at));
        const size_t length = std::min(range.end(), address + size) - at;
        TRY(state_->write(range, at, content + (at - address), length));
        at += length;
    }
    return {};
}

// Each way goes as far as it can: missing pages are filled, those that are there written. /proc/PID/mem is for what is not
// writable, and says what is wrong when nothing works.
Result<void> Skeleton::State::write(const MappingRange& range, uint64_t address, const std::byte* content, size_t size) {
    const bool writable = (first_protection(range) & PROT_WRITE) != 0;
    for (size_t done = 0; done < size;) {
        size_t count = filler.fill(address + done, content + done, size - done);
        if (count == 0 && writable) count = write_plainly(layout.pid(), address + done, content + done, size - done);
        if (count == 0) {
            TRY(memory.write(RemotePtr(address + done), content + done, page_size));
            count = page_size;
        }
        done += count;
    }
    return {};
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
