#include "source-agent/collect/object_pages.h"

#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstring>
#include <vector>

namespace godwit {
namespace {

constexpr uint64_t page_size = 4096;

}  // namespace

ObjectPages::ObjectPages(int fd, std::string name) : fd_(fd), name_(std::move(name)) {}

Result<void> ObjectPages::read(std::span<const ByteRange> ranges, std::byte* to) const {
    PageHasher hasher;
    for (const ByteRange& range : ranges) {
        TRY(read_range(range, to));
        if (remembers_)
            for (uint64_t at = range.start; at < range.end; at += page_size)
                block_of(at)[at / page_size % block_pages] = TRY(hasher.hash({to + (at - range.start), page_size}));
        to += range.end - range.start;
    }
    return {};
}

Result<void> ObjectPages::read_range(ByteRange range, std::byte* to) const {
    for (uint64_t at = range.start; at < range.end;) {
        const ssize_t got = ::pread64(fd_, to, range.end - at, static_cast<off64_t>(at));
        if (got < 0 && errno == EINTR) continue;
        if (got == 0 && at % page_size != 0 && range.end - at < page_size) {
            std::memset(to, 0, range.end - at);
            return {};
        }
        if (got <= 0)
            return fail_errno(got == 0 ? EFAULT : errno,
                              fmt::format("cannot read {} bytes at offset {:#x} of {}", range.end - at, at, name_));
        at += static_cast<uint64_t>(got);
        to += got;
    }
    return {};
}

ObjectPages::Block& ObjectPages::block_of(uint64_t offset) const {
    const std::lock_guard lock(lock_);
    auto& block = blocks_[offset / page_size / block_pages];
    if (!block) block = std::make_unique<Block>();
    return *block;
}

Result<Ranges> ObjectPages::differing(const Ranges& among) const {
    constexpr uint64_t piece_size = 64 * page_size;
    std::vector<std::byte> buffer(piece_size);
    PageHasher hasher;
    Ranges out;
    for (const ByteRange& range : among) {
        for (uint64_t at = range.start; at < range.end; at += piece_size) {
            const ByteRange piece{at, std::min(range.end, at + piece_size)};
            const auto got = read_range(piece, buffer.data());
            // It was truncated meanwhile; the next look shows it.
            if (!got && got.error().error == EFAULT) {
                append(out, piece);
                continue;
            }
            TRY(got);
            for (uint64_t page = piece.start; page < piece.end; page += page_size) {
                const PageHash now = TRY(hasher.hash({buffer.data() + (page - piece.start), page_size}));
                if (now != block_of(page)[page / page_size % block_pages]) append(out, {page, page + page_size});
            }
        }
    }
    return out;
}

Result<Ranges> ObjectPages::zeros_among(const Ranges& among) {
    Ranges out;
    if (among.empty()) return out;
    if (mapped_.size() < among.back().end) {
        struct stat info {};
        if (::fstat(fd_, &info) != 0) return fail_errno("cannot look at " + name_);
        const auto size = static_cast<uint64_t>(info.st_size) / page_size * page_size;
        if (size < among.back().end) return fail(name_ + " has shrunk while it was looked at");
        void* start = ::mmap(nullptr, size, PROT_READ, MAP_SHARED, fd_, 0);
        if (start == MAP_FAILED) return fail_errno("cannot map " + name_);
        mapped_ = Mapping(start, size);
    }
    const auto* bytes = static_cast<const std::byte*>(mapped_.data());
    for (const ByteRange& range : among) {
        for (uint64_t at = range.start; at < range.end; at += page_size) {
            uint64_t first;
            std::memcpy(&first, bytes + at, sizeof first);
            if (first == 0 && std::memcmp(bytes + at, bytes + at + sizeof first, page_size - sizeof first) == 0) append(out, {at, at + page_size});
        }
    }
    return out;
}

}  // namespace godwit
