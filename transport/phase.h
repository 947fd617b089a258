// Which frame may come when. The whole table is in phase.cc; docs/protocol.md draws it.
#pragma once

#include <string_view>

#include "common/base/result.h"
#include "common/image/session.pb.h"
#include "transport/protocol.h"

namespace godwit {

// Who we are in a conversation. Who connects is the source; on a recover connection that is who asks.
enum class Side { source, destination };
std::string_view name_of(Side side);

// Named by what is awaited. Control connections go through them in order; `pages` is the one phase of a data
// connection after its hello, `recover` and `recover_reply` alternate on a recover connection.
enum class Phase {
    hello,
    hello_reply,
    plan,
    plan_reply,
    layout,  // LAYOUT* and the first ROUND_END
    round_reply,
    next_round,   // LAYOUT*, another ROUND_END or the LAST_ROUND_END
    state_begin,  // the first PROCESS
    state,        // PROCESS* or FILES
    state_end,
    ready,
    go,
    running,  // GO was said: no ABORT from here on
    done,
    done_reply,
    pages,
    recover,
    recover_reply,
    over,
};
std::string_view name_of(Phase phase);

// Follows one connection, fed with every frame that is sent or received. Threads: the Channel's.
class PhaseGuard {
  public:
    explicit PhaseGuard(Side side) : side_(side) {}

    // Refuses a frame that may not come now, from this side or from the peer, and otherwise goes on to the phase
    // that follows it. Refused frames change nothing.
    Result<void> send(FrameType type) { return step(side_, type); }
    Result<void> receive(FrameType type) {
        return step(side_ == Side::source ? Side::destination : Side::source, type);
    }
    // The role that HELLO gave the connection; before HELLO_REPLY.
    void set_role(image::Role role) { role_ = role; }
    Side side() const { return side_; }
    image::Role role() const { return role_; }
    Phase phase() const { return phase_; }

  private:
    Result<void> step(Side sender, FrameType type);
    const Side side_;
    image::Role role_ = image::ROLE_UNKNOWN;
    Phase phase_ = Phase::hello;
};

}  // namespace godwit
