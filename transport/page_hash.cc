#include "transport/page_hash.h"

#include <openssl/evp.h>

#include <cstring>

namespace godwit {

struct PageHasher::State {
    std::unique_ptr<EVP_MD_CTX, void (*)(EVP_MD_CTX*)> context{EVP_MD_CTX_new(), EVP_MD_CTX_free};
    bool begun = false;
};

PageHasher::PageHasher() : state_(new State) {}
PageHasher::~PageHasher() = default;

Result<PageHash> PageHasher::hash(std::span<const std::byte> page) {
    unsigned char digest[EVP_MAX_MD_SIZE];
    EVP_MD_CTX* context = state_->context.get();
    // The same algorithm again: nothing is looked up or allocated after the first page.
    const EVP_MD* algorithm = state_->begun ? nullptr : EVP_sha256();
    if (context == nullptr || EVP_DigestInit_ex(context, algorithm, nullptr) != 1 ||
        EVP_DigestUpdate(context, page.data(), page.size()) != 1 || EVP_DigestFinal_ex(context, digest, nullptr) != 1)
        return fail("libcrypto cannot compute SHA-256");
    state_->begun = true;
    PageHash out;
    std::memcpy(out.data(), digest, sizeof out);
    return out;
}

}  // namespace godwit
