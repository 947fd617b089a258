// Reads pages of a stopped or running process and sends them on a data connection.
//
// Nothing is changed in the process. If it dies meanwhile, send() is a Problem that names it.
// Threads: any one; bounded memory: one buffer of max_page_bytes.
#pragma once

#include <span>
#include <vector>

#include "common/base/result.h"
#include "common/image/process.pb.h"
#include "common/remote/remote.h"
#include "source-agent/collect/collect.h"
#include "source-agent/page_streams.h"
#include "transport/channel.h"

namespace godwit {

class PageSender {
  public:
    PageSender(pid_t pid, uint32_t pid_inside, Channel& channel) : pid_(pid), pid_inside_(pid_inside), channel_(channel) {}

    // Sends the content of `ranges` (ascending). Zero pages of anonymous mappings are left out: the destination's are
    // zero from the start.
    Result<void> send(const image::Layout& layout, std::span<const ByteRange> ranges);
    const SentPages& sent() const { return sent_; }

  private:
    Result<void> send_chunk(uint64_t address, size_t size, bool skip_zeros);
    Result<void> read_chunk(uint64_t address, size_t size);
    Result<void> send_run(uint64_t address, size_t offset, size_t size);

    pid_t pid_;
    uint32_t pid_inside_;
    Channel& channel_;
    std::vector<std::byte> buffer_ = std::vector<std::byte>(max_page_bytes);
    SentPages sent_;
};

}  // namespace godwit
