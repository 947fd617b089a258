#include "transport/keys.h"

#include <fmt/format.h>
#include <openssl/bio.h>
#include <openssl/ec.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/rand.h>
#include <openssl/x509v3.h>
#include <sys/stat.h>

#include <cstring>
#include <memory>

#include "common/base/defer.h"
#include "common/base/file.h"
#include "common/base/text.h"

namespace godwit {
namespace {

template <auto free_function>
struct Free {
    template <class T>
    void operator()(T* object) const {
        free_function(object);
    }
};
using Key = std::unique_ptr<EVP_PKEY, Free<EVP_PKEY_free>>;
using Certificate = std::unique_ptr<X509, Free<X509_free>>;
using Extension = std::unique_ptr<X509_EXTENSION, Free<X509_EXTENSION_free>>;
using Memory = std::unique_ptr<BIO, Free<BIO_free_all>>;

constexpr long day = 24 * 60 * 60;
constexpr int years = 10;

Failure openssl_failed(const char* what) {
    const char* reason = ERR_reason_error_string(ERR_get_error());
    ERR_clear_error();
    return fail(fmt::format("cannot {}: {}", what, reason != nullptr ? reason : "unknown error"));
}

struct Identity {
    Key key;
    Certificate certificate;
};

bool add_extension(X509* certificate, X509* issuer, int name, const char* value) {
    X509V3_CTX context;
    X509V3_set_ctx(&context, issuer, certificate, nullptr, nullptr, 0);
    const Extension extension(X509V3_EXT_conf_nid(nullptr, &context, name, value));
    return extension != nullptr && X509_add_ext(certificate, extension.get(), -1) == 1;
}

bool set_serial(X509* certificate) {
    uint64_t serial = 0;
    if (RAND_bytes(reinterpret_cast<unsigned char*>(&serial), sizeof serial) != 1) return false;
    return ASN1_INTEGER_set_uint64(X509_get_serialNumber(certificate), serial >> 1) == 1;
}

// A new key with a certificate. issuer: the CA, or null for the CA itself.
Result<Identity> make_identity(const std::string& name, const Identity* issuer) {
    Identity made;
    made.key.reset(EVP_EC_gen("P-256"));
    made.certificate.reset(X509_new());
    X509* certificate = made.certificate.get();
    if (made.key == nullptr || certificate == nullptr) return openssl_failed("make a key");
    X509* signer = issuer != nullptr ? issuer->certificate.get() : certificate;
    X509_NAME* subject = X509_get_subject_name(certificate);
    const auto* text = reinterpret_cast<const unsigned char*>(name.c_str());
    bool fine = X509_set_version(certificate, X509_VERSION_3) == 1 && set_serial(certificate) &&
                X509_gmtime_adj(X509_getm_notBefore(certificate), -day) != nullptr &&
                X509_gmtime_adj(X509_getm_notAfter(certificate), years * 365 * day) != nullptr &&
                X509_set_pubkey(certificate, made.key.get()) == 1 &&
                X509_NAME_add_entry_by_txt(subject, "CN", MBSTRING_ASC, text, -1, -1, 0) == 1 &&
                X509_set_issuer_name(certificate, X509_get_subject_name(signer)) == 1 &&
                add_extension(certificate, signer, NID_subject_key_identifier, "hash");
    if (issuer == nullptr) {
        fine = fine && add_extension(certificate, signer, NID_basic_constraints, "critical,CA:TRUE,pathlen:0") &&
               add_extension(certificate, signer, NID_key_usage, "critical,keyCertSign");
    } else {
        fine = fine && add_extension(certificate, signer, NID_basic_constraints, "critical,CA:FALSE") &&
               add_extension(certificate, signer, NID_key_usage, "critical,digitalSignature") &&
               add_extension(certificate, signer, NID_ext_key_usage, "serverAuth,clientAuth");
    }
    fine = fine && add_extension(certificate, signer, NID_authority_key_identifier, "keyid") &&
           X509_sign(certificate, issuer != nullptr ? issuer->key.get() : made.key.get(), EVP_sha256()) > 0;
    if (!fine) return openssl_failed("make a certificate");
    return made;
}

Result<std::string> pem_text(BIO* memory, bool written) {
    if (!written) return openssl_failed("write PEM");
    char* data = nullptr;
    const long size = BIO_get_mem_data(memory, &data);
    return std::string(data, static_cast<size_t>(size));
}

Result<std::string> pem_of(X509* certificate) {
    const Memory memory(BIO_new(BIO_s_mem()));
    return pem_text(memory.get(), memory != nullptr && PEM_write_bio_X509(memory.get(), certificate) == 1);
}

Result<std::string> pem_of(EVP_PKEY* key) {
    const Memory memory(BIO_new(BIO_s_secmem()));
    return pem_text(memory.get(), memory != nullptr && PEM_write_bio_PrivateKey(memory.get(), key, nullptr, nullptr, 0,
                                                                                nullptr, nullptr) == 1);
}

Result<void> make_new_folder(const std::string& path) {
    if (::mkdir(path.c_str(), 0700) == 0) return {};
    if (errno == EEXIST)
        return fail(printable(path) + " exists",
                    "keys are never overwritten: choose another folder, or remove it first", ExitCode::usage);
    return fail_errno("cannot make folder " + printable(path));
}

void remove_host(const std::string& folder) {
    for (const char* name : {"/ca.pem", "/cert.pem", "/key.pem"}) {
        ::unlink((folder + name).c_str());
        ::unlink((folder + name + ".new").c_str());
    }
    ::rmdir(folder.c_str());
}

// The folder exists and is empty.
Result<void> fill_host(const std::string& folder, const std::string& name, const Identity& ca) {
    const Identity host = TRY(make_identity(name, &ca));
    const std::string ca_text = TRY(pem_of(ca.certificate.get()));
    const std::string certificate_text = TRY(pem_of(host.certificate.get()));
    const std::string key_text = TRY(pem_of(host.key.get()));
    TRY(replace_file(folder + "/ca.pem", ca_text, 0600));
    TRY(replace_file(folder + "/cert.pem", certificate_text, 0600));
    return replace_file(folder + "/key.pem", key_text, 0600);
}

}  // namespace

Result<void> init_keys(const std::string& dir) {
    TRY(make_folders(dir, 0700));
    const std::string source = dir + "/source", destination = dir + "/destination";
    TRY(make_new_folder(source));
    Undo remove_source([&] { remove_host(source); });
    TRY(make_new_folder(destination));
    Undo remove_destination([&] { remove_host(destination); });

    uint64_t number = 0;
    if (RAND_bytes(reinterpret_cast<unsigned char*>(&number), sizeof number) != 1)
        return openssl_failed("draw a number");
    // A name of its own, so that a certificate of another CA is refused as just that.
    const Identity ca = TRY(make_identity(fmt::format("godwit CA {:016x}", number), nullptr));
    TRY(fill_host(source, "godwit source", ca));
    TRY(fill_host(destination, "godwit destination", ca));
    remove_source.dismiss();
    remove_destination.dismiss();
    return {};
}

}  // namespace godwit
