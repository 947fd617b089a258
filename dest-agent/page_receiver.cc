#include "dest-agent/page_receiver.h"

#include <fmt/format.h>

namespace godwit {
namespace {

constexpr milliseconds idle_limit{120'000};  // between two page frames
constexpr std::byte zero_page[4096] = {};

}  // namespace

PageReceiver::PageReceiver(std::vector<std::unique_ptr<Channel>> channels, std::map<uint32_t, Skeleton*> skeletons)
    : channels_(std::move(channels)), skeletons_(std::move(skeletons)), frames_(channels_.size(), 0) {
    for (size_t stream = 0; stream < channels_.size(); ++stream) threads_.emplace_back([this, stream] { receive(stream); });
}

PageReceiver::~PageReceiver() {
    {
        const std::lock_guard lock(lock_);
        stopping_ = true;
    }
    shut_down();
    for (std::thread& thread : threads_) thread.join();
}

void PageReceiver::shut_down() {
    for (auto& channel : channels_) channel->shut_down();
}

Result<void> PageReceiver::wait(const image::RoundEnd& end, Deadline deadline) {
    if (static_cast<size_t>(end.frames_size()) != channels_.size())
        return peer_failed(fmt::format("the round's end counts {} data connections, there are {}", end.frames_size(), channels_.size()));
    std::unique_lock lock(lock_);
    const auto settled = [&] {
        if (problem_) return true;
        for (size_t i = 0; i < frames_.size(); ++i)
            if (frames_[i] < end.frames(static_cast<int>(i))) return false;
        return true;
    };
    if (!changed_.wait_until(lock, deadline.when(), settled)) return peer_failed("not all pages of the round came in time");
    if (problem_) return Failure(*problem_);
    return {};
}

void PageReceiver::receive(size_t stream) {
    std::vector<std::byte> buffer(max_page_bytes);
    for (;;) {
        auto received = receive_frame(*channels_[stream], buffer.data());
        const std::lock_guard lock(lock_);
        if (stopping_) return;
        if (!received) {
            if (!problem_) problem_ = received.error();
            changed_.notify_all();
            return;
        }
        ++frames_[stream];
        changed_.notify_all();
    }
}

Result<void> PageReceiver::receive_frame(Channel& channel, std::byte* buffer) {
    PageHeader header;
    TRY(channel.receive_pages(header, buffer, Deadline::in(idle_limit)));
    const PageRange& range = header.range;
    const auto found = skeletons_.find(range.pid);
    if (found == skeletons_.end() || range.object != 0)
        return peer_failed(fmt::format("pages for pid {} object {}, which the plan does not name", range.pid, range.object));
    if (!header.zero) {
        bytes_ += range.length;
        return found->second->write_pages(range.address, buffer, range.length);
    }
    for (uint64_t done = 0; done < range.length; done += sizeof zero_page)
        TRY(found->second->write_pages(range.address + done, zero_page, sizeof zero_page));
    return {};
}

}  // namespace godwit
