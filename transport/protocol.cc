#include "transport/protocol.h"

namespace godwit {

std::string_view name_of(FrameType type) {
    switch (type) {
        case FrameType::hello:
            return "hello";
        case FrameType::hello_reply:
            return "hello_reply";
        case FrameType::plan:
            return "plan";
        case FrameType::plan_reply:
            return "plan_reply";
        case FrameType::layout:
            return "layout";
        case FrameType::pages:
            return "pages";
        case FrameType::round_end:
            return "round_end";
        case FrameType::round_reply:
            return "round_reply";
        case FrameType::process:
            return "process";
        case FrameType::files:
            return "files";
        case FrameType::state_end:
            return "state_end";
        case FrameType::ready:
            return "ready";
        case FrameType::go:
            return "go";
        case FrameType::running:
            return "running";
        case FrameType::done:
            return "done";
        case FrameType::done_reply:
            return "done_reply";
        case FrameType::abort:
            return "abort";
        case FrameType::recover_query:
            return "recover_query";
        case FrameType::recover_reply:
            return "recover_reply";
        case FrameType::keep_alive:
            return "keep_alive";
        case FrameType::round_begin:
            return "round_begin";
        case FrameType::last_round_end:
            return "last_round_end";
    }
    return "unknown";
}

}  // namespace godwit
