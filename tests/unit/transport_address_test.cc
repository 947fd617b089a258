#include <gtest/gtest.h>

#include "transport/address.h"

namespace godwit {
namespace {

TEST(Address, NumbersNamesAndPathsComeBackAsTheyWent) {
    for (const char* text :
         {"10.0.0.2:7467", "[::1]:7467", "host.example:1", "unix:/run/godwit-peer.sock", "[fe80::1%eth0]:7467"}) {
        const auto address = parse_address(text);
        ASSERT_TRUE(address) << text << ": " << address.error().what;
        EXPECT_EQ(address->text(), text);
    }
    EXPECT_EQ(parse_address("[::1]:7467")->host, "::1");
}

TEST(Address, WhatIsNoneIsAUsageErrorWithAHint) {
    for (const std::string& text :
         {std::string(), std::string("10.0.0.2"), std::string("10.0.0.2:"), std::string(":7467"),
          std::string("host:65536"), std::string("host:-1"), std::string("host:12x"), std::string("::1:7467"),
          std::string("[::1]7467"), std::string("[host]:1"), std::string("unix:"), std::string("unix:relative"),
          std::string("a b:1"), "unix:/" + std::string(200, 'x'), std::string("\x1b[2J:1")}) {
        const auto address = parse_address(text);
        ASSERT_FALSE(address) << text;
        EXPECT_EQ(address.error().code, ExitCode::usage) << text;
        EXPECT_FALSE(address.error().hint.empty()) << text;
    }
}

TEST(Address, TcpNeedsEitherKeysOrInsecure) {
    const Address tcp = *parse_address("host:1"), local = *parse_address("unix:/x");
    EXPECT_EQ(choose_security(tcp, "", false).error().code, ExitCode::usage);
    EXPECT_EQ(choose_security(tcp, "/keys", true).error().code, ExitCode::usage);
    EXPECT_EQ(choose_security(tcp, "/keys", false)->kind, Security::Kind::tls);
    EXPECT_EQ(choose_security(tcp, "", true)->kind, Security::Kind::insecure);
    EXPECT_EQ(choose_security(local, "", false)->kind, Security::Kind::unix_socket);
}

}  // namespace
}  // namespace godwit
