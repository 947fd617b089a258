// TLS 1.3 with a certificate at both ends. The only source that includes asio.
//
// Each operation runs an io_context of the Link's own until it is done or its deadline has passed: asio gives the
// time limits and the TLS engine, no thread and no callback leaves this file.
#include <fmt/format.h>
#include <openssl/ssl.h>
#include <openssl/sslerr.h>
#include <openssl/x509_vfy.h>
#include <sys/stat.h>

#include <array>
#include <asio/generic/stream_protocol.hpp>
#include <asio/io_context.hpp>
#include <asio/ssl.hpp>
#include <cstring>
#include <optional>
#include <vector>

#include "common/base/text.h"
#include "transport/link.h"

namespace godwit {
namespace {

using Socket = asio::generic::stream_protocol::socket;
constexpr const char* one_pair = "each host needs its own folder of one `godwit keys init`";

struct KeyFiles {
    explicit KeyFiles(const std::string& dir)
        : ca(dir + "/ca.pem"), certificate(dir + "/cert.pem"), key(dir + "/key.pem") {}
    std::string ca, certificate, key;
};

// OpenSSL keeps a queue of errors per thread: the oldest says what went wrong first.
std::string openssl_reason() {
    const unsigned long error = ERR_get_error();
    ERR_clear_error();
    if (ERR_SYSTEM_ERROR(error)) return std::strerror(ERR_GET_REASON(error));
    const char* reason = ERR_reason_error_string(error);
    return reason != nullptr ? reason : "unknown error";
}

Failure bad_keys(const std::string& what, const std::string& why) {
    return fail(fmt::format("cannot use {}: {}", printable(what), why), one_pair, ExitCode::usage);
}

Result<void> require_private(const std::string& path) {
    struct stat status {};
    if (::stat(path.c_str(), &status) != 0) return bad_keys(path, std::strerror(errno));
    if ((status.st_mode & 077) != 0)
        return fail(
            fmt::format("{} can be read by others than its owner (mode {:o})", printable(path), status.st_mode & 0777),
            "chmod 600 it; if it may have been read, make new keys", ExitCode::usage);
    return {};
}

// Our own certificate must be one that the peer will take.
Result<void> verify_own(SSL_CTX* context, const KeyFiles& files) {
    const std::unique_ptr<X509_STORE_CTX, decltype(&X509_STORE_CTX_free)> check(X509_STORE_CTX_new(),
                                                                                X509_STORE_CTX_free);
    if (check == nullptr || X509_STORE_CTX_init(check.get(), SSL_CTX_get_cert_store(context),
                                                SSL_CTX_get0_certificate(context), nullptr) != 1)
        return bad_keys(files.certificate, openssl_reason());
    if (X509_verify_cert(check.get()) != 1)
        return bad_keys(files.certificate, X509_verify_cert_error_string(X509_STORE_CTX_get_error(check.get())));
    return {};
}

Result<void> load_keys(SSL_CTX* context, const std::string& dir) {
    const KeyFiles files(dir);
    ERR_clear_error();
    TRY(require_private(files.key));
    if (SSL_CTX_load_verify_file(context, files.ca.c_str()) != 1) return bad_keys(files.ca, openssl_reason());
    if (SSL_CTX_use_certificate_file(context, files.certificate.c_str(), SSL_FILETYPE_PEM) != 1)
        return bad_keys(files.certificate, openssl_reason());
    if (SSL_CTX_use_PrivateKey_file(context, files.key.c_str(), SSL_FILETYPE_PEM) != 1 ||
        SSL_CTX_check_private_key(context) != 1)
        return bad_keys(files.key, openssl_reason());
    return verify_own(context, files);
}

Result<void> configure(asio::ssl::context& context, const std::string& keys_dir) {
    SSL_CTX* native = context.native_handle();
    if (SSL_CTX_set_min_proto_version(native, TLS1_3_VERSION) != 1) return fail("this OpenSSL has no TLS 1.3");
    // No session is ever resumed, and tickets that the client never reads would turn its close into a reset.
    SSL_CTX_set_num_tickets(native, 0);
    SSL_CTX_set_session_cache_mode(native, SSL_SESS_CACHE_OFF);
    SSL_CTX_set_verify(native, SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, nullptr);
    return load_keys(native, keys_dir);
}

class TlsLink final : public Link {
  public:
    TlsLink(int fd, std::string peer, std::unique_ptr<asio::ssl::context> context, Socket socket,
            std::unique_ptr<asio::io_context> io)
        : Link(fd, std::move(peer)),
          io_(std::move(io)),
          context_(std::move(context)),
          stream_(std::move(socket), *context_) {}

