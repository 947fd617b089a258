#include "transport/frame.h"

#include <fmt/format.h>
#include <xxhash.h>

#include <bit>
#include <cstring>
#include <new>

#include "common/base/text.h"

namespace godwit {
namespace {

static_assert(std::endian::native == std::endian::little, "the fields are copied as they are");

constexpr size_t covered_header_bytes = 16;
constexpr uint64_t page_bytes = 4096;

template <class T, size_t n>
void put(std::array<std::byte, n>& bytes, size_t at, T value) {
    std::memcpy(bytes.data() + at, &value, sizeof value);
}

template <class T, size_t n>
T get(const std::array<std::byte, n>& bytes, size_t at) {
    T value;
    std::memcpy(&value, bytes.data() + at, sizeof value);
    return value;
}

}  // namespace

uint32_t max_body_bytes(FrameType type) {
    switch (type) {
        case FrameType::hello:
            return max_hello_bytes;
        case FrameType::keep_alive:
            return 0;
        case FrameType::pages:
            return page_header_bytes + max_page_ranges * page_range_bytes + max_page_bytes;
        default:
            return max_message_bytes;
    }
}

FrameHeaderBytes encode(const FrameHeader& header) {
    FrameHeaderBytes bytes{};
    put(bytes, 0, frame_magic);
    put(bytes, 4, static_cast<uint16_t>(header.type));
    put(bytes, 6, uint16_t{0});
    put(bytes, 8, header.length);
    put(bytes, 12, header.sequence);
    put(bytes, 16, header.checksum);
    return bytes;
}

void seal(FrameHeaderBytes& bytes, uint64_t checksum) { put(bytes, 16, checksum); }

Result<FrameHeader> decode_header(const FrameHeaderBytes& bytes, uint32_t sequence) {
    if (get<uint32_t>(bytes, 0) != frame_magic) return peer_failed("a frame without the magic number");
    const auto type = get<uint16_t>(bytes, 4);
    const auto flags = get<uint16_t>(bytes, 6);
    FrameHeader header;
    header.type = static_cast<FrameType>(type);
    header.length = get<uint32_t>(bytes, 8);
    header.sequence = get<uint32_t>(bytes, 12);
    header.checksum = get<uint64_t>(bytes, 16);
    if (name_of(header.type) == "unknown") return peer_failed(fmt::format("a frame of unknown type {}", type));
    const std::string_view name = name_of(header.type);
    if (flags != 0) return peer_failed(fmt::format("a {} frame with unknown flags {:#x}", name, flags));
    if (header.length > max_body_bytes(header.type))
        return peer_failed(
            fmt::format("a {} frame of {} bytes, {} are allowed", name, header.length, max_body_bytes(header.type)));
    if (header.sequence != sequence)
        return peer_failed(
            fmt::format("a {} frame with number {} where {} comes next", name, header.sequence, sequence));
    return header;
}

bool looks_like_tls(const FrameHeaderBytes& bytes) {
    return bytes[0] == std::byte{0x16} && bytes[1] == std::byte{0x03};  // handshake record, any version
}

void FrameChecksum::Free::operator()(void* state) const { XXH3_freeState(static_cast<XXH3_state_t*>(state)); }

FrameChecksum::FrameChecksum(const FrameHeaderBytes& header) : state_(XXH3_createState()) {
    if (state_ == nullptr) throw std::bad_alloc();
    XXH3_64bits_reset(static_cast<XXH3_state_t*>(state_.get()));
    add(header.data(), covered_header_bytes);
}

void FrameChecksum::add(const void* data, size_t size) {
    if (size > 0) XXH3_64bits_update(static_cast<XXH3_state_t*>(state_.get()), data, size);
}

uint64_t FrameChecksum::value() const { return XXH3_64bits_digest(static_cast<const XXH3_state_t*>(state_.get())); }

PageHeaderBytes encode(const PageHeader& header) {
    PageHeaderBytes bytes{};
    put(bytes, 0, header.pid);
    put(bytes, 4, header.lz4 ? page_flag_lz4 : 0u);
    put(bytes, 8, header.object);
    put(bytes, 16, header.count);
    put(bytes, 20, header.content_bytes);
    return bytes;
}

Result<PageHeader> decode_page_header(const PageHeaderBytes& bytes, uint32_t body_bytes, uint32_t known_flags) {
    const auto flags = get<uint32_t>(bytes, 4);
    if ((flags & ~known_flags) != 0)
        return peer_failed(fmt::format("a pages frame with flags {:#x}, which were not negotiated", flags));
    PageHeader header;
    header.pid = get<uint32_t>(bytes, 0);
    header.lz4 = (flags & page_flag_lz4) != 0;
    header.object = get<uint64_t>(bytes, 8);
    header.count = get<uint32_t>(bytes, 16);
    header.content_bytes = get<uint32_t>(bytes, 20);
    const std::string which = fmt::format("pages of pid {} object {}", header.pid, header.object);
    if ((header.pid == 0) == (header.object == 0))
        return peer_failed(which + ": either a pid or an object must be named");
    if (header.count == 0 || header.count > max_page_ranges)
        return peer_failed(fmt::format("{}: {} ranges, 1 to {} are allowed", which, header.count, max_page_ranges));
    if (header.content_bytes > max_page_bytes)
        return peer_failed(fmt::format("{}: {} bytes, {} are allowed", which, header.content_bytes, max_page_bytes));
    const uint64_t before = page_header_bytes + header.count * page_range_bytes;
    if (body_bytes < before) return peer_failed(fmt::format("{}: a frame too short for {} ranges", which, header.count));
    const uint64_t content = body_bytes - before;
    const bool fits = header.lz4 ? content > 0 && content < header.content_bytes : content == header.content_bytes;
    if (!fits)
        return peer_failed(fmt::format("{}: the frame holds {} bytes of content where {}{} are due", which, content,
                                       header.lz4 ? "fewer than " : "", header.content_bytes));
    return header;
}

std::vector<std::byte> encode(std::span<const PageRange> ranges) {
    std::vector<std::byte> bytes(ranges.size() * page_range_bytes);
    std::byte* to = bytes.data();
    for (const PageRange& range : ranges) {
        const uint64_t words[] = {range.address, range.length | (range.zero ? 1u : 0u)};
        std::memcpy(to, words, sizeof words);
        to += sizeof words;
    }
    return bytes;
}

Result<void> decode_page_ranges(const PageHeader& header, std::span<const std::byte> bytes, std::vector<PageRange>& ranges) {
    ranges.resize(header.count);
    uint64_t content = 0;
    uint64_t end = 0;  // of the range before
    for (size_t i = 0; i < ranges.size(); ++i) {
        uint64_t words[2];
        std::memcpy(words, bytes.data() + i * page_range_bytes, sizeof words);
        PageRange& range = ranges[i];
        range = {words[0], words[1] & ~uint64_t{1}, (words[1] & 1) != 0};
        const auto bad = [&](const char* why) {
            return peer_failed(fmt::format("pages of pid {} object {} at {:#x}, {:#x} bytes: {}", header.pid, header.object,
                                           range.address, range.length, why));
        };
        if (range.length == 0 || range.length % page_bytes != 0 || range.address % page_bytes != 0) return bad("not whole pages");
        if (range.address + range.length < range.address) return bad("the range wraps around");
        if (range.address < end) return bad("before the end of the range before");
        end = range.address + range.length;
        if (range.zero) continue;
        if (range.length > header.content_bytes - content) return bad("more than the content");
        content += range.length;
    }
    if (content == header.content_bytes) return {};
    return peer_failed(fmt::format("pages of pid {} object {}: {} bytes of content for {} of ranges", header.pid, header.object,
                                   header.content_bytes, content));
}

}  // namespace godwit
