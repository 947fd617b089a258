// Whether the frames of one connection are compressed. With Compression::automatic it is what brings more pages per second:
//
//   seconds per byte of pages    uncompressed   1 / link
//                                compressed     1 / lz4 + ratio / link
//
// `link` is measured while frames go uncompressed (the first ones, which only fill the socket's buffers, are left out), `lz4` and
// `ratio` on a sample of some frame, and on every frame while frames go compressed. The choice is made anew after each
// look_bytes of uncompressed pages; after packed_bytes of compressed ones the link is measured again. Compression must be
// faster by a tenth to be chosen.
// Threads: the connection's.
#pragma once

#include <chrono>
#include <cstddef>

#include "source-agent/page_streams.h"

namespace godwit {

class CompressionChoice {
  public:
    using Seconds = std::chrono::duration<double>;
    static constexpr size_t fill_bytes = 4u << 20;     // not counted: they go into buffers
    static constexpr size_t first_bytes = 12u << 20;   // measured before the first choice, and before one after packed_bytes
    static constexpr size_t look_bytes = 64u << 20;
    static constexpr size_t packed_bytes = 256u << 20;
    static constexpr size_t sample_bytes = 128u << 10;

    explicit CompressionChoice(Compression wanted) : wanted_(wanted), packing_(wanted == Compression::lz4) {}

    // Whether the next frame goes compressed.
    bool compress() const { return packing_; }
    // Whether a sample of this frame shall be compressed, to learn.
    bool wants_sample() const;
    void sampled(size_t raw, size_t packed, Seconds took);
    void sent_raw(size_t bytes, Seconds took);
    void sent_packed(size_t raw, size_t packed, Seconds packing);

  private:
    void choose();
    void begin_measure(size_t bytes);

    const Compression wanted_;
    bool packing_;
    size_t skip_ = fill_bytes, measure_ = first_bytes;  // bytes that are still to come
    size_t link_bytes_ = 0;
    Seconds link_time_{0};
    size_t raw_bytes_ = 0, packed_size_ = 0;  // of samples, or of frames that went compressed
    Seconds packing_time_{0};
};

}  // namespace godwit
