#include "source-agent/page_sender.h"

#include <fmt/format.h>
#include <sys/uio.h>

#include <algorithm>
#include <cstring>

#include "common/base/fault.h"

namespace godwit {
namespace {

constexpr size_t page_size = 4096;
// A run of zero pages shorter than this is sent with its neighbours: a frame of its own for the rest would cost more.
constexpr size_t least_zero_run = 16 * page_size;

bool is_zero(const std::byte* page) {
    // The first word decides nearly always; then the page is compared with itself, shifted by one byte.
    if (*reinterpret_cast<const uint64_t*>(page) != 0) return false;
    return std::memcmp(page, page + 8, page_size - 8) == 0;
}

}  // namespace

Result<void> PageSender::send(const image::Layout& layout, std::span<const ByteRange> ranges) {
    fault_point("pages:begin");
    auto range = ranges.begin();
    for (const image::MappingRange& mapping : layout.mappings()) {
        const bool anonymous = mapping.kind() == image::MAPPING_ANONYMOUS || mapping.kind() == image::MAPPING_ANONYMOUS_SHARED;
        while (range != ranges.end() && range->end <= mapping.start()) ++range;
        for (auto part = range; part != ranges.end() && part->start < mapping.end(); ++part) {
            uint64_t at = std::max(part->start, mapping.start());
            const uint64_t end = std::min(part->end, mapping.end());
            for (; at < end; at += max_page_bytes)
                TRY(send_chunk(at, std::min<uint64_t>(max_page_bytes, end - at), anonymous));
        }
    }
    fault_point("pages:end");
    return {};
}

Result<void> PageSender::send_chunk(uint64_t address, size_t size, bool skip_zeros) {
    TRY(read_chunk(address, size));
    if (!skip_zeros) return send_run(address, 0, size);
    size_t start = 0;  // of the run that is to be sent
    size_t at = 0;
    while (at < size) {
        if (!is_zero(buffer_.data() + at)) {
            at += page_size;
            continue;
        }
        const size_t zeros = at;
        while (at < size && is_zero(buffer_.data() + at)) at += page_size;
        if (at - zeros < least_zero_run && at < size && zeros > start) continue;
        TRY(send_run(address, start, zeros - start));
        sent_.zero_pages += (at - zeros) / page_size;
        start = at;
    }
    return send_run(address, start, size - start);
}

Result<void> PageSender::read_chunk(uint64_t address, size_t size) {
    const iovec local{buffer_.data(), size};
    const iovec remote{reinterpret_cast<void*>(address), size};
    const ssize_t got = ::process_vm_readv(pid_, &local, 1, &remote, 1, 0);
    if (got == static_cast<ssize_t>(size)) return {};
    // PROT_NONE and the like: /proc/PID/mem asks no permission of the mapping.
    const ProcessMemory memory = TRY(ProcessMemory::open(pid_));
    return memory.read(RemotePtr(address), buffer_.data(), size);
}

Result<void> PageSender::send_run(uint64_t address, size_t offset, size_t size) {
    if (size == 0) return {};
    const PageRange range{pid_inside_, 0, address + offset, size};
    const iovec content{buffer_.data() + offset, size};
    TRY(channel_.send_pages(range, {&content, 1}));
    sent_.pages += size / page_size;
    sent_.bytes += size;
    return {};
}

}  // namespace godwit
