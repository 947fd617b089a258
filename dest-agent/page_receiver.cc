#include "dest-agent/page_receiver.h"

#include <fmt/format.h>

#include <system_error>

namespace godwit {
namespace {

constexpr milliseconds idle_limit{300'000};   // between two frames, from one round to the next too
constexpr milliseconds layout_limit{300'000};  // from ROUND_BEGIN to its layout
constexpr milliseconds abort_limit{2'000};

}  // namespace

PageReceiver::PageReceiver(std::vector<std::unique_ptr<Channel>> channels, Find find) : find_(std::move(find)) {
    for (auto& channel : channels) streams_.push_back({std::move(channel), 0, std::nullopt, false});
    threads_.reserve(streams_.size());
    try {
        for (Stream& stream : streams_) threads_.emplace_back([this, &stream] { receive(stream); });
    } catch (const std::system_error& error) {
        const std::lock_guard lock(lock_);
        problem_ = Problem{fmt::format("cannot start a thread: {}", error.what()), "is the number of processes limited (ulimit -u, pids.max)?", ExitCode::failed, 0};
    }
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

Result<void> PageReceiver::check() {
    const std::lock_guard lock(lock_);
    if (problem_) return Failure(*problem_);
    return {};
}

void PageReceiver::shut_down() {
    for (Stream& stream : streams_) stream.channel->shut_down();
}

void PageReceiver::open_round(uint32_t round) {
    const std::lock_guard lock(lock_);
    open_ = round;
    changed_.notify_all();
}

Result<bool> PageReceiver::wait(const image::RoundEnd& end, Deadline deadline) {
    if (static_cast<size_t>(end.frames_size()) != streams_.size())
        return peer_failed(fmt::format("the round's end counts {} data connections, there are {}", end.frames_size(), streams_.size()));
    std::unique_lock lock(lock_);
    if (!open_ || *open_ != end.round()) return peer_failed(fmt::format("the end of round {}, which has not begun", end.round()));
    const auto settled = [&] {
        if (problem_) return true;
        for (size_t i = 0; i < streams_.size(); ++i)
            if (streams_[i].frames < end.frames(static_cast<int>(i)) || streams_[i].writing) return false;
        return true;
    };
    if (!changed_.wait_until(lock, deadline.when(), settled)) return false;
    if (problem_) return Failure(*problem_);
    for (size_t i = 0; i < streams_.size(); ++i) {
        if (streams_[i].round != end.round())
            return peer_failed(fmt::format("data connection {} ended round {}, which it had not begun", i, end.round()));
        if (streams_[i].frames > end.frames(static_cast<int>(i)))
            return peer_failed(fmt::format("data connection {} brought more than the round's end counts", i));
    }
    open_.reset();
    return true;
}

void PageReceiver::receive(Stream& stream) {
    DataFrame frame;
    bool first = false;
    for (bool over = false; !over;) {
        auto received = receive_frame(stream, frame);
        const std::lock_guard lock(lock_);
        stream.writing = false;
        first = !received && !problem_ && !stopping_;
        if (!received && !problem_) problem_ = received.error();
        if (received) ++stream.frames;
        over = problem_ || stopping_;
        changed_.notify_all();
    }
    // Nobody takes what any of them would still send. The source is sending: it hears why at once, and on this connection.
    if (first) stream.channel->abort({&*problem_, 1}, Deadline::in(abort_limit));
    shut_down();
}

Result<void> PageReceiver::receive_frame(Stream& stream, DataFrame& frame) {
    const FrameType type = TRY(stream.channel->receive_data(frame, Deadline::in(idle_limit)));
    if (type == FrameType::round_begin) return begin_round(stream, frame.round);
    {
        const std::lock_guard lock(lock_);
        if (!stream.round || stream.round != open_)
            return peer_failed(fmt::format("{}: pages outside a round", stream.channel->peer()), "the source is broken or hostile");
        stream.writing = true;
    }
    return write(frame);
}

// Rounds come one after the other, from 0. The next one waits for its layout, and so for the end of this one.
Result<void> PageReceiver::begin_round(Stream& stream, uint32_t round) {
    std::unique_lock lock(lock_);
    const uint32_t due = stream.round ? *stream.round + 1 : 0;
    if (round != due)
        return peer_failed(fmt::format("{} began round {} where {} was due", stream.channel->peer(), round, due),
                           "the source is broken or hostile");
    const auto settled = [&] { return problem_ || stopping_ || open_ == round; };
    if (!changed_.wait_for(lock, layout_limit, settled))
        return peer_failed(fmt::format("the layout of round {} did not come in time", round));
    // When it has ended for another reason, nobody looks at this connection's Problem any more.
    if (open_ != round) return fail("the migration was called off");
    stream.round = round;
    return {};
}

Result<void> PageReceiver::write(const DataFrame& frame) {
    PageTarget* target = find_(frame.header.pid, frame.header.object);
    if (target == nullptr)
        return peer_failed(fmt::format("pages for pid {} object {}, which the plan does not name", frame.header.pid, frame.header.object),
                           "the source is broken or hostile");
    std::vector<PageRange> filled, zero;
    for (const PageRange& range : frame.ranges) (range.zero ? zero : filled).push_back(range);
    if (!filled.empty()) TRY(target->write(filled, frame.content.data()));
    if (!zero.empty()) TRY(target->zero(zero));
    bytes_ += frame.header.content_bytes;
    return {};
}

}  // namespace godwit
