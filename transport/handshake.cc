#include "transport/handshake.h"

#include <fmt/format.h>
#include <google/protobuf/stubs/logging.h>

#include "common/base/text.h"
#include "common/base/uuid.h"

namespace godwit {
namespace {

constexpr const char* program = "godwit " GODWIT_VERSION;
constexpr const char* same_version = "install the same version on both hosts";
constexpr milliseconds last_words{2000};  // how long a refusal is given to arrive

Failure other_version(const std::string& peer, uint32_t major, uint32_t minor, std::string_view their_program) {
    return peer_failed(fmt::format("{} speaks version {}.{} of the protocol ({}), we speak {}.{}", peer, major, minor,
                                   printable(their_program, 64), protocol_major, protocol_minor),
                       same_version);
}

// The features that both sides know.
Result<uint64_t> agree(const std::string& peer, uint64_t theirs, uint64_t required) {
    const uint64_t missing = required & ~supported_features;
    if (missing != 0)
        return peer_failed(fmt::format("{} requires protocol features {:#x}, which we do not know", peer, missing),
                           same_version);
    return theirs & supported_features;
}

// As far as any version's message goes: another major version may hold fields that we do not know.
bool parse_loosely(const std::string& body, google::protobuf::Message& message) {
    const google::protobuf::LogSilencer one_line;
    return message.ParseFromString(body);
}

// All that can be wrong with a HELLO whose bytes arrived well.
Result<Greeting> examine(Channel& channel, const std::string& body) {
    image::Hello hello;
    if (!parse_loosely(body, hello)) return peer_failed(fmt::format("{}: the HELLO does not parse", channel.peer()));
    if (hello.major() != protocol_major)
        return other_version(channel.peer(), hello.major(), hello.minor(), hello.program());
    TRY(parse_strictly(body, hello));
    Greeting greeting;
    greeting.features = TRY(agree(channel.peer(), hello.features(), hello.required_features()));
    if (hello.role() == image::ROLE_UNKNOWN)
        return peer_failed(fmt::format("{} does not say what the connection is for", channel.peer()));
    if (!is_uuid(hello.migration_id()))
        return peer_failed(fmt::format("{} names a migration \"{}\", which is no UUID", channel.peer(),
                                       printable(hello.migration_id(), 64)));
    if (hello.stream() != 0 && hello.role() != image::ROLE_DATA)
        return peer_failed(fmt::format("{} numbers a connection that is not for data", channel.peer()));
    greeting.role = hello.role();
    greeting.migration_id = hello.migration_id();
    greeting.stream = hello.stream();
    greeting.peer_minor = hello.minor();
    greeting.peer_program = printable(hello.program(), 64);
    return greeting;
}

image::HelloReply make_reply(uint64_t features) {
    image::HelloReply reply;
    reply.set_major(protocol_major);
    reply.set_minor(protocol_minor);
    reply.set_features(features);
    reply.set_program(program);
    return reply;
}

}  // namespace

Result<Greeting> say_hello(Channel& channel, image::Role role, const std::string& migration_id, uint32_t stream,
                           Deadline deadline) {
    image::Hello hello;
    hello.set_major(protocol_major);
    hello.set_minor(protocol_minor);
    hello.set_features(supported_features);
    hello.set_migration_id(migration_id);
    hello.set_role(role);
    hello.set_stream(stream);
    hello.set_program(program);
    TRY(channel.send(FrameType::hello, hello));
    channel.guard().set_role(role);

    const Frame frame = TRY(channel.receive(deadline));
    image::HelloReply reply;
    if (!parse_loosely(frame.body, reply)) {
        channel.shut_down();
        return peer_failed(fmt::format("{}: the HELLO_REPLY does not parse", channel.peer()));
    }
    if (reply.major() != protocol_major) {
        channel.shut_down();
        return other_version(channel.peer(), reply.major(), reply.minor(), reply.program());
    }
    if (auto parsed = parse_strictly(frame.body, reply); !parsed) {
        channel.shut_down();
        return Failure(std::move(parsed.error()));
    }
    if (reply.problems_size() > 0) {
        channel.shut_down();
        return Failure(from_wire(reply.problems()).front());
    }
    if ((reply.features() & ~supported_features) != 0) {
        channel.shut_down();
        return peer_failed(
            fmt::format("{} turned on features {:#x}, which we did not offer", channel.peer(), reply.features()));
    }
    channel.set_features(reply.features());
    return Greeting{role, migration_id, stream, reply.features(), reply.minor(), printable(reply.program(), 64)};
}

Result<Greeting> answer_hello(Channel& channel, Deadline deadline,
                              const std::function<Result<void>(const Greeting&)>& admit) {
    const Frame frame = TRY(channel.receive(deadline));
    auto greeting = examine(channel, frame.body);
    if (greeting) channel.guard().set_role(greeting->role);
    if (greeting && admit)
        if (auto admitted = admit(*greeting); !admitted) greeting = Failure(std::move(admitted.error()));
    if (greeting) {
        channel.set_features(greeting->features);
        TRY(channel.send(FrameType::hello_reply, make_reply(greeting->features)));
        return greeting;
    }
    image::HelloReply refusal = make_reply(0);
    to_wire({&greeting.error(), 1}, *refusal.mutable_problems());
    if (channel.send(FrameType::hello_reply, refusal)) channel.finish(Deadline::in(last_words));
    channel.shut_down();
    return greeting;
}

}  // namespace godwit
