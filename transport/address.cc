#include "transport/address.h"

#include <fmt/format.h>
#include <sys/un.h>

#include <charconv>

#include "common/base/text.h"

namespace godwit {
namespace {

constexpr std::string_view unix_prefix = "unix:";
constexpr const char* forms = "write it as HOST:PORT, [IPV6]:PORT or unix:/PATH";

Failure misspelt(std::string_view text, std::string_view why) {
    return fail(fmt::format("\"{}\" is not an address: {}", printable(text), why), forms, ExitCode::usage);
}

Result<uint16_t> parse_port(std::string_view all, std::string_view text) {
    uint16_t port = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), port);
    if (text.empty() || error != std::errc() || end != text.data() + text.size())
        return misspelt(all, fmt::format("\"{}\" is not a port from 0 to 65535", printable(text)));
    return port;
}

bool is_host_name(std::string_view host) {
    if (host.empty() || host.size() > 253) return false;
    for (const char c : host) {
        const bool fine = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '.' ||
                          c == '-' || c == '_';
        if (!fine) return false;
    }
    return host.front() != '-';
}

bool is_ipv6_text(std::string_view host) {  // with an optional %zone; getaddrinfo has the last word
    const std::string_view number = host.substr(0, host.find('%'));
    return number.find(':') != number.npos && number.find_first_not_of("0123456789abcdefABCDEF:.") == number.npos &&
           host.size() < 64;
}

Result<Address> parse_unix(std::string_view text) {
    const std::string_view path = text.substr(unix_prefix.size());
    if (path.empty() || path.front() != '/') return misspelt(text, "the path of a unix socket begins with /");
    if (path.find('\0') != path.npos) return misspelt(text, "the path holds a NUL");
    if (path.size() >= sizeof(sockaddr_un::sun_path))
        return misspelt(text,
                        fmt::format("a unix socket's path has at most {} bytes", sizeof(sockaddr_un::sun_path) - 1));
    Address address;
    address.kind = Address::Kind::unix_socket;
    address.path = std::string(path);
    return address;
}

}  // namespace

std::string Address::text() const {
    if (kind == Kind::unix_socket) return std::string(unix_prefix) + path;
    return host.find(':') == std::string::npos ? fmt::format("{}:{}", host, port) : fmt::format("[{}]:{}", host, port);
}

Result<Address> parse_address(std::string_view text) {
    if (text.substr(0, unix_prefix.size()) == unix_prefix) return parse_unix(text);
    Address address;
    std::string_view port;
    if (!text.empty() && text.front() == '[') {
        const size_t end = text.find("]:");
        if (end == text.npos) return misspelt(text, "no ]:PORT at the end");
        address.host = std::string(text.substr(1, end - 1));
        port = text.substr(end + 2);
        if (!is_ipv6_text(address.host)) return misspelt(text, "no IPv6 address between the brackets");
    } else {
        const size_t colon = text.find(':');
        if (colon == text.npos) return misspelt(text, "no port");
        if (text.find(':', colon + 1) != text.npos) return misspelt(text, "an IPv6 address goes in brackets");
        address.host = std::string(text.substr(0, colon));
        port = text.substr(colon + 1);
        if (!is_host_name(address.host)) return misspelt(text, "no host name or number before the colon");
    }
    address.port = TRY(parse_port(text, port));
    return address;
}

Result<Security> choose_security(const Address& address, std::string_view keys_dir, bool insecure) {
    Security security;
    if (address.kind == Address::Kind::unix_socket) {
        security.kind = Security::Kind::unix_socket;
        return security;
    }
    if (insecure && !keys_dir.empty())
        return fail("--keys and --insecure exclude each other", "leave out --insecure", ExitCode::usage);
    if (!insecure && keys_dir.empty())
        return fail(fmt::format("no keys for {}", address.text()),
                    "make them with `godwit keys init DIR` and give each host its folder with --keys", ExitCode::usage);
    security.kind = insecure ? Security::Kind::insecure : Security::Kind::tls;
    security.keys_dir = std::string(keys_dir);
    return security;
}

}  // namespace godwit
