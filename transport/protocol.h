// The frames of the protocol and which phase may hold which. docs/protocol.md has the diagrams.
//
// Stop and pre-copy, on the control connection (S source, D destination; P: page frames on data connections):
//
//   S HELLO         D HELLO_REPLY
//   S PLAN          D PLAN_REPLY          (D checks, reserves PIDs; nothing at S was touched before)
//   S LAYOUT*       (one per process, per round)
//   P ROUND_BEGIN  P PAGES*   S ROUND_END  D ROUND_REPLY   (per round of the running tree; none in mode stop)
//   S LAYOUT*       (of the frozen tree)
//   P ROUND_BEGIN  P PAGES*   S LAST_ROUND_END             (no answer: READY implies it)
//   S PROCESS*  S FILES  S STATE_END
//   D READY         (restored, stopped, flushed)
//   S GO            (journal COMMITTED was fsynced, tree frozen in the hold cgroup)
//   D RUNNING
//   S DONE          (frozen copy killed, journal DONE)   D DONE_REPLY
//
// Either side may send ABORT (Troubles) at any time before GO; the connection ends after it.
#pragma once

#include <cstdint>
#include <string_view>

namespace godwit {

inline constexpr uint32_t protocol_major = 1;
inline constexpr uint32_t protocol_minor = 0;

enum class FrameType : uint16_t {
    hello = 1,
    hello_reply = 2,
    plan = 3,
    plan_reply = 4,
    layout = 5,
    pages = 6,  // data connections only
    round_end = 7,
    round_reply = 8,
    process = 9,
    files = 10,
    state_end = 11,
    ready = 12,
    go = 13,
    running = 14,
    done = 15,
    done_reply = 16,
    abort = 17,
    recover_query = 18,
    recover_reply = 19,
    keep_alive = 20,
    round_begin = 21,     // data connections only
    last_round_end = 22,  // RoundEnd of the frozen tree's round: nobody waits for an answer
};

// "hello_reply" and so on; "unknown" for a number that is no frame type.
std::string_view name_of(FrameType type);

// Feature bits of HELLO.
enum Feature : uint64_t {
    feature_lz4 = 1u << 0,  // page_flag_lz4
};

// Caps, so that no length of a peer's makes us allocate more.
inline constexpr uint32_t max_message_bytes = 64u << 20;  // a control message
inline constexpr uint32_t max_page_bytes = 1u << 20;      // content of one page frame, before compression
inline constexpr uint32_t max_page_ranges = 4096;         // of one page frame

}  // namespace godwit
