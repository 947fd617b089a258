#include "transport/phase.h"

#include <fmt/format.h>

namespace godwit {
namespace {

constexpr Side S = Side::source, D = Side::destination;

struct Rule {
    image::Role role;  // ROLE_UNKNOWN: any
    Phase phase;
    Side sender;
    FrameType type;
    Phase next;
};

constexpr Rule rules[] = {
    {image::ROLE_UNKNOWN, Phase::hello, S, FrameType::hello, Phase::hello_reply},

    {image::ROLE_CONTROL, Phase::hello_reply, D, FrameType::hello_reply, Phase::plan},
    {image::ROLE_CONTROL, Phase::plan, S, FrameType::plan, Phase::plan_reply},
    {image::ROLE_CONTROL, Phase::plan_reply, D, FrameType::plan_reply, Phase::layout},
    {image::ROLE_CONTROL, Phase::layout, S, FrameType::layout, Phase::layout},
    {image::ROLE_CONTROL, Phase::layout, S, FrameType::round_end, Phase::round_reply},
    {image::ROLE_CONTROL, Phase::round_reply, D, FrameType::round_reply, Phase::next_round},
    {image::ROLE_CONTROL, Phase::next_round, S, FrameType::layout, Phase::next_round},
    {image::ROLE_CONTROL, Phase::next_round, S, FrameType::round_end, Phase::round_reply},
    {image::ROLE_CONTROL, Phase::layout, S, FrameType::last_round_end, Phase::state_begin},
    {image::ROLE_CONTROL, Phase::next_round, S, FrameType::last_round_end, Phase::state_begin},
    {image::ROLE_CONTROL, Phase::next_round, S, FrameType::process, Phase::state},
    {image::ROLE_CONTROL, Phase::state_begin, S, FrameType::process, Phase::state},
    {image::ROLE_CONTROL, Phase::state, S, FrameType::process, Phase::state},
    {image::ROLE_CONTROL, Phase::state, S, FrameType::files, Phase::state_end},
    {image::ROLE_CONTROL, Phase::state_end, S, FrameType::state_end, Phase::ready},
    {image::ROLE_CONTROL, Phase::ready, D, FrameType::ready, Phase::go},
    {image::ROLE_CONTROL, Phase::go, S, FrameType::go, Phase::running},
    {image::ROLE_CONTROL, Phase::running, D, FrameType::running, Phase::done},
    {image::ROLE_CONTROL, Phase::done, S, FrameType::done, Phase::done_reply},
    {image::ROLE_CONTROL, Phase::done_reply, D, FrameType::done_reply, Phase::over},

    {image::ROLE_DATA, Phase::hello_reply, D, FrameType::hello_reply, Phase::pages},
    {image::ROLE_DATA, Phase::pages, S, FrameType::round_begin, Phase::pages},
    {image::ROLE_DATA, Phase::pages, S, FrameType::pages, Phase::pages},

    {image::ROLE_RECOVER, Phase::hello_reply, D, FrameType::hello_reply, Phase::recover},
    {image::ROLE_RECOVER, Phase::recover, S, FrameType::recover_query, Phase::recover_reply},
    {image::ROLE_RECOVER, Phase::recover_reply, D, FrameType::recover_reply, Phase::recover},

    // The answer to a HELLO whose role we do not know: it can only hold problems.
    {image::ROLE_UNKNOWN, Phase::hello_reply, D, FrameType::hello_reply, Phase::over},
};

// After GO both sides may hold the tree: nobody can call it off any more.
bool may_abort(Phase phase) {
    switch (phase) {
        case Phase::running:
        case Phase::done:
        case Phase::done_reply:
        case Phase::over:
            return false;
        default:
            return true;
    }
}

bool may_keep_alive(Phase phase) {
    return phase != Phase::hello && phase != Phase::hello_reply && phase != Phase::over;
}

}  // namespace

std::string_view name_of(Side side) { return side == Side::source ? "source" : "destination"; }

std::string_view name_of(Phase phase) {
    switch (phase) {
        case Phase::hello:
            return "hello";
        case Phase::hello_reply:
            return "hello_reply";
        case Phase::plan:
            return "plan";
        case Phase::plan_reply:
            return "plan_reply";
        case Phase::layout:
            return "layout";
        case Phase::round_reply:
            return "round_reply";
        case Phase::next_round:
            return "next_round";
        case Phase::state_begin:
            return "state_begin";
        case Phase::state:
            return "state";
        case Phase::state_end:
            return "state_end";
        case Phase::ready:
            return "ready";
        case Phase::go:
            return "go";
        case Phase::running:
            return "running";
        case Phase::done:
            return "done";
        case Phase::done_reply:
            return "done_reply";
        case Phase::pages:
            return "pages";
        case Phase::recover:
            return "recover";
        case Phase::recover_reply:
            return "recover_reply";
        case Phase::over:
            return "over";
    }
    return "unknown";
}

Result<void> PhaseGuard::step(Side sender, FrameType type) {
    if (type == FrameType::keep_alive && may_keep_alive(phase_)) return {};
    if (type == FrameType::abort && may_abort(phase_)) {
        phase_ = Phase::over;
        return {};
    }
    for (const Rule& rule : rules) {
        const bool applies = (rule.role == image::ROLE_UNKNOWN || rule.role == role_) && rule.phase == phase_;
        if (!applies || rule.sender != sender || rule.type != type) continue;
        phase_ = rule.next;
        return {};
    }
    const ExitCode code = sender == side_ ? ExitCode::failed : ExitCode::peer;
    return fail(fmt::format("a {} frame from the {} in phase {}", name_of(type), name_of(sender), name_of(phase_)), {},
                code);
}

}  // namespace godwit
