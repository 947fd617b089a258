#include "dest-agent/page_receiver.h"

#include <fmt/format.h>

namespace godwit {
namespace {

constexpr milliseconds idle_limit{120'000};  // between two page frames
constexpr std::byte zero_page[4096] = {};

}  // namespace

PageReceiver::PageReceiver(std::vector<std::unique_ptr<Channel>> channels, std::function<PageTarget*(uint32_t, uint64_t)> find)
    : channels_(std::move(channels)), find_(std::move(find)), frames_(channels_.size(), 0) {
    for (size_t stream = 0; stream < channels_.size(); ++stream) threads_.emplace_back([this, stream] { receive(stream); });
}

PageReceiver::~PageReceiver() {
    {
        const std::lock_guard lock(lock_);
        stopping_ = true;
        changed_.notify_all();
    }
    shut_down();
    for (std::thread& thread : threads_) thread.join();
}

void PageReceiver::open_round(uint32_t round) {
    const std::lock_guard lock(lock_);
    open_ = round;
    changed_.notify_all();
}

void PageReceiver::shut_down() {
    for (auto& channel : channels_) channel->shut_down();
}

Result<bool> PageReceiver::wait(const image::RoundEnd& end, Deadline deadline) {
    if (static_cast<size_t>(end.frames_size()) != channels_.size())
        return peer_failed(fmt::format("the round's end counts {} data connections, there are {}", end.frames_size(), channels_.size()));
    std::unique_lock lock(lock_);
    const auto settled = [&] {
        if (problem_) return true;
        for (size_t i = 0; i < frames_.size(); ++i)
            if (frames_[i] < end.frames(static_cast<int>(i))) return false;
        return true;
    };
    if (!changed_.wait_until(lock, deadline.when(), settled)) return false;
    if (problem_) return Failure(*problem_);
    return true;
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
    if (range.pid == 0 && range.object == 0) {
        std::unique_lock lock(lock_);
        changed_.wait(lock, [&] { return stopping_ || open_ >= static_cast<int64_t>(range.address); });
        return {};
    }
    Skeleton* found = find_(range.pid, range.object);
    if (found == nullptr)
        return peer_failed(fmt::format("pages for pid {} object {}, which the plan does not name", range.pid, range.object));
    if (!header.zero) {
        bytes_ += range.length;
        return found->write_pages(range.address, buffer, range.length);
    }
    for (uint64_t done = 0; done < range.length; done += sizeof zero_page)
        TRY(found->write_pages(range.address + done, zero_page, sizeof zero_page));
    return {};
}

}  // namespace godwit
