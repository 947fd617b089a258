// Mappings of shared objects in a skeleton, through descriptors that the agent passes to it and it closes again.
#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#include <map>

#include "dest-agent/made_objects.h"
#include "dest-agent/named_calls.h"
#include "dest-agent/skeleton_state.h"

namespace godwit {
namespace {

using Part = LayoutChanges::Part;

constexpr size_t objects_at_once = 64;

// If we die between the descriptors' coming and their closing, the skeleton is killed.
using PartsByDescriptor = std::map<int, std::vector<const Part*>>;

Result<void> map_some(Remote& remote, PartsByDescriptor::const_iterator first, size_t count) {
    std::vector<int> ours;
    for (auto at = first; ours.size() < count; ++at) ours.push_back(at->first);
    const std::vector<int> theirs = TRY(remote.send_fds(ours));
    NamedCalls calls;
    for (const int fd : theirs) {
        for (const Part* part : first->second) {
            const auto& want = *part->want;
            const int sharing = want.kind() == image::MAPPING_OBJECT_SHARED ? MAP_SHARED : MAP_PRIVATE;
            calls.call(
                fmt::format("map {:x}-{:x} of shared object {:#x}", part->start, part->end, want.shared_object()),
                SYS_mmap, part->start, part->end - part->start, first_protection(want),
                sharing | MAP_FIXED_NOREPLACE | (want.no_reserve() ? MAP_NORESERVE : 0), fd,
                want.offset() + part->start - want.start());
        }
        calls.try_call(SYS_close, fd);
        ++first;
    }
    return calls.run(remote);
}

}  // namespace

Result<void> Skeleton::State::make_of_objects(const Parts& parts) {
    PartsByDescriptor by_descriptor;
    for (const Part& part : parts) {
        if (part.want->shared_object() == 0) continue;
        if (objects == nullptr)
            return fail(fmt::format("shared object {:#x} of process {} is not to be had", part.want->shared_object(),
                                    layout.pid()));
        by_descriptor[TRY(objects->to_map(part.want->shared_object(), part.want->may_write()))].push_back(&part);
    }
    for (auto at = by_descriptor.cbegin(); at != by_descriptor.cend();) {
        const size_t count = std::min(objects_at_once, static_cast<size_t>(std::distance(at, by_descriptor.cend())));
        TRY(map_some(*remote, at, count));
        std::advance(at, count);
    }
    return {};
}

}  // namespace godwit
