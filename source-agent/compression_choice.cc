#include "source-agent/compression_choice.h"

#include <algorithm>

namespace godwit {

bool CompressionChoice::wants_sample() const {
    // Near the end of the measurement: what is being sent then is what the choice will be about.
    return wanted_ == Compression::automatic && !packing_ && raw_bytes_ == 0 && measure_ <= first_bytes / 2;
}

void CompressionChoice::sampled(size_t raw, size_t packed, Seconds took) {
    raw_bytes_ += raw;
    packed_size_ += packed;
    packing_time_ += took;
}

void CompressionChoice::sent_raw(size_t bytes, Seconds took) {
    if (wanted_ != Compression::automatic || packing_) return;
    if (skip_ > 0) {
        skip_ -= std::min(skip_, bytes);
        return;
    }
    link_bytes_ += bytes;
    link_time_ += took;
    measure_ -= std::min(measure_, bytes);
    if (measure_ == 0 && raw_bytes_ > 0) choose();
}

void CompressionChoice::sent_packed(size_t raw, size_t packed, Seconds packing) {
    if (wanted_ != Compression::automatic) return;
    sampled(raw, packed, packing);
    measure_ -= std::min(measure_, raw);
    if (measure_ > 0) return;
    packing_ = false;
    skip_ = fill_bytes;
    begin_measure(first_bytes);
}

void CompressionChoice::choose() {
    const double link = link_time_.count() / static_cast<double>(link_bytes_);  // seconds per byte
    const double lz4 = packing_time_.count() / static_cast<double>(raw_bytes_);
    const double ratio = static_cast<double>(packed_size_) / static_cast<double>(raw_bytes_);
    packing_ = lz4 + ratio * link < 0.9 * link;
    begin_measure(packing_ ? packed_bytes : look_bytes);
}

void CompressionChoice::begin_measure(size_t bytes) {
    measure_ = bytes;
    link_bytes_ = raw_bytes_ = packed_size_ = 0;
    link_time_ = packing_time_ = Seconds(0);
}

}  // namespace godwit
