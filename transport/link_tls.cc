// TLS 1.3 with a certificate at both ends, by OpenSSL alone.
//
// OpenSSL never waits here: it reads and writes the socket through a BIO of ours that neither blocks nor raises SIGPIPE, and
// every wait is a poll(2) with the caller's limit.
// Memory: some 180 KiB per connection, most of it what was received ahead.
#include <fmt/format.h>
#include <openssl/bio.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <openssl/sslerr.h>
#include <openssl/x509_vfy.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include <cstring>

#include "common/base/text.h"
#include "transport/link.h"
#include "transport/socket.h"

namespace godwit {
namespace {

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

using Context = std::unique_ptr<SSL_CTX, decltype(&SSL_CTX_free)>;

constexpr size_t read_ahead_bytes = 128 * 1024;  // several records by one recv(2)

Result<Context> make_context(const std::string& keys_dir) {
    Context context(SSL_CTX_new(TLS_method()), SSL_CTX_free);
    if (context == nullptr) return fail("cannot set up TLS: " + openssl_reason());
    SSL_CTX* native = context.get();
    if (SSL_CTX_set_min_proto_version(native, TLS1_3_VERSION) != 1) return fail("this OpenSSL has no TLS 1.3");
    // No session is ever resumed, and tickets that the client never reads would turn its close into a reset.
    SSL_CTX_set_num_tickets(native, 0);
    SSL_CTX_set_session_cache_mode(native, SSL_SESS_CACHE_OFF);
    SSL_CTX_set_verify(native, SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, nullptr);
    // Progress is seen after each record.
    SSL_CTX_set_mode(native, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
    SSL_CTX_set_read_ahead(native, 1);
    SSL_CTX_set_default_read_buffer_len(native, read_ahead_bytes);
    // The fastest first, where the processor has AES instructions; none is weaker than the keys of the certificates.
    (void)SSL_CTX_set_ciphersuites(native, "TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256");
    TRY(load_keys(native, keys_dir));
    return context;
}

// The socket as OpenSSL's BIO sees it.
struct Wire {
    int fd = -1;
    bool more = false;   // what follows comes at once: no need to send a short packet
    int error = 0;       // errno of what failed
    bool ended = false;  // the peer closed
};

int after(BIO* bio, ssize_t count, int retry) {
    BIO_clear_retry_flags(bio);
    auto& wire = *static_cast<Wire*>(BIO_get_data(bio));
    if (count < 0 && (errno == EAGAIN || errno == EINTR))
        BIO_set_flags(bio, retry | BIO_FLAGS_SHOULD_RETRY);
    else if (count < 0)
        wire.error = errno;
    return static_cast<int>(count);
}

int write_wire(BIO* bio, const char* from, int size) {
    const auto& wire = *static_cast<Wire*>(BIO_get_data(bio));
    const int flags = MSG_NOSIGNAL | MSG_DONTWAIT | (wire.more ? MSG_MORE : 0);
    return after(bio, ::send(wire.fd, from, static_cast<size_t>(size), flags), BIO_FLAGS_WRITE);
}

int read_wire(BIO* bio, char* to, int size) {
    auto& wire = *static_cast<Wire*>(BIO_get_data(bio));
    const ssize_t got = ::recv(wire.fd, to, static_cast<size_t>(size), MSG_DONTWAIT);
    if (got == 0) wire.ended = true;
    return after(bio, got, BIO_FLAGS_READ);
}

long control_wire(BIO*, int command, long, void*) { return command == BIO_CTRL_FLUSH ? 1 : 0; }

const BIO_METHOD* wire_method() {
    static BIO_METHOD* const method = [] {
        BIO_METHOD* made = BIO_meth_new(BIO_get_new_index() | BIO_TYPE_SOURCE_SINK, "godwit socket");
        if (made == nullptr) return made;
        BIO_meth_set_write(made, write_wire);
        BIO_meth_set_read(made, read_wire);
        BIO_meth_set_ctrl(made, control_wire);
        return made;
    }();
    return method;
}

class TlsLink final : public Link {
  public:
    TlsLink(UniqueFd socket, std::string peer) : Link(socket.get(), std::move(peer)), socket_(std::move(socket)) { wire_.fd = socket_.get(); }

    Result<void> prepare(SSL_CTX* context);
    Result<void> handshake(TlsEnd end, Deadline deadline);
    Result<void> send(std::span<const iovec> pieces) override;
    Result<void> receive(void* data, size_t size, Deadline deadline) override;
    Result<bool> wait_readable(Deadline deadline) override;

  private:
    // What an operation of OpenSSL came to.
    enum class Came { done, late, ended, broken, refused };  // broken: wire_.error; refused: ssl_error_
    template <class Operation>
    Result<Came> run(Operation operation, Deadline deadline);
    Failure failed(const char* what, Came came) const;
    Failure handshake_failed(TlsEnd end, Came came) const;
    std::string reason() const;

    UniqueFd socket_;
    Wire wire_;
    std::unique_ptr<SSL, decltype(&SSL_free)> ssl_{nullptr, SSL_free};
    unsigned long ssl_error_ = 0;
};

Result<void> TlsLink::prepare(SSL_CTX* context) {
    ERR_clear_error();
    ssl_.reset(SSL_new(context));
    BIO* bio = ssl_ && wire_method() != nullptr ? BIO_new(wire_method()) : nullptr;
    if (bio == nullptr) return fail("cannot set up TLS: " + openssl_reason());
    BIO_set_data(bio, &wire_);
    BIO_set_init(bio, 1);
    SSL_set_bio(ssl_.get(), bio, bio);  // it owns the BIO
    return {};
}

// Repeats the operation, with waits between, until it succeeds (returns more than 0), fails, or the deadline has passed.
template <class Operation>
Result<TlsLink::Came> TlsLink::run(Operation operation, Deadline deadline) {
    for (;;) {
        ERR_clear_error();
        const int result = operation();
        if (result > 0) return Came::done;
        switch (SSL_get_error(ssl_.get(), result)) {
            case SSL_ERROR_WANT_READ:
                if (!TRY(wait_for(wire_.fd, POLLIN, deadline))) return Came::late;
                break;
            case SSL_ERROR_WANT_WRITE:
                if (!TRY(wait_for(wire_.fd, POLLOUT, deadline))) return Came::late;
                break;
            case SSL_ERROR_ZERO_RETURN:
                return Came::ended;
            case SSL_ERROR_SYSCALL:
                return wire_.ended || wire_.error == 0 ? Came::ended : Came::broken;
            default:
                ssl_error_ = ERR_get_error();
                ERR_clear_error();
                return Came::refused;
        }
    }
}

Result<void> TlsLink::handshake(TlsEnd end, Deadline deadline) {
    SSL* ssl = ssl_.get();
    const Came came = TRY(run([&] { return end == TlsEnd::client ? SSL_connect(ssl) : SSL_accept(ssl); }, deadline));
    if (came == Came::done) return {};
    Failure failure = came == Came::late ? peer_failed(fmt::format("{} did not finish the TLS handshake within the time limit", peer()),
                                                       "is it `godwit serve` that listens there?")
                                         : handshake_failed(end, came);
    // Let the alert that says why arrive: closing with unread bytes would overtake it with a reset.
    finish_sending();
    drain(Deadline::in(std::min(milliseconds(500), milliseconds(deadline.poll_timeout()))));
    return failure;
}

Result<void> TlsLink::send(std::span<const iovec> pieces) {
    while (!pieces.empty() && pieces.back().iov_len == 0) pieces = pieces.first(pieces.size() - 1);
    for (size_t i = 0; i < pieces.size(); ++i) {
        const char* from = static_cast<const char*>(pieces[i].iov_base);
        wire_.more = i + 1 < pieces.size();
        for (size_t left = pieces[i].iov_len; left > 0;) {
            size_t sent = 0;
            const Came came = TRY(run([&] { return SSL_write_ex(ssl_.get(), from, left, &sent); }, Deadline::in(send_limit())));
            if (came == Came::late) return late("took nothing");
            if (came != Came::done) return failed("send", came);
            from += sent;
            left -= sent;
        }
    }
    return {};
}

Result<void> TlsLink::receive(void* data, size_t size, Deadline deadline) {
    auto* to = static_cast<std::byte*>(data);
    while (size > 0) {
        size_t got = 0;
        const Came came = TRY(run([&] { return SSL_read_ex(ssl_.get(), to, size, &got); }, deadline));
        if (came == Came::late) return late("sent nothing");
        if (came != Came::done) return failed("receive", came);
        to += got;
        size -= got;
    }
    return {};
}

Result<bool> TlsLink::wait_readable(Deadline deadline) {
    char next;
    size_t got = 0;
    const Came came = TRY(run([&] { return SSL_peek_ex(ssl_.get(), &next, 1, &got); }, deadline));
    if (came == Came::late) return false;
    if (came != Came::done) return failed("receive", came);
    return true;
}

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

std::string TlsLink::reason() const {
    const char* text = ERR_reason_error_string(ssl_error_);
    return text != nullptr ? text : "unknown error";
}

Failure TlsLink::failed(const char* what, Came came) const {
    if (is_shut() || came == Came::ended) return ended();
    if (came == Came::broken) return broken(what, wire_.error);
    if (refuses_certificate(ERR_GET_REASON(ssl_error_)))
        return peer_failed(fmt::format("{} refuses our certificate: {}", peer(), reason()), one_pair);
    return peer_failed(fmt::format("TLS on the connection to {} failed: {}", peer(), reason()));
}

Failure TlsLink::handshake_failed(TlsEnd end, Came came) const {
    const char* not_tls = end == TlsEnd::client ? "is it `godwit serve` that listens there, without --insecure?"
                                                : "it is not godwit, or runs with --insecure";
    if (is_shut()) return ended();
    if (came == Came::ended || (came == Came::broken && (wire_.error == ECONNRESET || wire_.error == EPIPE)))
        return peer_failed(fmt::format("{} closed the connection during the TLS handshake", peer()), not_tls);
    if (came == Came::broken) return broken("make a TLS handshake", wire_.error);
    const int why = ERR_GET_REASON(ssl_error_);
    if (refuses_certificate(why)) return failed("make a TLS handshake", came);
    if (why == SSL_R_CERTIFICATE_VERIFY_FAILED)
        return peer_failed(fmt::format("the certificate of {} is not valid: {}", peer(),
                                       X509_verify_cert_error_string(SSL_get_verify_result(ssl_.get()))),
                           one_pair);
    if (why == SSL_R_PEER_DID_NOT_RETURN_A_CERTIFICATE)
        return peer_failed(fmt::format("{} showed no certificate", peer()), one_pair);
    return peer_failed(fmt::format("{} does not speak TLS 1.3: {}", peer(), reason()), not_tls);
}

}  // namespace

Result<std::unique_ptr<Link>> tls_link(UniqueFd socket, std::string peer, const std::string& keys_dir, TlsEnd end,
                                       Deadline deadline) {
    const Context context = TRY(make_context(keys_dir));
    auto link = std::make_unique<TlsLink>(std::move(socket), std::move(peer));
    TRY(link->prepare(context.get()));
    TRY(link->handshake(end, deadline));
    return std::unique_ptr<Link>(std::move(link));
}

Result<void> check_keys(const std::string& keys_dir) {
    TRY(make_context(keys_dir));
    return {};
}

}  // namespace godwit
