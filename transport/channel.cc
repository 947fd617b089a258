#include "transport/channel.h"

#include <fmt/format.h>
#include <google/protobuf/stubs/logging.h>
#include <lz4.h>

#include <algorithm>

#include "common/base/fault.h"
#include "common/base/text.h"

namespace godwit {
namespace {

constexpr size_t body_step = 1u << 20;  // memory grows with what has arrived, not with what a header claims
constexpr int max_troubles = 1000;
constexpr size_t max_trouble_bytes = 2000;
constexpr milliseconds last_words{500};  // how long we look for an ABORT after the connection broke under a send

void mark([[maybe_unused]] const char* way, [[maybe_unused]] FrameType type, [[maybe_unused]] const char* when) {
#ifdef GODWIT_FAULT_POINTS
    fault_point(fmt::format("{}:{}:{}", way, name_of(type), when).c_str());
#endif
}

// Text of a Problem is ASCII already, unless it is a hostile peer's.
std::string clean(std::string_view text) {
    const bool plain = std::all_of(text.begin(), text.end(), [](char c) { return c >= 0x20 && c < 0x7f; });
    return plain && text.size() <= max_trouble_bytes ? std::string(text) : printable(text, max_trouble_bytes);
}

using google::protobuf::FieldDescriptor;
using google::protobuf::Message;

// Whether an enum field holds only values that we know.
bool knows_values(const Message& message, const FieldDescriptor& field) {
    const auto* reflection = message.GetReflection();
    const auto known = [&](int value) { return field.enum_type()->FindValueByNumber(value) != nullptr; };
    if (!field.is_repeated()) return known(reflection->GetEnumValue(message, &field));
    for (int i = 0; i < reflection->FieldSize(message, &field); ++i)
        if (!known(reflection->GetRepeatedEnumValue(message, &field, i))) return false;
    return true;
}

// Recursion is bounded by protobuf's own limit of 100 levels in parsing.
Result<void> refuse_unknown(const Message& message) {
    const auto* reflection = message.GetReflection();
    const auto& unknown = reflection->GetUnknownFields(message);
    if (!unknown.empty())
        return peer_failed(
            fmt::format("{} holds the unknown field {}", message.GetTypeName(), unknown.field(0).number()),
            "install the same version on both hosts");
    std::vector<const FieldDescriptor*> fields;
    reflection->ListFields(message, &fields);
    for (const FieldDescriptor* field : fields) {
        if (field->cpp_type() == FieldDescriptor::CPPTYPE_ENUM && !knows_values(message, *field))
            return peer_failed(fmt::format("{} holds an unknown value", field->full_name()),
                               "install the same version on both hosts");
        if (field->cpp_type() != FieldDescriptor::CPPTYPE_MESSAGE) continue;
        const int count = field->is_repeated() ? reflection->FieldSize(message, field) : 1;
        for (int i = 0; i < count; ++i)
            TRY(refuse_unknown(field->is_repeated() ? reflection->GetRepeatedMessage(message, field, i)
                                                    : reflection->GetMessage(message, field)));
    }
    return {};
}

}  // namespace

Result<void> parse_strictly(std::string_view body, Message& message) {
    const google::protobuf::LogSilencer one_line;  // the Problem is the one line that a peer can put into the log
    if (!message.ParseFromArray(body.data(), static_cast<int>(body.size())))
        return peer_failed(fmt::format("{} does not parse", message.GetTypeName()));
    return refuse_unknown(message);
}

void to_wire(std::span<const Problem> problems, google::protobuf::RepeatedPtrField<image::Trouble>& troubles) {
    for (const Problem& problem : problems.first(std::min<size_t>(problems.size(), max_troubles))) {
        image::Trouble& trouble = *troubles.Add();
        trouble.set_what(clean(problem.what));
        trouble.set_hint(clean(problem.hint));
        trouble.set_exit_code(static_cast<uint32_t>(problem.code));
    }
}

std::vector<Problem> from_wire(const google::protobuf::RepeatedPtrField<image::Trouble>& troubles) {
    std::vector<Problem> problems;
    for (const image::Trouble& trouble : troubles) {
        if (problems.size() == max_troubles) break;
        const uint32_t code = trouble.exit_code();
        // Neither success nor `uncertain` is a peer's to declare.
        const bool fine =
            code >= static_cast<uint32_t>(ExitCode::failed) && code <= static_cast<uint32_t>(ExitCode::peer);
        problems.push_back(Problem{clean(trouble.what()), clean(trouble.hint()),
                                   fine ? static_cast<ExitCode>(code) : ExitCode::peer, 0});
    }
    return problems;
}

Channel::Counters Channel::counters() const {
    return {bytes_sent_.load(), bytes_received_.load(), frames_sent_.load(), frames_received_.load()};
}

// What the peer sent breaks a rule: names it and ends the connection.
Failure Channel::refuse(Problem problem) {
    link_->shut_down();
    problem.what = fmt::format("{}: {}", peer(), problem.what);
    return Failure(std::move(problem));
}

Failure Channel::foreign(const FrameHeaderBytes& bytes) {
    link_->shut_down();
    const bool tls = looks_like_tls(bytes);
    return peer_failed(
        fmt::format("the peer at {} does not speak godwit's protocol", peer()),
        tls ? "it speaks TLS: start both ends with --keys, or both with --insecure" : "is it another program's port?");
}

// Looks for an ABORT among what the peer has sent, up to its first pages or its end.
std::optional<Problem> Channel::find_abort(Deadline deadline) {
    while (!deadline.passed()) {
        FrameHeaderBytes bytes;
        const auto header = next_header(bytes, deadline);
        if (!header || header->type == FrameType::pages) break;
        const auto body = receive_body(bytes, *header, deadline);
        if (!body) break;
        if (header->type == FrameType::abort) return aborted(*body);
    }
    return std::nullopt;
}

// A send failed. When the peer had aborted, what it said is the better explanation.
Failure Channel::broken_by_peer(Problem problem) {
    if (auto said = find_abort(Deadline::in(last_words))) return Failure(std::move(*said));
    link_->shut_down();
    return Failure(std::move(problem));
}

Result<void> Channel::send_frame(FrameType type, std::span<const iovec> body) {
    FrameHeader header{type, 0, next_sent_, 0};
    size_t length = 0;
    for (const iovec& piece : body) length += piece.iov_len;
    if (length > max_body_bytes(type))
        return fail(fmt::format("a {} message of {} bytes is too long for the protocol", name_of(type), length));
    header.length = static_cast<uint32_t>(length);
    TRY(guard_.send(type));
    FrameHeaderBytes bytes = encode(header);
    FrameChecksum checksum(bytes);
    for (const iovec& piece : body) checksum.add(piece.iov_base, piece.iov_len);
    seal(bytes, checksum.value());

    std::vector<iovec> pieces{{bytes.data(), bytes.size()}};
    pieces.insert(pieces.end(), body.begin(), body.end());
    ++next_sent_;
    auto sent = link_->send(pieces);
    if (!sent) return broken_by_peer(std::move(sent.error()));
    bytes_sent_ += bytes.size() + length;
    ++frames_sent_;
    return {};
}

Result<void> Channel::send(FrameType type, const google::protobuf::MessageLite& message) {
    mark("send", type, "before");
    {
        const std::lock_guard lock(in_use_);
        std::string body = message.SerializeAsString();
        const iovec piece{body.data(), body.size()};
        TRY(send_frame(type, {&piece, 1}));
    }
    mark("send", type, "after");
    return {};
}

Result<void> Channel::keep_alive() {
    const std::unique_lock lock(in_use_, std::try_to_lock);
    if (!lock.owns_lock()) return {};
    return send_frame(FrameType::keep_alive, {});
}

// The next header that may come now; its body has not been read.
Result<FrameHeader> Channel::next_header(FrameHeaderBytes& bytes, Deadline deadline) {
    Deadline limit = deadline;
    if (idle_limit_.count() > 0 && Clock::now() + idle_limit_ < deadline.when()) limit = Deadline::in(idle_limit_);
    auto received = link_->receive(bytes.data(), bytes.size(), limit);
    if (!received) {
        link_->shut_down();
        return Failure(std::move(received.error()));
    }
    auto header = decode_header(bytes, next_received_);
    if (!header) {
        const bool first = frames_received_ == 0;
        return first && !std::equal(bytes.begin(), bytes.begin() + 4, encode(FrameHeader{}).begin())
                   ? foreign(bytes)
                   : refuse(std::move(header.error()));
    }
    if (auto allowed = guard_.receive(header->type); !allowed && !called_off_) return refuse(std::move(allowed.error()));
    ++next_received_;
    return header;
}

Result<void> Channel::receive_piece(void* data, size_t size, FrameChecksum& checksum, Deadline deadline) {
    auto received = link_->receive(data, size, deadline);
    if (!received) {
        link_->shut_down();
        return Failure(std::move(received.error()));
    }
    checksum.add(data, size);
    return {};
}

Result<void> Channel::verify(const FrameHeader& header, const FrameChecksum& checksum) {
    if (checksum.value() != header.checksum)
        return refuse({fmt::format("a {} frame with a wrong checksum", name_of(header.type)),
                       "something on the way damages data", ExitCode::peer, 0});
    bytes_received_ += frame_header_bytes + header.length;
    ++frames_received_;
    return {};
}

Result<std::string> Channel::receive_body(const FrameHeaderBytes& bytes, const FrameHeader& header, Deadline deadline) {
    FrameChecksum checksum(bytes);
    std::string body;
    while (body.size() < header.length) {
        const size_t at = body.size();
        const size_t step = std::min<size_t>(header.length - at, body_step);
        body.resize(at + step);
        TRY(receive_piece(body.data() + at, step, checksum, deadline));
    }
    TRY(verify(header, checksum));
    return body;
}

// Keeps what an ABORT says; the first trouble stands for all. A destination closes when nothing of the tree is left there, which
// is what the source waits for.
Problem Channel::aborted(std::string_view body) {
    if (guard_.side() == Side::source) link_->shut_down();
    image::Troubles message;
    if (auto parsed = parse_strictly(body, message); !parsed) return refuse(std::move(parsed.error())).value();
    troubles_ = from_wire(message.problems());
    if (troubles_.empty())
        troubles_.push_back(Problem{fmt::format("{} called the migration off and gave no reason", peer()),
                                    "its log says why", ExitCode::peer, 0});
    return troubles_.front();
}

Result<Frame> Channel::receive_frame(Deadline deadline) {
    const std::lock_guard lock(in_use_);
    for (;;) {
        FrameHeaderBytes bytes;
        const FrameHeader header = TRY(next_header(bytes, deadline));
        if (header.type == FrameType::pages) return refuse({"pages where a message was due", {}, ExitCode::peer, 0});
        std::string body = TRY(receive_body(bytes, header, deadline));
        if (header.type == FrameType::abort) return Failure(aborted(body));
        if (header.type != FrameType::keep_alive) return Frame{header.type, std::move(body)};
    }
}

Result<Frame> Channel::receive(Deadline deadline) {
    Frame frame = TRY(receive_frame(deadline));
    mark("receive", frame.type, "before");
    mark("receive", frame.type, "after");
    return frame;
}

Result<void> Channel::expect(FrameType type, Message& message, Deadline deadline) {
    mark("receive", type, "before");
    const Frame frame = TRY(receive_frame(deadline));
    if (frame.type != type)
        return refuse(
            {fmt::format("a {} frame where {} was due", name_of(frame.type), name_of(type)), {}, ExitCode::peer, 0});
    if (auto parsed = parse_strictly(frame.body, message); !parsed) return refuse(std::move(parsed.error()));
    mark("receive", type, "after");
    return {};
}

uint32_t Channel::known_page_flags() const { return (features_ & feature_lz4) != 0 ? page_flag_lz4 : 0; }

Result<void> Channel::send_pages(PageHeader header, std::span<const PageRange> ranges, std::span<const iovec> content) {
    header.count = static_cast<uint32_t>(std::min<size_t>(ranges.size(), UINT32_MAX));
    PageHeaderBytes header_bytes = encode(header);
    std::vector<std::byte> range_bytes = encode(ranges);
    std::vector<iovec> body{{header_bytes.data(), header_bytes.size()}, {range_bytes.data(), range_bytes.size()}};
    body.insert(body.end(), content.begin(), content.end());
    size_t length = 0;
    for (const iovec& piece : body) length += piece.iov_len;
    // The receiver's own checks, so that a mistake here is told as ours.
    auto well_formed = [&]() -> Result<void> {
        const auto size = static_cast<uint32_t>(std::min<size_t>(length, UINT32_MAX));
        const PageHeader decoded = TRY(decode_page_header(header_bytes, size, known_page_flags()));
        std::vector<PageRange> same;
        return decode_page_ranges(decoded, range_bytes, same);
    }();
    if (!well_formed) return Failure(std::move(well_formed.error()).coded(ExitCode::failed));
    const std::lock_guard lock(in_use_);
    return send_frame(FrameType::pages, body);
}

// The content of a compressed frame is as long as its header says, or the frame is refused.
Result<void> Channel::unpack(DataFrame& frame) {
    const int got = ::LZ4_decompress_safe(reinterpret_cast<const char*>(frame.compressed.data()),
                                          reinterpret_cast<char*>(frame.content.data()), static_cast<int>(frame.compressed.size()),
                                          static_cast<int>(frame.header.content_bytes));
    if (got == static_cast<int>(frame.header.content_bytes)) return {};
    return refuse({"a pages frame whose compressed content does not unpack to what its header says", {}, ExitCode::peer, 0});
}

Result<void> Channel::receive_pages(const FrameHeaderBytes& bytes, const FrameHeader& header, DataFrame& frame, Deadline deadline) {
    if (header.length < page_header_bytes) return refuse({"a pages frame without a header", {}, ExitCode::peer, 0});
    FrameChecksum checksum(bytes);
    PageHeaderBytes page_bytes;
    TRY(receive_piece(page_bytes.data(), page_bytes.size(), checksum, deadline));
    auto decoded = decode_page_header(page_bytes, header.length, known_page_flags());
    if (!decoded) return refuse(std::move(decoded.error()));
    frame.header = *decoded;
    frame.range_bytes.resize(frame.header.count * page_range_bytes);
    TRY(receive_piece(frame.range_bytes.data(), frame.range_bytes.size(), checksum, deadline));
    if (auto fine = decode_page_ranges(frame.header, frame.range_bytes, frame.ranges); !fine) return refuse(std::move(fine.error()));
    const size_t left = header.length - page_header_bytes - frame.range_bytes.size();
    if (frame.header.lz4) frame.compressed.resize(left);
    TRY(receive_piece(frame.header.lz4 ? frame.compressed.data() : frame.content.data(), left, checksum, deadline));
    TRY(verify(header, checksum));
    return frame.header.lz4 ? unpack(frame) : Result<void>();
}

Result<FrameType> Channel::receive_data(DataFrame& frame, Deadline deadline) {
    const std::lock_guard lock(in_use_);
    for (;;) {
        FrameHeaderBytes bytes;
        const FrameHeader header = TRY(next_header(bytes, deadline));
        if (header.type == FrameType::pages) {
            TRY(receive_pages(bytes, header, frame, deadline));
            return header.type;
        }
        const std::string body = TRY(receive_body(bytes, header, deadline));
        if (header.type == FrameType::abort) return Failure(aborted(body));
        if (header.type == FrameType::round_begin) {
            image::RoundBegin begin;
            if (auto parsed = parse_strictly(body, begin); !parsed) return refuse(std::move(parsed.error()));
            frame.round = begin.round();
            return header.type;
        }
        if (header.type != FrameType::keep_alive)
            return refuse({fmt::format("a {} frame where pages were due", name_of(header.type)), {}, ExitCode::peer, 0});
    }
}

void Channel::finish(Deadline deadline) {
    const std::lock_guard lock(in_use_);
    link_->finish_sending();
    link_->drain(deadline);
    link_->shut_down();
}

void Channel::abort(std::span<const Problem> problems, Deadline deadline) {
    image::Troubles message;
    to_wire(problems, *message.mutable_problems());
    if (send(FrameType::abort, message)) {
        const std::lock_guard lock(in_use_);
        link_->finish_sending();
        // It may have called it off, too, and know the reason: for one of us it was the end of a connection. What it sent
        // before it heard of us is in no phase of ours any more.
        called_off_ = true;
        if (!find_abort(deadline)) link_->drain(deadline);
    }
    link_->shut_down();
}

Result<bool> Channel::wait_readable(Deadline deadline) {
    const std::lock_guard lock(in_use_);
    return link_->wait_readable(deadline);
}

}  // namespace godwit
