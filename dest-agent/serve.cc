#include "dest-agent/serve.h"

#include <fmt/format.h>
#include <poll.h>
#include <sys/signalfd.h>

#include <csignal>
#include <list>
#include <mutex>
#include <thread>

#include "common/base/log.h"
#include "common/recovery/hold_cgroup.h"
#include "dest-agent/recover.h"
#include "transport/handshake.h"
#include "transport/listener.h"

namespace godwit {
namespace {

constexpr milliseconds greeting_limit{10'000};
constexpr milliseconds recover_limit{60'000};
constexpr size_t most_connections = 64;  // at a time: a peer that has proved nothing cannot take all our memory

class Server {
  public:
    explicit Server(const ServeOptions& options) : options_(options) {}
    Result<void> run(Listener& listener, int signals);

  private:
    // One peer: its thread, and its connection while that can be shut down from outside.
    struct Peer {
        std::thread thread;
        Channel* channel = nullptr;
        bool ended = false;
    };

    void start(PendingLink pending);
    Result<void> serve_peer(Peer& peer, PendingLink& pending);
    Result<void> dispatch(const Greeting& greeting, std::unique_ptr<Channel>& channel);
    Result<void> admit(const Greeting& greeting);
    void attach(Peer& peer, Channel* channel);
    void join_ended();
    void stop();

    const ServeOptions& options_;
    Sessions sessions_;
    std::mutex lock_;
    std::list<Peer> peers_;
    bool stopping_ = false;
};

Result<void> Server::run(Listener& listener, int signals) {
    for (;;) {
        pollfd events[] = {{listener.fd(), POLLIN, 0}, {signals, POLLIN, 0}};
        if (::poll(events, 2, 1000) < 0 && errno != EINTR) return fail_errno("poll");
        join_ended();
        // A tree that came here has a cgroup of its own, which nobody else removes when the tree ends.
        if (const auto removed = remove_ended_trees(); !removed) spdlog::debug("{}", removed.error().what);
        if (events[1].revents != 0) break;
        if (events[0].revents == 0 || peers_.size() >= most_connections) continue;
        auto pending = listener.accept(Deadline::in(milliseconds{0}));
        if (!pending)
            spdlog::warn("{}", pending.error().what);
        else if (*pending)
            start(std::move(**pending));
    }
    stop();
    return {};
}

void Server::start(PendingLink pending) {
    Peer& peer = peers_.emplace_back();
    peer.thread = std::thread([this, &peer, link = std::move(pending)]() mutable {
        const std::string name = link.peer();
        if (auto served = serve_peer(peer, link); !served) spdlog::warn("{}: {}", name, served.error().what);
        const std::lock_guard lock(lock_);
        peer.ended = true;
    });
}

Result<void> Server::serve_peer(Peer& peer, PendingLink& pending) {
    const auto deadline = Deadline::in(greeting_limit);
    auto channel = std::make_unique<Channel>(TRY(pending.finish(deadline)), Side::destination);
    attach(peer, channel.get());
    auto result = [&]() -> Result<void> {
        const Greeting greeting = TRY(answer_hello(*channel, deadline, [this](const Greeting& hello) { return admit(hello); }));
        return dispatch(greeting, channel);
    }();
    attach(peer, nullptr);
    return result;
}

// A data connection must belong to a migration that is coming in.
Result<void> Server::admit(const Greeting& greeting) {
    if (greeting.role != image::ROLE_DATA || sessions_.find(greeting.migration_id)) return {};
    return peer_failed("no migration " + greeting.migration_id + " is coming in here");
}

Result<void> Server::dispatch(const Greeting& greeting, std::unique_ptr<Channel>& channel) {
    switch (greeting.role) {
        case image::ROLE_CONTROL:
            return migrate_in(*channel, greeting.migration_id, sessions_, options_.incoming);
        case image::ROLE_DATA:
            if (const auto session = sessions_.find(greeting.migration_id))
                return session->offer(greeting.stream, std::move(channel));
            return peer_failed("migration " + greeting.migration_id + " ended before its data connection came");
        case image::ROLE_RECOVER:
            return answer_recover(*channel, options_.incoming.state_dir, Deadline::in(recover_limit));
        default:
            return peer_failed("a connection for nothing that is known here");
    }
}

void Server::attach(Peer& peer, Channel* channel) {
    const std::lock_guard lock(lock_);
    peer.channel = channel;
    if (stopping_ && channel != nullptr) channel->shut_down();
}

void Server::join_ended() {
    const std::lock_guard lock(lock_);
    peers_.remove_if([](Peer& peer) {
        // An ended thread takes no lock any more.
        if (peer.ended) peer.thread.join();
        return peer.ended;
    });
}

void Server::stop() {
    {
        const std::lock_guard lock(lock_);
        stopping_ = true;
        for (Peer& peer : peers_)
            if (peer.channel != nullptr) peer.channel->shut_down();
    }
    for (Peer& peer : peers_) peer.thread.join();
}

}  // namespace

Result<void> serve(const ServeOptions& options) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    const UniqueFd signals(::signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK));
    if (!signals) return fail_errno("signalfd");
    TRY(open_state_dir(options.incoming.state_dir));
    // An agent that died here may have left skeletons or a held tree.
    for (const DestinationRecovered& left : TRY(recover_destinations(options.incoming.state_dir)))
        spdlog::warn("migration {}: {}", left.migration_id, left.what);
    Listener listener = TRY(Listener::open(options.listen, options.security));
    Address bound = options.listen;
    bound.port = listener.port();
    if (options.on_listening) options.on_listening(bound.text());
    return Server(options).run(listener, signals.get());
}

}  // namespace godwit
