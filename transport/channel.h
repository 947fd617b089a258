// Frames over one Link: control messages and page frames, checked on both ways.
//
// Threads: one thread at a time uses a Channel, and besides it one other may call keep_alive(), any shut_down().
// Errors: every Problem of the peer's making has ExitCode::peer (or the code that its ABORT names), names the peer, and
// ends the connection: the Link is shut down. In test builds every control frame is a fault point:
// send:NAME:before, send:NAME:after, receive:NAME:before (nothing of it was read yet where expect() waits for it; in
// receive() it was just read), receive:NAME:after; NAME is name_of(type). What receive_data() takes, page frames and KEEP_ALIVE are none.
#pragma once

#include <google/protobuf/message.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "transport/frame.h"
#include "transport/link.h"
#include "transport/phase.h"

namespace godwit {

struct Frame {
    FrameType type;
    std::string body;
};

// What a data connection brings; used again for each frame. Takes max_page_bytes, the same again once a compressed frame came,
// and 160 KiB for ranges.
struct DataFrame {
    uint32_t round = 0;  // of ROUND_BEGIN
    // Of PAGES.
    PageHeader header;
    std::vector<PageRange> ranges;
    std::vector<std::byte> content = std::vector<std::byte>(max_page_bytes);  // the first header.content_bytes of it

    std::vector<std::byte> range_bytes, compressed;  // as they travelled
};

// Reads a message strictly: an unknown field, an unknown enum value (at any depth) or text that is not UTF-8 is
// refused.
Result<void> parse_strictly(std::string_view body, google::protobuf::Message& message);

class Channel {
  public:
    struct Counters {
        uint64_t bytes_sent = 0;  // of frames with their headers, before TLS
        uint64_t bytes_received = 0;
        uint64_t frames_sent = 0;
        uint64_t frames_received = 0;
    };

    Channel(std::unique_ptr<Link> link, Side side) : link_(std::move(link)), guard_(side) {}

    // Sends one control message. When the connection broke because the peer aborted, the Problem is the peer's.
    Result<void> send(FrameType type, const google::protobuf::MessageLite& message);
    // The next control frame. KEEP_ALIVE frames are skipped: each starts the idle limit anew, none moves the deadline.
    // ABORT becomes a Problem: what the first trouble says; troubles() has all of them.
    Result<Frame> receive(Deadline deadline);
    // The next frame, which must be of this type.
    Result<void> expect(FrameType type, google::protobuf::Message& message, Deadline deadline);

    // Sends pages: header.count is taken from `ranges`; `content` is that of all that are not zero, in any number of pieces, at
    // most max_page_bytes; with header.lz4, which the peer must know, one block of that content.
    Result<void> send_pages(PageHeader header, std::span<const PageRange> ranges, std::span<const iovec> content);
    // The next frame of a data connection: FrameType::pages or round_begin, and fills what belongs to it. The content may be
    // looked at only after success (the checksum comes last).
    Result<FrameType> receive_data(DataFrame& frame, Deadline deadline);
    // What HELLO and HELLO_REPLY agreed on (handshake.h).
    void set_features(uint64_t features) { features_ = features; }
    uint64_t features() const { return features_; }

    // Tells a waiting peer that we are alive. From any thread; does nothing while another one is using the Channel.
    Result<void> keep_alive();
    // Sends ABORT with these problems, if the phase has room for it, and waits until the peer has closed or the
    // deadline passes, so that it is not lost. The connection is shut down afterwards. If the peer had called it off, too,
    // troubles() has what it said.
    void abort(std::span<const Problem> problems, Deadline deadline);
    // We have said our last: waits until the peer has closed or the deadline passes, so that nothing that we sent is
    // lost, and shuts down.
    void finish(Deadline deadline);
    // Ends the connection. Any thread; a waiting call fails.
    void shut_down() { link_->shut_down(); }

    // True when a frame (or the end) is there to be received; false when the deadline passed.
    Result<bool> wait_readable(Deadline deadline);
    // Silence after which a receive fails although its deadline is later. 0, the default: no such limit.
    void set_idle_limit(milliseconds limit) { idle_limit_ = limit; }

    const std::string& peer() const { return link_->peer(); }
    const std::vector<Problem>& troubles() const { return troubles_; }  // of the ABORT that came
    Counters counters() const;                                          // any thread
    PhaseGuard& guard() { return guard_; }

  private:
    Result<void> send_frame(FrameType type, std::span<const iovec> body);
    Result<FrameHeader> next_header(FrameHeaderBytes& bytes, Deadline deadline);
    Result<void> receive_piece(void* data, size_t size, FrameChecksum& checksum, Deadline deadline);
    Result<void> verify(const FrameHeader& header, const FrameChecksum& checksum);
    Result<std::string> receive_body(const FrameHeaderBytes& bytes, const FrameHeader& header, Deadline deadline);
    Result<Frame> receive_frame(Deadline deadline);
    Result<void> receive_pages(const FrameHeaderBytes& bytes, const FrameHeader& header, DataFrame& frame, Deadline deadline);
    Result<void> unpack(DataFrame& frame);
    uint32_t known_page_flags() const;
    Problem aborted(std::string_view body);
    Failure refuse(Problem problem);
    Failure foreign(const FrameHeaderBytes& bytes);
    std::optional<Problem> find_abort(Deadline deadline);
    Failure broken_by_peer(Problem problem);

    std::unique_ptr<Link> link_;
    PhaseGuard guard_;
    std::mutex in_use_;  // held for a whole frame, so that keep_alive() never gets between
    milliseconds idle_limit_{0};
    bool called_off_ = false;  // by us
    uint32_t next_sent_ = 0;
    uint32_t next_received_ = 0;
    uint64_t features_ = 0;
    std::vector<Problem> troubles_;
    std::atomic<uint64_t> bytes_sent_ = 0, bytes_received_ = 0, frames_sent_ = 0, frames_received_ = 0;
};

// Problems as they go over the wire, and back: printable, with an exit code from 1 to 4.
void to_wire(std::span<const Problem> problems, google::protobuf::RepeatedPtrField<image::Trouble>& troubles);
std::vector<Problem> from_wire(const google::protobuf::RepeatedPtrField<image::Trouble>& troubles);

}  // namespace godwit
