#include <gtest/gtest.h>
#include <lz4.h>

#include <cstring>
#include <thread>

#include "common/base/file.h"
#include "common/base/uuid.h"
#include "common/image/process.pb.h"
#include "tests/support/link_pair.h"
#include "transport/handshake.h"

namespace godwit {
namespace {

const std::string id = "0f8fad5b-d9cb-469f-a165-70867728950e";

std::string frame_of(FrameType type, const std::string& body, uint32_t sequence = 0) {
    FrameHeaderBytes header = encode(FrameHeader{type, static_cast<uint32_t>(body.size()), sequence, 0});
    FrameChecksum checksum(header);
    checksum.add(body.data(), body.size());
    seal(header, checksum.value());
    return std::string(reinterpret_cast<const char*>(header.data()), header.size()) + body;
}

image::Hello good_hello() {
    image::Hello hello;
    hello.set_major(protocol_major);
    hello.set_minor(protocol_minor);
    hello.set_migration_id(id);
    hello.set_role(image::ROLE_CONTROL);
    return hello;
}

// What the destination makes of these bytes as the first that it gets.
Problem first_bytes(const std::string& bytes) {
    ChannelAndPeer pair(Side::destination);
    EXPECT_TRUE(write_all(pair.raw.get(), bytes.data(), bytes.size()));
    ::shutdown(pair.raw.get(), SHUT_WR);
    auto received = pair.channel->receive(Deadline::in(milliseconds(1000)));
    EXPECT_FALSE(received);
    return received ? Problem{} : received.error();
}

void expect_refused(const Problem& problem, const std::string& part) {
    EXPECT_EQ(problem.code, ExitCode::peer) << problem.what;
    EXPECT_NE(problem.what.find(part), std::string::npos) << problem.what;
    EXPECT_EQ(problem.what.find('\n'), std::string::npos);
}

struct Greetings {
    Result<Greeting> source = fail("none"), destination = fail("none");
    Greetings(ChannelPair& pair, image::Role role, const std::function<Result<void>(const Greeting&)>& admit = {}) {
        std::thread answering([&] { destination = answer_hello(*pair.destination, soon(), admit); });
        source = say_hello(*pair.source, role, id, role == image::ROLE_DATA ? 3 : 0, soon());
        answering.join();
    }
};

TEST(Handshake, BothSidesLearnWhatTheConnectionIsFor) {
    ChannelPair pair;
    const Greetings greetings(pair, image::ROLE_DATA);
    ASSERT_TRUE(greetings.source) << greetings.source.error().what;
    ASSERT_TRUE(greetings.destination) << greetings.destination.error().what;
    EXPECT_EQ(greetings.destination->migration_id, id);
    EXPECT_EQ(greetings.destination->stream, 3u);
    EXPECT_EQ(greetings.destination->role, image::ROLE_DATA);
    EXPECT_EQ(pair.source->guard().phase(), Phase::pages);
    EXPECT_EQ(pair.destination->guard().phase(), Phase::pages);
}

TEST(Handshake, ARefusalReachesWhoConnected) {
    ChannelPair pair;
    const Greetings greetings(pair, image::ROLE_DATA,
                              [](const Greeting&) { return unsupported("no such migration", "start anew"); });
    ASSERT_FALSE(greetings.source);
    EXPECT_EQ(greetings.source.error().what, "no such migration");
    EXPECT_EQ(greetings.source.error().hint, "start anew");
    EXPECT_EQ(greetings.source.error().code, ExitCode::unsupported);
    EXPECT_FALSE(greetings.destination);
}

// What answer_hello makes of this HELLO, and the reply that the peer gets.
std::pair<Problem, image::HelloReply> refused_hello(const std::string& body) {
    ChannelAndPeer pair(Side::destination);
    const std::string bytes = frame_of(FrameType::hello, body);
    EXPECT_TRUE(write_all(pair.raw.get(), bytes.data(), bytes.size()));
    ::shutdown(pair.raw.get(), SHUT_WR);
    auto answered = answer_hello(*pair.channel, soon());
    EXPECT_FALSE(answered);
    image::HelloReply reply;
    char buffer[4096];
    const ssize_t got = ::recv(pair.raw.get(), buffer, sizeof buffer, MSG_DONTWAIT);
    EXPECT_GT(got, static_cast<ssize_t>(frame_header_bytes));
    EXPECT_TRUE(reply.ParseFromArray(buffer + frame_header_bytes,
                                     static_cast<int>(got) - static_cast<int>(frame_header_bytes)));
    return {answered ? Problem{} : answered.error(), reply};
}

TEST(Handshake, AnotherMajorVersionIsRefusedEvenWithFieldsThatWeDoNotKnow) {
    image::Hello hello = good_hello();
    hello.set_major(protocol_major + 1);
    const auto [problem, reply] = refused_hello(hello.SerializeAsString() + "\xfa\x01\x01x");
    expect_refused(problem, "speaks version 2.0");
    EXPECT_EQ(reply.major(), protocol_major);
    EXPECT_EQ(reply.problems_size(), 1);
}

TEST(Handshake, AnotherMinorVersionIsFine) {
    ChannelAndPeer pair(Side::destination);
    image::Hello hello = good_hello();
    hello.set_minor(protocol_minor + 7);
    const std::string bytes = frame_of(FrameType::hello, hello.SerializeAsString());
    ASSERT_TRUE(write_all(pair.raw.get(), bytes.data(), bytes.size()));
    EXPECT_EQ(answer_hello(*pair.channel, soon())->peer_minor, protocol_minor + 7);
}

TEST(Handshake, RequiredFeaturesThatWeDoNotKnowAreRefused) {
    image::Hello hello = good_hello();
    hello.set_required_features(1ull << 40);
    expect_refused(refused_hello(hello.SerializeAsString()).first, "requires protocol features 0x10000000000");
}

TEST(Handshake, AnIdThatIsNoUuidOrAnUnknownRoleIsRefused) {
    image::Hello hello = good_hello();
    hello.set_migration_id("../../etc/passwd");
    expect_refused(refused_hello(hello.SerializeAsString()).first, "no UUID");
    hello = good_hello();
    hello.set_role(static_cast<image::Role>(77));
    expect_refused(refused_hello(hello.SerializeAsString()).first, "unknown value");
    hello.set_role(image::ROLE_UNKNOWN);
    expect_refused(refused_hello(hello.SerializeAsString()).first, "what the connection is for");
}

TEST(Handshake, ASourceNoticesAPeerOfAnotherVersionOrNoGodwit) {
    image::HelloReply reply;
    reply.set_major(9);
    for (const auto& [bytes, part] :
         {std::pair<std::string, std::string>{frame_of(FrameType::hello_reply, reply.SerializeAsString()),
                                              "speaks version 9.0"},
          {"HTTP/1.1 400 Bad Request\r\n\r\n", "does not speak godwit's protocol"}}) {
        ChannelAndPeer pair(Side::source);
        ASSERT_TRUE(write_all(pair.raw.get(), bytes.data(), bytes.size()));
        const auto said = say_hello(*pair.channel, image::ROLE_CONTROL, id, 0, soon());
        ASSERT_FALSE(said);
        expect_refused(said.error(), part);
    }
}

TEST(Channel, GarbageIsNotGodwit) {
    expect_refused(first_bytes("GET / HTTP/1.1\r\nHost: somewhere\r\n\r\n"), "does not speak godwit's protocol");
    const Problem tls = first_bytes(std::string("\x16\x03\x01", 3) + std::string(100, '\0'));
    EXPECT_NE(tls.hint.find("TLS"), std::string::npos) << tls.hint;
}

TEST(Channel, ATruncatedFrameIsAnEndAndNoSuccess) {
    const std::string whole = frame_of(FrameType::hello, good_hello().SerializeAsString());
    for (size_t size = 0; size < whole.size(); ++size)
        expect_refused(first_bytes(whole.substr(0, size)), "closed the connection");
}

TEST(Channel, EveryFlippedBitIsNoticed) {
    const std::string whole = frame_of(FrameType::hello, good_hello().SerializeAsString());
    for (size_t bit = 0; bit < whole.size() * 8; ++bit) {
        std::string flipped = whole;
        flipped[bit / 8] = static_cast<char>(flipped[bit / 8] ^ (1 << (bit % 8)));
        EXPECT_EQ(first_bytes(flipped).code, ExitCode::peer) << "bit " << bit;
    }
    std::string flipped = whole;
    flipped.back() = static_cast<char>(flipped.back() ^ 1);
    expect_refused(first_bytes(flipped), "wrong checksum");
}

TEST(Channel, ALengthAboveTheCapIsRefusedByItsHeader) {
    FrameHeaderBytes header = encode(FrameHeader{FrameType::hello, max_hello_bytes + 1, 0, 0});
    expect_refused(first_bytes({reinterpret_cast<char*>(header.data()), header.size()}), "4096 are allowed");
    header = encode(FrameHeader{FrameType::plan, max_message_bytes + 1, 0, 0});
    expect_refused(first_bytes({reinterpret_cast<char*>(header.data()), header.size()}), "are allowed");
}

TEST(Channel, AnUnknownTypeAWrongNumberAndFlagsAreRefused) {
    expect_refused(first_bytes(frame_of(static_cast<FrameType>(999), "x")), "unknown type 999");
    expect_refused(first_bytes(frame_of(FrameType::hello, "x", 5)), "number 5 where 0 comes next");
    std::string flags = frame_of(FrameType::hello, "x");
    flags[6] = 1;
    expect_refused(first_bytes(flags), "unknown flags");
}

TEST(Channel, AFrameOutOfPhaseNamesFrameAndPhase) {
    expect_refused(first_bytes(frame_of(FrameType::go, "")), "a go frame from the source in phase hello");
    ChannelPair pair;
    const Greetings greetings(pair, image::ROLE_CONTROL);
    ASSERT_TRUE(greetings.source);
    const auto sent = pair.source->send(FrameType::go, image::Commit());
    ASSERT_FALSE(sent);
    EXPECT_NE(sent.error().what.find("a go frame from the source in phase plan"), std::string::npos)
        << sent.error().what;
}

TEST(Channel, AnUnknownFieldIsRefusedAtAnyDepth) {
    image::Trouble inner;
    inner.set_what("x");
    image::Troubles outer;
    const std::string unknown = "\xfa\x01\x01x";  // field 31, one byte
    EXPECT_TRUE(parse_strictly(inner.SerializeAsString(), inner));
    EXPECT_FALSE(parse_strictly(inner.SerializeAsString() + unknown, inner));
    const std::string nested = inner.SerializeAsString() + unknown;
    const auto refused = parse_strictly(std::string("\x0a") + static_cast<char>(nested.size()) + nested, outer);
    ASSERT_FALSE(refused);
    expect_refused(refused.error(), "unknown field 31");
}

TEST(Channel, AnUnknownEnumValueAndABrokenMessageAreRefused) {
    image::Layout layout, parsed;
    layout.add_mappings()->set_kind(static_cast<image::MappingKind>(99));
    expect_refused(parse_strictly(layout.SerializeAsString(), parsed).error(), "unknown value");
    expect_refused(parse_strictly("\xff\xff\xff", parsed).error(), "does not parse");
}

TEST(Channel, AWholeMigrationGoesThroughItsPhases) {
    ChannelPair pair;
    ASSERT_TRUE(Greetings(pair, image::ROLE_CONTROL).source);
    const auto go = [&]<class Message>(Channel& from, Channel& to, FrameType type, Message message) {
        EXPECT_TRUE(from.send(type, message)) << name_of(type);
        EXPECT_TRUE(to.expect(type, message, soon())) << name_of(type);
    };
    Channel &s = *pair.source, &d = *pair.destination;
    go(s, d, FrameType::plan, image::Plan());
    go(d, s, FrameType::plan_reply, image::PlanReply());
    go(s, d, FrameType::layout, image::Layout());
    go(s, d, FrameType::round_end, image::RoundEnd());
    EXPECT_TRUE(d.keep_alive());
    go(d, s, FrameType::round_reply, image::RoundReply());
    go(s, d, FrameType::process, image::Process());
    go(s, d, FrameType::files, image::Troubles());
    go(s, d, FrameType::state_end, image::Commit());
    go(d, s, FrameType::ready, image::Commit());
    go(s, d, FrameType::go, image::Commit());
    EXPECT_FALSE(d.send(FrameType::abort, image::Troubles()));
    go(d, s, FrameType::running, image::Commit());
    go(s, d, FrameType::done, image::Commit());
    go(d, s, FrameType::done_reply, image::Commit());
    EXPECT_EQ(s.guard().phase(), Phase::over);
    EXPECT_EQ(s.counters().bytes_sent, d.counters().bytes_received);
    EXPECT_EQ(s.counters().frames_sent, d.counters().frames_received);
}

TEST(Channel, AnAbortBecomesItsProblems) {
    ChannelPair pair;
    ASSERT_TRUE(Greetings(pair, image::ROLE_CONTROL).source);
    ASSERT_TRUE(pair.source->send(FrameType::plan, image::Plan()));
    std::thread aborting([&] {
        const Problem problems[] = {{"pid 7 is in use", "end it", ExitCode::unsupported, 0},
                                    {"two\nlines\x1b[2J", {}, ExitCode::uncertain, 0}};
        pair.destination->abort(problems, soon());
    });
    image::PlanReply reply;
    const auto received = pair.source->expect(FrameType::plan_reply, reply, soon());
    aborting.join();
    ASSERT_FALSE(received);
    EXPECT_EQ(received.error().what, "pid 7 is in use");
    EXPECT_EQ(received.error().hint, "end it");
    EXPECT_EQ(received.error().code, ExitCode::unsupported);
    ASSERT_EQ(pair.source->troubles().size(), 2u);
    EXPECT_EQ(pair.source->troubles()[1].what, "two\\x0alines\\x1b[2J");
    EXPECT_EQ(pair.source->troubles()[1].code, ExitCode::peer);  // no peer makes us say `uncertain`
}

TEST(Channel, ASendThatBreaksTellsWhyThePeerAborted) {
    ChannelPair pair;
    ASSERT_TRUE(Greetings(pair, image::ROLE_CONTROL).source);
    const Problem problem{"disk full", {}, ExitCode::failed, 0};
    pair.destination->abort({&problem, 1}, Deadline::in(milliseconds(1)));
    pair.destination.reset();
    const auto sent = pair.source->send(FrameType::plan, image::Plan());
    ASSERT_FALSE(sent);
    EXPECT_EQ(sent.error().what, "disk full");
}

TEST(Channel, KeepAliveEndsSilenceButMovesNoDeadline) {
    ChannelPair pair;
    ASSERT_TRUE(Greetings(pair, image::ROLE_CONTROL).source);
    pair.source->set_idle_limit(milliseconds(300));
    std::atomic<bool> over = false;
    std::thread busy([&] {
        while (!over) {
            (void)pair.destination->keep_alive();
            std::this_thread::sleep_for(milliseconds(20));
        }
    });
    const auto start = Clock::now();
    image::PlanReply reply;
    ASSERT_TRUE(pair.source->send(FrameType::plan, image::Plan()));
    EXPECT_FALSE(pair.source->expect(FrameType::plan_reply, reply, Deadline::in(milliseconds(900))));
    const auto waited = Clock::now() - start;
    over = true;
    busy.join();
    EXPECT_GE(waited, milliseconds(850));
}

TEST(Channel, SilenceEndsAtTheIdleLimit) {
    ChannelPair pair;
    pair.destination->set_idle_limit(milliseconds(50));
    const auto start = Clock::now();
    EXPECT_FALSE(pair.destination->receive(soon()));
    EXPECT_LT(Clock::now() - start, milliseconds(2000));
}

struct DataPair : ChannelPair {
    DataPair() { EXPECT_TRUE(Greetings(*this, image::ROLE_DATA).source); }
    DataFrame frame;
};

std::string text_of(std::span<const std::byte> bytes) {
    return std::string(reinterpret_cast<const char*>(bytes.data()), bytes.size());
}

TEST(Channel, PagesArriveAsTheyWereSent) {
    DataPair pair;
    std::string a(4096, 'a'), b(8192, 'b');
    const iovec content[] = {{a.data(), a.size()}, {b.data(), b.size()}};
    const PageRange ranges[] = {{0x7f0000001000, 4096}, {0x7f0000002000, 1ull << 30, true}, {0x7fff00000000, 8192}};
    ASSERT_TRUE(pair.source->send_pages({42, 0, 0, 12288}, ranges, content));
    const PageRange zeros{0, 1ull << 40, true};
    ASSERT_TRUE(pair.source->send_pages({0, 99}, {&zeros, 1}, {}));
    EXPECT_EQ(*pair.destination->receive_data(pair.frame, soon()), FrameType::pages);
    EXPECT_EQ(pair.frame.header.pid, 42u);
    ASSERT_EQ(pair.frame.ranges.size(), 3u);
    for (size_t i = 0; i < 3; ++i) {
        EXPECT_EQ(pair.frame.ranges[i].address, ranges[i].address);
        EXPECT_EQ(pair.frame.ranges[i].length, ranges[i].length);
        EXPECT_EQ(pair.frame.ranges[i].zero, ranges[i].zero);
    }
    EXPECT_EQ(text_of(std::span(pair.frame.content).first(12288)), a + b);
    EXPECT_EQ(*pair.destination->receive_data(pair.frame, soon()), FrameType::pages);
    EXPECT_EQ(pair.frame.header.object, 99u);
    EXPECT_EQ(pair.frame.header.content_bytes, 0u);
}

TEST(Channel, RoundsBeginOnDataConnections) {
    DataPair pair;
    image::RoundBegin begin;
    begin.set_round(7);
    ASSERT_TRUE(pair.source->send(FrameType::round_begin, begin));
    EXPECT_EQ(*pair.destination->receive_data(pair.frame, soon()), FrameType::round_begin);
    EXPECT_EQ(pair.frame.round, 7u);
}

TEST(Channel, CompressedPagesAreUnpacked) {
    DataPair pair;
    std::string raw(max_page_bytes, 'r'), packed(raw.size(), '\0');
    packed.resize(static_cast<size_t>(::LZ4_compress_default(raw.data(), packed.data(), static_cast<int>(raw.size()), static_cast<int>(packed.size()))));
    const PageRange range{0x1000, raw.size()};
    const iovec content{packed.data(), packed.size()};
    ASSERT_TRUE(pair.source->send_pages({1, 0, 0, max_page_bytes, true}, {&range, 1}, {&content, 1}));
    EXPECT_EQ(*pair.destination->receive_data(pair.frame, soon()), FrameType::pages);
    EXPECT_EQ(text_of(pair.frame.content), raw);
}

TEST(Channel, RangesThatAreNoneAreNotEvenSent) {
    DataPair pair;
    std::string page(4096, 'a'), much(2 * max_page_bytes, 'b');
    const auto refused = [&](PageHeader header, std::vector<PageRange> ranges, size_t bytes = 4096) {
        header.content_bytes = static_cast<uint32_t>(bytes);
        const iovec content{much.data(), bytes};
        const auto sent = pair.source->send_pages(header, ranges, {&content, 1});
        return !sent && sent.error().code == ExitCode::failed;
    };
    EXPECT_TRUE(refused({1, 1}, {{0x1000, 4096}}));
    EXPECT_TRUE(refused({0, 0}, {{0x1000, 4096}}));
    EXPECT_TRUE(refused({1, 0}, {}, 0));
    EXPECT_TRUE(refused({1, 0}, std::vector<PageRange>(max_page_ranges + 1, PageRange{0, 4096, true}), 0));
    EXPECT_TRUE(refused({1, 0}, {{0x1001, 4096}}));
    EXPECT_TRUE(refused({1, 0}, {{0x1000, 8192}}));
    EXPECT_TRUE(refused({1, 0}, {{0x1000, 0}}));
    EXPECT_TRUE(refused({1, 0}, {{~0xfffull, 8192, true}}, 0));
    EXPECT_TRUE(refused({1, 0}, {{0x2000, 4096}, {0x1000, 4096}}, 8192));
    EXPECT_TRUE(refused({1, 0}, {{0x1000, 8192, true}, {0x2000, 4096}}));
    EXPECT_TRUE(refused({1, 0}, {{0, much.size()}}, much.size()));
    // A peer that does not know compressed frames is sent none.
    pair.source->set_features(0);
    EXPECT_TRUE(refused({1, 0, 0, 0, true}, {{0x1000, 8192}}));
}

// What the destination says of this page frame of a peer that knows `features`.
Problem refused_pages(const PageHeader& header, std::vector<PageRange> ranges, const std::string& content, uint64_t features = feature_lz4) {
    ChannelAndPeer pair(Side::destination);
    image::Hello hello = good_hello();
    hello.set_role(image::ROLE_DATA);
    hello.set_features(features);
    const std::string bytes = frame_of(FrameType::hello, hello.SerializeAsString()) +
                              frame_of(FrameType::pages, text_of(encode(header)) + text_of(encode(ranges)) + content, 1);
    std::thread sending([&] { EXPECT_TRUE(write_all(pair.raw.get(), bytes.data(), bytes.size())); });
    EXPECT_TRUE(answer_hello(*pair.channel, soon()));
    DataFrame out;
    auto received = pair.channel->receive_data(out, soon());
    sending.join();
    return received ? Problem{} : received.error();
}

TEST(Channel, PageFramesOfAHostilePeerAreRefused) {
    const std::string page(4096, 'x'), two(8192, 'x');
    EXPECT_EQ(refused_pages({1, 0, 1, 4096}, {{0x1000, 4096}}, page).what, "");
    expect_refused(refused_pages({1, 0, 1, 4096}, {{0x1000, 4096}}, page.substr(1)), "4095 bytes of content");
    expect_refused(refused_pages({1, 0, 1, 0}, {{0x1000, 4096, true}}, "x"), "1 bytes of content");
    expect_refused(refused_pages({1, 0, 1, 0}, {{~0xfffull, 8192, true}}, ""), "wraps around");
    expect_refused(refused_pages({1, 0, 2, 8192}, {{0x1000, 8192}, {0x2000, 4096}}, two), "before the end of the range before");
    expect_refused(refused_pages({1, 0, 2, 8192}, {{0x3000, 4096}, {0x2000, 4096}}, two), "before the end of the range before");
    expect_refused(refused_pages({1, 0, 1, 4096}, {{0x1000, 1ull << 63}}, page), "more than the content");
    expect_refused(refused_pages({1, 0, 1, 8192}, {{0x1000, 4096}}, two), "8192 bytes of content for 4096");
    expect_refused(refused_pages({1, 0, 1, 4096}, {{0x1008, 4096}}, page), "not whole pages");
    expect_refused(refused_pages({1, 0, 3, 4096}, {{0x1000, 4096}}, ""), "too short for 3 ranges");
    expect_refused(refused_pages({1, 0, 1u << 31, 4096}, {{0x1000, 4096}}, page), "ranges, 1 to");
    expect_refused(refused_pages({1, 0, 1, max_page_bytes + 4096}, {{0x1000, 4096}}, page), "are allowed");
}

TEST(Channel, CompressedPagesAreWhatTheySayOrRefused) {
    std::string raw(8192, 'r'), packed(8192, '\0');
    packed.resize(static_cast<size_t>(::LZ4_compress_default(raw.data(), packed.data(), 8192, 8192)));
    EXPECT_EQ(refused_pages({1, 0, 1, 8192, true}, {{0x1000, 8192}}, packed).what, "");
    expect_refused(refused_pages({1, 0, 1, 8192, true}, {{0x1000, 8192}}, packed, 0), "not negotiated");
    expect_refused(refused_pages({1, 0, 1, 8192, true}, {{0x1000, 8192}}, packed.substr(0, packed.size() - 3)), "does not unpack");
    expect_refused(refused_pages({1, 0, 1, 4096, true}, {{0x1000, 4096}}, packed), "does not unpack");
    expect_refused(refused_pages({1, 0, 1, 12288, true}, {{0x1000, 12288}}, packed), "does not unpack");
    expect_refused(refused_pages({1, 0, 1, 8192, true}, {{0x1000, 8192}}, std::string(100, '\xff')), "does not unpack");
    expect_refused(refused_pages({1, 0, 1, 8192, true}, {{0x1000, 8192}}, raw), "fewer than 8192");
    expect_refused(refused_pages({1, 0, 1, 8192, true}, {{0x1000, 8192}}, ""), "0 bytes of content");
    PageHeader header{1, 0, 1, 4096};
    PageHeaderBytes unknown = encode(header);
    unknown[4] = std::byte{1};
    EXPECT_FALSE(decode_page_header(unknown, page_header_bytes + page_range_bytes + 4096, page_flag_lz4));
}

}  // namespace
}  // namespace godwit
