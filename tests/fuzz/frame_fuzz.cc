// What a Channel does with the bytes of a hostile peer: no crash, no hang, no memory beyond the caps.
//
//   cmake --preset fuzz && cmake --build --preset fuzz --target fuzzers
//   build/fuzz/bin/frame_fuzz -runs=20000 -max_total_time=60 [FOLDER of inputs to begin with, and for new ones]
//
// Checksums and sequence numbers are put right first, else no input would get past them. An input is: one byte that
// chooses side, role and whether the checksums are left as they are; then the bytes of the connection.
#include <sys/socket.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "common/image/files.pb.h"
#include "common/image/process.pb.h"
#include "transport/channel.h"
#include "transport/handshake.h"

namespace godwit {
namespace {

constexpr size_t max_input = 60'000;  // fits the socket's buffer: one thread writes all, then reads

// Gives every whole frame in `bytes` the magic, flags, number and checksum that it should have.
void put_right(std::string& bytes) {
    uint32_t sequence = 0;
    for (size_t at = 0; at + frame_header_bytes <= bytes.size(); ++sequence) {
        uint16_t type;
        uint32_t length;
        std::memcpy(&type, &bytes[at + 4], sizeof type);
        std::memcpy(&length, &bytes[at + 8], sizeof length);
        type = static_cast<uint16_t>(type % 24);  // 1 to 22 are known
        length = static_cast<uint32_t>(std::min<size_t>(length, bytes.size() - at - frame_header_bytes));
        FrameHeaderBytes header = encode(FrameHeader{static_cast<FrameType>(type), length, sequence, 0});
        FrameChecksum checksum(header);
        checksum.add(&bytes[at + frame_header_bytes], length);
        seal(header, checksum.value());
        std::memcpy(&bytes[at], header.data(), header.size());
        at += frame_header_bytes + length;
    }
}

// Every message that a body could be taken for.
void parse_as_everything(const std::string& body) {
    image::Hello hello;
    image::HelloReply hello_reply;
    image::Plan plan;
    image::PlanReply plan_reply;
    image::Layout layout;
    image::Process process;
    image::Files files;
    image::RoundEnd round_end;
    image::RoundBegin round_begin;
    image::Commit commit;
    image::RecoverQuery query;
    image::RecoverReply reply;
    google::protobuf::Message* const messages[] = {&hello, &hello_reply, &plan,   &plan_reply, &layout, &process,
                                                   &files, &round_end, &round_begin, &commit, &query,      &reply};
    for (auto* message : messages) (void)parse_strictly(body, *message);
}

// What was let through is well-formed.
void check(const DataFrame& frame) {
    uint64_t content = 0, end = 0;
    for (const PageRange& range : frame.ranges) {
        if (range.length == 0 || range.address < end || range.address + range.length < range.address) std::abort();
        end = range.address + range.length;
        if (!range.zero) content += range.length;
    }
    if (frame.ranges.empty() || content != frame.header.content_bytes || content > max_page_bytes) std::abort();
}

void serve(Channel& channel) {
    const Deadline deadline = Deadline::in(milliseconds(2000));
    if (channel.guard().role() == image::ROLE_DATA) {
        DataFrame frame;
        for (;;) {
            const auto type = channel.receive_data(frame, deadline);
            if (!type) return;
            if (*type == FrameType::pages) check(frame);
        }
    }
    for (;;) {
        const auto frame = channel.receive(deadline);
        if (!frame) return;
        parse_as_everything(frame->body);
    }
}

void run(const uint8_t* data, size_t size) {
    if (size < 1 || size > max_input) return;
    std::string bytes(reinterpret_cast<const char*>(data + 1), size - 1);
    if ((data[0] & 1) == 0) put_right(bytes);
    int fds[2];
    if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) != 0) std::abort();
    const UniqueFd peer(fds[1]);
    Channel channel(plain_link(UniqueFd(fds[0]), "fuzz"), (data[0] & 2) != 0 ? Side::source : Side::destination);
    if (::send(peer.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL) != static_cast<ssize_t>(bytes.size())) return;
    ::shutdown(peer.get(), SHUT_WR);
    const auto role = static_cast<image::Role>(1 + (data[0] >> 2) % 3);
    const Deadline deadline = Deadline::in(milliseconds(2000));
    const std::string id = "0f8fad5b-d9cb-469f-a165-70867728950e";
    if ((data[0] & 2) != 0) {
        if (!say_hello(channel, role, id, 0, deadline)) return;
    } else if ((data[0] & 0x80) != 0) {
        // Half of the inputs begin after a HELLO, which libFuzzer would have to find first.
        (void)channel.guard().receive(FrameType::hello);
        channel.guard().set_role(role);
        (void)channel.send(FrameType::hello_reply, image::HelloReply());
        channel.set_features(supported_features);
    } else if (!answer_hello(channel, deadline, [](const Greeting&) { return Result<void>(); })) {
        return;
    }
    serve(channel);
}

}  // namespace
}  // namespace godwit

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    godwit::run(data, size);
    return 0;
}
