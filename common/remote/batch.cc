#include "common/remote/batch.h"

#include <algorithm>
#include <cstring>

namespace godwit {
namespace {

constexpr size_t alignment = 16;

}  // namespace

Batch::Call Batch::add(long number, bool may_fail, std::vector<Operand> arguments) {
    calls_.push_back({number, may_fail, std::move(arguments), 0});
    return static_cast<Call>(calls_.size() - 1);
}

Batch::Operand Batch::bytes(const void* data, size_t size) {
    const size_t at = data_.size();
    data_.resize((at + size + alignment - 1) / alignment * alignment);
    if (size != 0) std::memcpy(data_.data() + at, data, size);
    return Operand(Operand::Kind::memory, at);
}

Batch::Operand Batch::text(std::string_view text) {
    const std::string terminated(text);
    return bytes(terminated.c_str(), terminated.size() + 1);
}

Batch::Operand Batch::out(size_t size) {
    const size_t at = data_.size();
    data_.resize((at + size + alignment - 1) / alignment * alignment);
    out_begin_ = std::min(out_begin_, at);
    out_end_ = data_.size();
    return Operand(Operand::Kind::memory, at);
}

void Batch::point(Operand where, uint64_t offset, Operand of) {
    pointers_.push_back({where.value_ + offset, of.value_});
}

std::span<const std::byte> Batch::data_of(Operand memory, size_t size) const {
    return std::span(data_).subspan(memory.value_, size);
}

}  // namespace godwit
