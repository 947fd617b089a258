// The bytes of a frame: a header of fixed size and a body. docs/protocol.md has a worked example.
//
//   0  u32 magic      "gdwt"
//   4  u16 type       FrameType
//   6  u16 flags      0
//   8  u32 length     bytes of the body
//  12  u32 sequence   of this direction of this connection, from 0
//  16  u64 checksum   XXH3-64 of bytes 0 to 15 and the body
//
// All numbers are little-endian. The layout up to here and HELLO never change, whatever the version, so that any
// two versions can tell each other theirs.
#pragma once

#include <sys/uio.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "common/base/result.h"
#include "transport/protocol.h"

namespace godwit {

inline constexpr uint32_t frame_magic = 0x74776467;  // "gdwt"
inline constexpr size_t frame_header_bytes = 24;
inline constexpr size_t page_header_bytes = 24;
inline constexpr uint32_t max_hello_bytes = 4096;

using FrameHeaderBytes = std::array<std::byte, frame_header_bytes>;

struct FrameHeader {
    FrameType type = FrameType::abort;
    uint32_t length = 0;
    uint32_t sequence = 0;
    uint64_t checksum = 0;
};

// The longest body that a frame of this type may have.
uint32_t max_body_bytes(FrameType type);

// The checksum field is computed by the caller and put in by seal().
FrameHeaderBytes encode(const FrameHeader& header);
void seal(FrameHeaderBytes& bytes, uint64_t checksum);
// Refuses another magic, an unknown type, flags, a length above its cap and any sequence number but `sequence`.
// The Problem (ExitCode::peer) does not name the peer: Channel does.
Result<FrameHeader> decode_header(const FrameHeaderBytes& bytes, uint32_t sequence);
// True when the bytes begin like a TLS record: for a better hint when the magic is wrong.
bool looks_like_tls(const FrameHeaderBytes& bytes);

// XXH3-64 of a frame, piece by piece.
class FrameChecksum {
  public:
    explicit FrameChecksum(const FrameHeaderBytes& header);  // its first 16 bytes
    void add(const void* data, size_t size);
    uint64_t value() const;

  private:
    struct Free {
        void operator()(void* state) const;
    };
    std::unique_ptr<void, Free> state_;
};

// Pages of a process, by address, or of a shared object, by offset.
struct PageRange {
    uint64_t address = 0;  // bytes, a multiple of the page size
    uint64_t length = 0;   // bytes, a multiple of the page size, not 0
    bool zero = false;     // every byte is zero: no content travels, and the length may be of any size
};

// The first page_header_bytes of the body of a PAGES frame.
//   0 u32 pid   4 u32 flags (bit 1: lz4)   8 u64 object   16 u32 ranges   20 u32 bytes of content, before compression
// Then page_range_bytes for each range, ascending, none touching what an earlier one took:
//   0 u64 address   8 u64 length, its bit 0: zero
// Then the content of all ranges that are not zero, one after the other; with lz4 as one block, which is shorter.
struct PageHeader {
    uint32_t pid = 0;     // in the tree's namespace; 0: by object
    uint64_t object = 0;  // SharedObject.id; 0: by pid
    uint32_t count = 0;   // of ranges, 1 to max_page_ranges
    uint32_t content_bytes = 0;
    bool lz4 = false;
};

inline constexpr uint32_t page_flag_lz4 = 1u << 1;  // feature_lz4
inline constexpr size_t page_range_bytes = 16;
using PageHeaderBytes = std::array<std::byte, page_header_bytes>;

PageHeaderBytes encode(const PageHeader& header);
// `body_bytes` is the length of the frame. Refuses flags that are not among `known_flags`, a header that names both or neither
// of pid and object, numbers of ranges or bytes above their caps, and a frame that is not as long as they say.
Result<PageHeader> decode_page_header(const PageHeaderBytes& bytes, uint32_t body_bytes, uint32_t known_flags);

// header.count ranges, as they travel.
std::vector<std::byte> encode(std::span<const PageRange> ranges);
// Refuses ranges that are empty, not of whole pages, wrap around, overlap or do not ascend, and content that is not as long
// as they are. `bytes` holds header.count * page_range_bytes.
Result<void> decode_page_ranges(const PageHeader& header, std::span<const std::byte> bytes, std::vector<PageRange>& ranges);

}  // namespace godwit
