// An address in another process. Never mixes with a local pointer.
#pragma once

#include <compare>
#include <cstdint>

namespace godwit {

class RemotePtr {
  public:
    constexpr RemotePtr() = default;
    constexpr explicit RemotePtr(uint64_t address) : address_(address) {}
    constexpr uint64_t address() const { return address_; }
    constexpr explicit operator bool() const { return address_ != 0; }
    constexpr RemotePtr operator+(uint64_t bytes) const { return RemotePtr(address_ + bytes); }
    constexpr auto operator<=>(const RemotePtr&) const = default;

  private:
    uint64_t address_ = 0;
};

}  // namespace godwit
