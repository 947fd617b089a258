#include <gtest/gtest.h>
#include <sys/stat.h>

#include <thread>

#include "common/base/file.h"
#include "tests/support/link_pair.h"
#include "transport/keys.h"
#include "transport/listener.h"

namespace godwit {
namespace {

iovec piece(const std::string& text) { return {const_cast<char*>(text.data()), text.size()}; }

Result<void> say(Link& link, const std::string& text) {
    const iovec one = piece(text);
    return link.send({&one, 1});
}

Result<std::string> hear(Link& link, size_t size, Deadline deadline = soon()) {
    std::string text(size, '\0');
    TRY(link.receive(text.data(), size, deadline));
    return text;
}

// One key pair for all tests of this process.
const TemporaryFolder& keys() {
    static const TemporaryFolder folder;
    static const bool made = init_keys(folder / "pair").has_value();
    EXPECT_TRUE(made);
    return folder;
}

Security tls(const std::string& name) { return {Security::Kind::tls, keys() / ("pair/" + name)}; }
const Security insecure{Security::Kind::insecure, {}};

// Connects with one security to a listener with another; both results.
struct Meeting {
    Result<std::unique_ptr<Link>> server = fail("not accepted");
    Result<std::unique_ptr<Link>> client = fail("not connected");

    Meeting(const Security& at_server, const Security& at_client) {
        auto listener = Listener::open(*parse_address("127.0.0.1:0"), at_server);
        if (!listener) {
            ADD_FAILURE() << listener.error().what;
            return;
        }
        std::thread accepting([&] {
            auto pending = listener->accept(soon());
            if (pending && *pending) server = (*pending)->finish(soon());
        });
        Address address = *parse_address("127.0.0.1:1");
        address.port = listener->port();
        client = connect_link(address, at_client, soon());
        // A plain client says something, since a TLS server waits for it.
        if (client && at_client.kind == Security::Kind::insecure && at_server.kind == Security::Kind::tls)
            (void)say(**client, std::string(100, 'x'));
        accepting.join();
    }
};

void expect_conversation(Link& a, Link& b) {
    const std::string large(3'000'000, 'y');
    std::thread sender([&] {
        const std::string head = "head", empty;
        const iovec pieces[] = {piece(head), piece(empty), piece(large), piece(head)};
        EXPECT_TRUE(a.send(pieces));
    });
    EXPECT_TRUE(*b.wait_readable(soon()));
    EXPECT_EQ(hear(b, 2).value(), "he");
    EXPECT_EQ(hear(b, 2).value(), "ad");
    EXPECT_TRUE(hear(b, large.size()).value() == large);
    EXPECT_EQ(hear(b, 4).value(), "head");
    sender.join();
    EXPECT_FALSE(*b.wait_readable(Deadline::in(milliseconds(20))));
    EXPECT_TRUE(say(b, "back"));
    EXPECT_EQ(hear(a, 4).value(), "back");
}

TEST(Link, BytesArriveInOrderOverPlainSockets) {
    Meeting m(insecure, insecure);
    ASSERT_TRUE(m.server && m.client);
    expect_conversation(**m.client, **m.server);
}

TEST(Link, BytesArriveInOrderOverTls) {
    Meeting m(tls("destination"), tls("source"));
    ASSERT_TRUE(m.server) << m.server.error().what;
    ASSERT_TRUE(m.client) << m.client.error().what;
    expect_conversation(**m.client, **m.server);
    expect_conversation(**m.server, **m.client);
}

TEST(Link, TheDestinationMayConnectToTheSource) {
    Meeting m(tls("source"), tls("destination"));
    EXPECT_TRUE(m.server && m.client);
}

TEST(Link, EndOfStreamIsAProblemOfThePeer) {
    for (const bool secure : {false, true}) {
        Meeting m(secure ? tls("destination") : insecure, secure ? tls("source") : insecure);
        ASSERT_TRUE(m.server && m.client);
        m.client->reset();
        const auto heard = hear(**m.server, 1);
        ASSERT_FALSE(heard);
        EXPECT_EQ(heard.error().code, ExitCode::peer);
        EXPECT_NE(heard.error().what.find("closed the connection"), std::string::npos) << heard.error().what;
        (void)say(**m.server, "x");
        (void)say(**m.server, "x");
        const auto sent = say(**m.server, "SIGPIPE would have ended the test");
        ASSERT_FALSE(sent);
        EXPECT_EQ(sent.error().code, ExitCode::peer);
    }
}

TEST(Link, ASilentPeerIsGivenUpAtTheDeadline) {
    for (const bool secure : {false, true}) {
        Meeting m(secure ? tls("destination") : insecure, secure ? tls("source") : insecure);
        ASSERT_TRUE(m.server && m.client);
        const auto heard = hear(**m.server, 1, Deadline::in(milliseconds(30)));
        ASSERT_FALSE(heard);
        EXPECT_EQ(heard.error().code, ExitCode::peer);
    }
}

TEST(Link, APeerThatReadsNothingEndsTheSend) {
    for (const bool secure : {false, true}) {
        Meeting m(secure ? tls("destination") : insecure, secure ? tls("source") : insecure);
        ASSERT_TRUE(m.server && m.client);
        (*m.client)->set_send_limit(milliseconds(100));
        const auto sent = say(**m.client, std::string(64 << 20, 'x'));
        ASSERT_FALSE(sent);
        EXPECT_EQ(sent.error().code, ExitCode::peer);
    }
}

TEST(Link, AnotherThreadCanShutItDown) {
    for (const bool secure : {false, true}) {
        Meeting m(secure ? tls("destination") : insecure, secure ? tls("source") : insecure);
        ASSERT_TRUE(m.server && m.client);
        std::thread other([&] { (*m.server)->shut_down(); });
        EXPECT_FALSE(hear(**m.server, 1));
        EXPECT_FALSE(hear(**m.client, 1));
        other.join();
    }
}

TEST(Link, ATlsServerRefusesAPlainClient) {
    Meeting m(tls("destination"), insecure);
    ASSERT_FALSE(m.server);
    EXPECT_EQ(m.server.error().code, ExitCode::peer);
    EXPECT_NE(m.server.error().what.find("does not speak TLS"), std::string::npos) << m.server.error().what;
}

TEST(Link, ATlsClientNoticesAPlainServer) {
    auto listener = Listener::open(*parse_address("127.0.0.1:0"), insecure);
    ASSERT_TRUE(listener);
    std::thread accepting([&] {
        auto link = (*listener->accept(soon()))->finish(soon());
        EXPECT_TRUE(say(**link, "220 this is a mail server\r\n"));
        (*link)->finish_sending();
        (*link)->drain(soon());
    });
    Address address = *parse_address("127.0.0.1:1");
    address.port = listener->port();
    const auto link = connect_link(address, tls("source"), soon());
    accepting.join();
    ASSERT_FALSE(link);
    EXPECT_EQ(link.error().code, ExitCode::peer);
    EXPECT_NE(link.error().what.find("does not speak TLS"), std::string::npos) << link.error().what;
}

TEST(Link, ACertificateOfAnotherCaIsRefusedAtBothEnds) {
    TemporaryFolder other;
    ASSERT_TRUE(init_keys(other / "pair"));
    Meeting m(tls("destination"), {Security::Kind::tls, other / "pair/source"});
    ASSERT_FALSE(m.client);
    EXPECT_EQ(m.client.error().code, ExitCode::peer);
    EXPECT_NE(m.client.error().what.find("certificate of"), std::string::npos) << m.client.error().what;
    ASSERT_FALSE(m.server);
    EXPECT_NE(m.server.error().what.find("refuses our certificate"), std::string::npos) << m.server.error().what;
}

// A client that trusts our CA but has a certificate of another: only the server can refuse it.
TEST(Link, AClientWithAForeignCertificateLearnsWhy) {
    TemporaryFolder other;
    ASSERT_TRUE(init_keys(other / "pair"));
    const std::string dir = other / "pair/source";
    const std::string theirs = read_file(dir + "/ca.pem").value(),
                      ours = read_file(keys() / "pair/source/ca.pem").value();
    ASSERT_TRUE(replace_file(dir + "/ca.pem", ours + theirs));  // both are trusted, so that its own check passes
    Meeting m(tls("destination"), {Security::Kind::tls, dir});
    ASSERT_FALSE(m.server);
    EXPECT_NE(m.server.error().what.find("is not valid"), std::string::npos) << m.server.error().what;
    ASSERT_TRUE(m.client) << m.client.error().what;
    const auto heard = hear(**m.client, 1);
    ASSERT_FALSE(heard);
    EXPECT_EQ(heard.error().code, ExitCode::peer);
    EXPECT_NE(heard.error().what.find("refuses our certificate"), std::string::npos) << heard.error().what;
}

TEST(Link, ADeadAddressIsNamedWithAHint) {
    auto listener = Listener::open(*parse_address("127.0.0.1:0"), insecure);
    Address address = *parse_address("127.0.0.1:1");
    address.port = listener->port();
    { const Listener closed = std::move(*listener); }
    const auto link = connect_link(address, insecure, soon());
    ASSERT_FALSE(link);
    EXPECT_EQ(link.error().code, ExitCode::peer);
    EXPECT_NE(link.error().what.find(address.text()), std::string::npos);
    EXPECT_NE(link.error().hint.find("godwit serve"), std::string::npos);
    const auto nameless = connect_link(*parse_address("no-such-host.invalid:1"), insecure, soon());
    ASSERT_FALSE(nameless);
    EXPECT_EQ(nameless.error().code, ExitCode::peer);
}

TEST(Listener, AnAddressInUseIsSaidSo) {
    auto listener = Listener::open(*parse_address("127.0.0.1:0"), insecure);
    ASSERT_TRUE(listener);
    Address address = *parse_address("127.0.0.1:1");
    address.port = listener->port();
    const auto second = Listener::open(address, insecure);
    ASSERT_FALSE(second);
    EXPECT_EQ(second.error().error, EADDRINUSE);
    EXPECT_FALSE(second.error().hint.empty());
}

TEST(Listener, ASlowPeerDoesNotHoldUpTheNext) {
    auto listener = Listener::open(*parse_address("127.0.0.1:0"), tls("destination"));
    ASSERT_TRUE(listener);
    Address address = *parse_address("127.0.0.1:1");
    address.port = listener->port();
    const auto silent = connect_link(address, insecure, soon());
    ASSERT_TRUE(silent);
    auto first = listener->accept(soon());
    ASSERT_TRUE(first && *first);
    std::thread client([&] { EXPECT_TRUE(connect_link(address, tls("source"), soon())); });
    auto second = listener->accept(soon());
    ASSERT_TRUE(second && *second);
    EXPECT_TRUE((*second)->finish(soon()));
    client.join();
    const auto slow = (*first)->finish(Deadline::in(milliseconds(50)));
    ASSERT_FALSE(slow);
    EXPECT_EQ(slow.error().code, ExitCode::peer);
}

TEST(Listener, AUnixSocketIsForRootAlone) {
    TemporaryFolder folder;
    const Address address = *parse_address("unix:" + folder / "socket");
    const Security local{Security::Kind::unix_socket, {}};
    {
        auto listener = Listener::open(address, local);
        ASSERT_TRUE(listener) << listener.error().what;
        struct stat status {};
        ASSERT_EQ(::stat(address.path.c_str(), &status), 0);
        EXPECT_EQ(status.st_mode & 0777, 0600u);
        const auto again = Listener::open(address, local);
        ASSERT_FALSE(again);
        EXPECT_EQ(again.error().error, EADDRINUSE);
        ASSERT_TRUE(*listener->accept(soon()));  // the second listener's question whether the first is alive
        auto client = connect_link(address, local, soon());
        auto pending = listener->accept(soon());
        ASSERT_TRUE(pending && *pending);
        auto server = (*pending)->finish(soon());
        if (::geteuid() == 0) {
            ASSERT_TRUE(client && server);
            expect_conversation(**client, **server);
        } else {
            EXPECT_FALSE(client);
            EXPECT_FALSE(server);
        }
    }
    EXPECT_NE(::access(address.path.c_str(), F_OK), 0);
}

TEST(Listener, AUnixSocketThatADeadListenerLeftIsReplaced) {
    TemporaryFolder folder;
    const Address address = *parse_address("unix:" + folder / "socket");
    const Security local{Security::Kind::unix_socket, {}};
    auto first = Listener::open(address, local);
    ASSERT_TRUE(first);
    ASSERT_EQ(::rename(address.path.c_str(), (address.path + ".kept").c_str()), 0);
    { const Listener gone = std::move(*first); }
    ASSERT_EQ(::rename((address.path + ".kept").c_str(), address.path.c_str()), 0);
    EXPECT_TRUE(Listener::open(address, local));
}

TEST(Keys, AreNeverOverwrittenAndPrivate) {
    TemporaryFolder folder;
    ASSERT_TRUE(init_keys(folder / "pair"));
    struct stat status {};
    ASSERT_EQ(::stat((folder / "pair/source/key.pem").c_str(), &status), 0);
    EXPECT_EQ(status.st_mode & 0777, 0600u);
    ASSERT_EQ(::stat((folder / "pair/destination").c_str(), &status), 0);
    EXPECT_EQ(status.st_mode & 0777, 0700u);
    const auto again = init_keys(folder / "pair");
    ASSERT_FALSE(again);
    EXPECT_EQ(again.error().code, ExitCode::usage);
    EXPECT_TRUE(check_keys(folder / "pair/source"));
}

TEST(Keys, WhatIsMissingForeignOrPublicIsNamed) {
    TemporaryFolder folder;
    ASSERT_TRUE(init_keys(folder / "a"));
    ASSERT_TRUE(init_keys(folder / "b"));
    EXPECT_NE(check_keys(folder / "nowhere").error().what.find("key.pem"), std::string::npos);
    ASSERT_EQ(::chmod((folder / "a/source/key.pem").c_str(), 0644), 0);
    EXPECT_EQ(check_keys(folder / "a/source").error().code, ExitCode::usage);
    const std::string foreign = read_file(folder / "b/source/ca.pem").value();
    ASSERT_TRUE(replace_file(folder / "a/destination/ca.pem", foreign));
    const auto checked = check_keys(folder / "a/destination");
    ASSERT_FALSE(checked);
    EXPECT_NE(checked.error().what.find("cert.pem"), std::string::npos) << checked.error().what;
}

}  // namespace
}  // namespace godwit
