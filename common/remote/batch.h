// A list of system calls for the resident executor to make in a target: one round trip for a thousand calls.
//
//   Batch batch;
//   auto path = batch.text("/dev/null");
//   auto fd = batch.call(SYS_openat, AT_FDCWD, path, O_RDWR);
//   batch.call(SYS_dup3, batch.result(fd), 7, 0);
//   TRY(remote.run(batch));
//
// Calls run in order. The first call that fails and was not added with call_may_fail() ends the batch; run()
// then names it. Memory that calls point at belongs to the batch: bytes() is copied into the target before,
// out() is copied back after.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "common/remote/remote_ptr.h"

namespace godwit {

class Batch {
  public:
    // One argument: a number, an address in the target, memory of this batch, or the result of an earlier call.
    class Operand {
      public:
        template <class T>
        requires(std::is_integral_v<T> || std::is_enum_v<T>) Operand(T value)
            : kind_(Kind::value), value_(static_cast<uint64_t>(static_cast<int64_t>(value))) {}
        Operand(RemotePtr address) : kind_(Kind::value), value_(address.address()) {}
        // Memory of this batch, further on: batch.out(16) + 8.
        Operand operator+(uint64_t bytes) const {
            Operand moved = *this;
            moved.value_ += bytes;
            return moved;
        }

      private:
        friend class Batch;
        friend class Remote;
        enum class Kind { value, memory, result };
        Operand(Kind kind, uint64_t value) : kind_(kind), value_(value) {}
        Kind kind_;
        uint64_t value_;  // number, offset into data(), or index of a call
    };
    using Call = unsigned;  // index

    template <class... Arguments>
    requires(sizeof...(Arguments) <= 6) Call call(long number, Arguments... arguments) {
        return add(number, false, {Operand(arguments)...});
    }
    template <class... Arguments>
    requires(sizeof...(Arguments) <= 6) Call call_may_fail(long number, Arguments... arguments) {
        return add(number, true, {Operand(arguments)...});
    }

    Operand bytes(const void* data, size_t size);
    Operand text(std::string_view text);  // with a NUL
    Operand out(size_t size);             // zeroed
    Operand result(Call call) const { return Operand(Operand::Kind::result, call); }
    // Memory (an earlier bytes() or out()) in which 8 bytes at `offset` are to hold the target's address of `of`:
    // how an iovec or a msghdr points at other memory of the batch.
    void point(Operand where, uint64_t offset, Operand of);

    // After run(): the raw result of a call (negative errno) and the bytes of an out().
    int64_t result_of(Call call) const { return calls_[call].result; }
    std::span<const std::byte> data_of(Operand memory, size_t size) const;
    template <class T>
    T read(Operand memory) const {
        T value;
        __builtin_memcpy(&value, data_of(memory, sizeof value).data(), sizeof value);
        return value;
    }
    bool empty() const { return calls_.empty(); }
    size_t size() const { return calls_.size(); }

  private:
    friend class Remote;
    struct Entry {
        long number = 0;
        bool may_fail = false;
        std::vector<Operand> arguments;
        int64_t result = 0;
    };
    struct Pointer {
        uint64_t where = 0;  // offset into data_
        uint64_t of = 0;
    };
    Call add(long number, bool may_fail, std::vector<Operand> arguments);

    std::vector<Entry> calls_;
    std::vector<std::byte> data_;  // each piece starts at a multiple of 16
    std::vector<Pointer> pointers_;
    size_t out_begin_ = SIZE_MAX;  // what is copied back
    size_t out_end_ = 0;
};

}  // namespace godwit
