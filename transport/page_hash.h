// A hash by which pages are taken for the same: SHA-256, cut to 128 bits.
//
// It must be a cryptographic one: a program's content comes from anybody, and two pages made to collide would be taken
// for one. Among those of libcrypto SHA-256 is the fastest where the CPU has instructions for it (1.6 GB/s against 0.9
// of BLAKE2b on the machine of the tests).
// Threads: a PageHasher belongs to one.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "common/base/result.h"

namespace godwit {

using PageHash = std::array<uint64_t, 2>;

class PageHasher {
  public:
    PageHasher();
    ~PageHasher();
    PageHasher(const PageHasher&) = delete;
    PageHasher& operator=(const PageHasher&) = delete;

    Result<PageHash> hash(std::span<const std::byte> page);

  private:
    struct State;
    std::unique_ptr<State> state_;
};

}  // namespace godwit