    Result<void> handshake(TlsEnd end, Deadline deadline);
    Result<void> send(std::span<const iovec> pieces) override;
    Result<void> receive(void* data, size_t size, Deadline deadline) override;
    Result<bool> wait_readable(Deadline deadline) override;

  private:
    struct Outcome {
        asio::error_code error;
        size_t bytes = 0;
    };
    template <class Start>
    std::optional<Outcome> run(Start start, Deadline deadline);
    std::optional<Outcome> read_some(void* data, size_t size, Deadline deadline);
    Failure failed(const char* what, asio::error_code error);
    Failure handshake_failed(TlsEnd end, asio::error_code error);

    std::unique_ptr<asio::io_context> io_;
    std::unique_ptr<asio::ssl::context> context_;
    asio::ssl::stream<Socket> stream_;
    // What wait_readable() has decrypted and receive() has not yet given out.
    std::array<std::byte, 16384> ahead_{};
    size_t ahead_start_ = 0, ahead_end_ = 0;
};

// Starts one operation and waits for it. Nothing: the deadline passed first, and the operation was cancelled.
template <class Start>
std::optional<TlsLink::Outcome> TlsLink::run(Start start, Deadline deadline) {
    std::optional<Outcome> outcome;
    start([&outcome](asio::error_code error, size_t bytes = 0) { outcome = Outcome{error, bytes}; });
    io_->restart();
    io_->poll();  // run_until() would not even look when the deadline has passed
    if (!outcome) {
        io_->restart();
        io_->run_until(deadline.when());
    }
    const bool in_time = outcome.has_value();
    // The cancelled step may be followed by another of the same operation, which is cancelled in its turn.
    while (!outcome) {
        asio::error_code ignored;
        stream_.next_layer().cancel(ignored);
        io_->restart();
        io_->poll();
    }
    if (!in_time && outcome->error) return std::nullopt;
    return outcome;
}

Result<void> TlsLink::handshake(TlsEnd end, Deadline deadline) {
    const auto type = end == TlsEnd::client ? asio::ssl::stream_base::client : asio::ssl::stream_base::server;
    const auto outcome = run([&](auto done) { stream_.async_handshake(type, done); }, deadline);
    if (outcome && !outcome->error) return {};
    Failure failure =
        outcome ? handshake_failed(end, outcome->error)
                : peer_failed(fmt::format("{} did not finish the TLS handshake within the time limit", peer()),
                              "is it `godwit serve` that listens there?");
    // Let the alert that says why arrive: closing with unread bytes would overtake it with a reset.
    finish_sending();
    drain(Deadline::in(std::min(milliseconds(500), milliseconds(deadline.poll_timeout()))));
    return failure;
}

Result<void> TlsLink::send(std::span<const iovec> pieces) {
    std::vector<asio::const_buffer> left;
    for (const iovec& piece : pieces)
        if (piece.iov_len > 0) left.emplace_back(piece.iov_base, piece.iov_len);
    size_t first = 0;
    while (first < left.size()) {
        // One record, of up to 16 KiB, per operation: progress is seen after each.
        const std::span<const asio::const_buffer> now(&left[first], std::min<size_t>(left.size() - first, 8));
        const std::vector<asio::const_buffer> buffers(now.begin(), now.end());
        const auto outcome =
            run([&](auto done) { stream_.async_write_some(buffers, done); }, Deadline::in(send_limit()));
        if (!outcome) return late("took nothing");
        if (outcome->error) return failed("send", outcome->error);
        size_t sent = outcome->bytes;
        while (first < left.size() && sent >= left[first].size()) sent -= left[first++].size();
        if (sent > 0) left[first] += sent;
    }
    return {};
}

std::optional<TlsLink::Outcome> TlsLink::read_some(void* data, size_t size, Deadline deadline) {
    return run([&](auto done) { stream_.async_read_some(asio::buffer(data, size), done); }, deadline);
}

Result<void> TlsLink::receive(void* data, size_t size, Deadline deadline) {
    auto* to = static_cast<std::byte*>(data);
    while (size > 0) {
        const size_t ready = std::min(size, ahead_end_ - ahead_start_);
        std::memcpy(to, ahead_.data() + ahead_start_, ready);
        ahead_start_ += ready;
        to += ready;
        size -= ready;
        if (size == 0) break;
        if (size < ahead_.size()) {
            if (!TRY(wait_readable(deadline))) return late("sent nothing");
            if (ahead_start_ == ahead_end_) return ended();
            continue;
        }
        const auto outcome = read_some(to, size, deadline);
        if (!outcome) return late("sent nothing");
        if (outcome->error) return failed("receive", outcome->error);
        to += outcome->bytes;
        size -= outcome->bytes;
    }
    return {};
}

Result<bool> TlsLink::wait_readable(Deadline deadline) {
    if (ahead_start_ < ahead_end_) return true;
    const auto outcome = read_some(ahead_.data(), ahead_.size(), deadline);
    if (!outcome) return false;
    if (outcome->error) return failed("receive", outcome->error);
    ahead_start_ = 0;
    ahead_end_ = outcome->bytes;
    return true;
}

bool is_end(asio::error_code error) { return error == asio::error::eof || error == asio::ssl::error::stream_truncated; }

// An alert by which the peer says that it does not want our certificate. With TLS 1.3 a client learns it only after its
// own handshake has succeeded.
bool refuses_certificate(int reason) {
    switch (reason) {
        case SSL_R_TLSV1_ALERT_UNKNOWN_CA:
        case SSL_R_TLSV1_ALERT_DECRYPT_ERROR:
        case SSL_R_TLSV13_ALERT_CERTIFICATE_REQUIRED:
        case SSL_R_SSLV3_ALERT_BAD_CERTIFICATE:
        case SSL_R_SSLV3_ALERT_CERTIFICATE_EXPIRED:
        case SSL_R_SSLV3_ALERT_CERTIFICATE_REVOKED:
        case SSL_R_SSLV3_ALERT_CERTIFICATE_UNKNOWN:
        case SSL_R_SSLV3_ALERT_UNSUPPORTED_CERTIFICATE:
            return true;
        default:
            return false;
    }
}

Failure TlsLink::failed(const char* what, asio::error_code error) {
    if (is_shut() || is_end(error)) return ended();
    if (error.category() != asio::error::get_ssl_category()) return broken(what, error.value());
    if (refuses_certificate(ERR_GET_REASON(static_cast<unsigned long>(error.value()))))
        return peer_failed(fmt::format("{} refuses our certificate: {}", peer(), error.message()), one_pair);
    return peer_failed(fmt::format("TLS on the connection to {} failed: {}", peer(), error.message()));
}

Failure TlsLink::handshake_failed(TlsEnd end, asio::error_code error) {
    const char* not_tls = end == TlsEnd::client ? "is it `godwit serve` that listens there, without --insecure?"
                                                : "it is not godwit, or runs with --insecure";
    if (is_shut()) return ended();
    if (is_end(error) || error == asio::error::connection_reset || error == asio::error::broken_pipe)
        return peer_failed(fmt::format("{} closed the connection during the TLS handshake", peer()), not_tls);
    if (error.category() != asio::error::get_ssl_category()) return broken("make a TLS handshake", error.value());
    const int reason = ERR_GET_REASON(static_cast<unsigned long>(error.value()));
    if (refuses_certificate(reason)) return failed("make a TLS handshake", error);
    if (reason == SSL_R_CERTIFICATE_VERIFY_FAILED)
        return peer_failed(fmt::format("the certificate of {} is not valid: {}", peer(),
                                       X509_verify_cert_error_string(SSL_get_verify_result(stream_.native_handle()))),
                           one_pair);
    if (reason == SSL_R_PEER_DID_NOT_RETURN_A_CERTIFICATE)
        return peer_failed(fmt::format("{} showed no certificate", peer()), one_pair);
    return peer_failed(fmt::format("{} does not speak TLS 1.3: {}", peer(), error.message()), not_tls);
}

}  // namespace

// Nothing may be thrown out of here: asio's constructors can, when memory or descriptors run out.
Result<std::unique_ptr<Link>> tls_link(UniqueFd socket, std::string peer, const std::string& keys_dir, TlsEnd end,
                                       Deadline deadline) try {
    auto context = std::make_unique<asio::ssl::context>(asio::ssl::context::tls);
    TRY(configure(*context, keys_dir));
    auto io = std::make_unique<asio::io_context>(1);
    sockaddr_storage name{};
    socklen_t size = sizeof name;
    if (::getsockname(socket.get(), reinterpret_cast<sockaddr*>(&name), &size) != 0)
        return fail_errno("getsockname for " + peer);
    Socket stream(*io);
    stream.assign(asio::generic::stream_protocol(name.ss_family, 0), socket.get());
    const int fd = socket.release();  // the stream's from here on
    stream.non_blocking(true);
    auto link = std::make_unique<TlsLink>(fd, std::move(peer), std::move(context), std::move(stream), std::move(io));
    TRY(link->handshake(end, deadline));
    return std::unique_ptr<Link>(std::move(link));
} catch (const std::exception& problem) {
    return fail(fmt::format("cannot set up TLS: {}", problem.what()));
}

Result<void> check_keys(const std::string& keys_dir) try {
    asio::ssl::context context(asio::ssl::context::tls);
    return configure(context, keys_dir);
} catch (const std::exception& problem) {
    return fail(fmt::format("cannot set up TLS: {}", problem.what()));
}

}  // namespace godwit
