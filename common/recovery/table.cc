#include "common/recovery/table.h"

#include <array>
#include <utility>

namespace godwit {
namespace {

using D = DestinationState;
using DA = DestinationAction;
using SA = SourceAction;

// The source never said GO, or was told that the destination gave up: its copy is the tree.
Settlement source_has_it(SourceState source, D destination) {
    const SA resume = SA::resume;  // moving the tree back to its cgroup is all that this is when it runs already
    switch (destination) {
        case D::preparing:
        case D::ready:
            return {DA::discard, resume, true, ExitCode::done, "the tree runs on at the source"};
        case D::none:
        case D::aborted:
        case D::lost:
            return {DA::nothing, resume, true, ExitCode::done, "the tree runs on at the source"};
        // Only a peer that was declared lost and came back can be here. Its copy was never let run.
        case D::owned:
            return {DA::discard, resume, true, ExitCode::done,
                    "the tree runs on at the source; the destination discarded its held copy"};
        case D::running:
            if (source == SourceState::preparing) break;  // it runs without our GO: not a state of this protocol
            return {DA::nothing, SA::nothing, false, ExitCode::uncertain,
                    "both sides run the tree, because a destination that was declared lost came back: end one of them"};
        case D::busy:
        case D::unreachable:
            return {DA::nothing, resume, false, ExitCode::done, "the tree runs on at the source"};
    }
    return {DA::nothing, SA::nothing, false, ExitCode::uncertain,
            "the destination says that it runs a tree that the source never gave away: is it the same migration"};
}

Settlement committed(D destination, OperatorWord word) {
    switch (destination) {
        case D::none:  // it has nothing, and must not begin to: the answer to `discard` is a tombstone
        case D::preparing:
        case D::ready:
            return {DA::discard, SA::resume, true, ExitCode::done,
                    "the destination gave up; the tree runs on at the source"};
        case D::aborted:
            return {DA::nothing, SA::resume, true, ExitCode::done,
                    "the destination gave up; the tree runs on at the source"};
        case D::owned:
            return {DA::thaw, SA::kill, true, ExitCode::done, "the tree runs at the destination"};
        case D::running:
            return {DA::nothing, SA::kill, true, ExitCode::done, "the tree runs at the destination"};
        case D::busy:
            return {DA::nothing, SA::nothing, false, ExitCode::uncertain,
                    "an agent at the destination is still at work on it"};
        case D::lost:
        case D::unreachable:
            break;
    }
    const bool forget = destination == D::lost;
    if (word == OperatorWord::resume)
        return {DA::nothing, SA::resume, forget, ExitCode::done,
                "the tree runs on at the source, as the operator decided"};
    if (word == OperatorWord::discard)
        return {DA::nothing, SA::kill, forget, ExitCode::done, "the source's copy was killed, as the operator decided"};
    return {DA::nothing, SA::nothing, false, ExitCode::uncertain,
            forget ? "the destination owned the tree and has it no more: it ended there, or its host was started anew"
                   : "the destination does not answer; the tree is held frozen"};
}

// The source gave the tree away and was told that it runs.
Settlement given_away(D destination) {
    switch (destination) {
        case D::none:
        case D::running:
        case D::aborted:
        case D::lost:
            return {DA::nothing, SA::kill, true, ExitCode::done, "the tree was handed over"};
        case D::owned:
            return {DA::thaw, SA::kill, true, ExitCode::done, "the tree runs at the destination"};
        // Only after the operator declared the destination lost and had the source's copy discarded.
        case D::preparing:
        case D::ready:
            return {DA::discard, SA::kill, true, ExitCode::done, "both copies are discarded, as the operator decided"};
        case D::busy:
        case D::unreachable:
            return {DA::nothing, SA::kill, false, ExitCode::done, "the tree was handed over"};
    }
    return {};
}

constexpr std::array<std::pair<SourceState, std::string_view>, 5> source_names{{
    {SourceState::none, "none"},
    {SourceState::preparing, "preparing"},
    {SourceState::committed, "committed"},
    {SourceState::done, "done"},
    {SourceState::aborted, "aborted"},
}};
constexpr std::array<std::pair<D, std::string_view>, 9> destination_names{{
    {D::none, "none"},
    {D::preparing, "preparing"},
    {D::ready, "ready"},
    {D::owned, "owned"},
    {D::running, "running"},
    {D::aborted, "aborted"},
    {D::lost, "lost"},
    {D::busy, "busy"},
    {D::unreachable, "unreachable"},
}};
constexpr std::array<std::pair<DA, std::string_view>, 3> action_names{{
    {DA::nothing, ""},
    {DA::discard, "discard"},
    {DA::thaw, "resume"},
}};

template <class Names, class Value>
std::string_view name_in(const Names& names, Value value) {
    for (const auto& [each, name] : names)
        if (each == value) return name;
    return "?";
}
template <class Value, class Names>
std::optional<Value> value_in(const Names& names, std::string_view text) {
    for (const auto& [each, name] : names)
        if (name == text) return each;
    return std::nullopt;
}

}  // namespace

Settlement settle(SourceState source, DestinationState destination, OperatorWord word) {
    switch (source) {
        case SourceState::none:
            return {};
        case SourceState::preparing:
        case SourceState::aborted:
            return source_has_it(source, destination);
        case SourceState::committed:
            return committed(destination, word);
        case SourceState::done:
            return given_away(destination);
    }
    return {};
}

DestinationAction settle_alone(DestinationState destination) {
    switch (destination) {
        case D::preparing:
        case D::ready:
            return DA::discard;  // whoever settles holds the journal's lock: nobody is left to take a GO
        case D::owned:
            return DA::thaw;  // the source runs its copy only after an answer that this one gave up
        case D::none:
        case D::running:
        case D::aborted:
        case D::lost:
        case D::busy:
        case D::unreachable:
            break;
    }
    return DA::nothing;
}

std::string_view name_of(SourceState state) { return name_in(source_names, state); }
std::string_view name_of(DestinationState state) { return name_in(destination_names, state); }
std::string_view name_of(DestinationAction action) { return name_in(action_names, action); }
std::optional<SourceState> source_state(std::string_view name) { return value_in<SourceState>(source_names, name); }
std::optional<DestinationState> destination_state(std::string_view name) {
    return value_in<DestinationState>(destination_names, name);
}
std::optional<DestinationAction> destination_action(std::string_view name) {
    return value_in<DestinationAction>(action_names, name);
}
std::optional<OperatorWord> operator_word(std::string_view name) {
    if (name.empty()) return OperatorWord::none;
    if (name == "resume") return OperatorWord::resume;
    if (name == "discard") return OperatorWord::discard;
    return std::nullopt;
}

}  // namespace godwit
