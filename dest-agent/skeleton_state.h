// What a Skeleton knows; shared by skeleton.cc, mappings.cc and pages.cc.
#pragma once

#include <atomic>
#include <optional>

#include "common/image/layout_changes.h"
#include "dest-agent/layout.h"
#include "dest-agent/made_objects.h"
#include "dest-agent/page_filler.h"
#include "dest-agent/skeleton.h"

namespace godwit {

// What a mapping has until finish_memory(), where that is not its final protection.
uint32_t first_protection(const image::MappingRange& range);
// Where no mapping of the layout is and nothing else in the skeleton.
Result<RemotePtr> place_for_executor(const image::Layout& layout);

struct Skeleton::State {
    State() = default;
    State(const State&) = delete;
    State& operator=(const State&) = delete;
    ~State();

    image::Layout layout;
    MadeObjects* objects = nullptr;
    UniqueFd pidfd;
    std::vector<Tracee> tasks;  // never grows after the executor moved in, which points at the leader
    std::optional<Remote> remote;
    ProcessMemory memory;
    PageFiller filler;  // until finish_memory()
    bool corrected = false;
    bool released = false;

    // skeleton.cc
    Result<void> start(Spawner& spawner);
    Result<void> clear();
    Result<void> make_threads(const std::vector<int32_t>& tids);
    void kill();

    // corrections.cc
    Result<void> correct(image::Layout next);
    Result<void> clear_the_way(const image::Layout& next);
    Result<void> unmap(const std::vector<LayoutChanges::Span>& spans);
    Result<void> adjust(const std::vector<LayoutChanges::Part>& parts);
    Result<void> drop(const image::Layout& next);
    Result<void> correct_threads(const image::Layout& next);
    Result<void> end_thread(Tracee& task, RemotePtr instruction);

    // seams.cc
    Result<void> close_seams();
    Result<void> make_whole(const image::MappingRange& range, uint64_t place);

    // mappings.cc: `parts` of `of`, where nothing is mapped
    using Parts = std::vector<LayoutChanges::Part>;
    Result<void> make_mappings(const image::Layout& of, const Parts& parts);
    Result<void> make_anonymous(const Parts& parts);
    Result<void> make_of_files(const image::Layout& of, const Parts& parts);
    Result<void> make_of_objects(const Parts& parts);  // object_mappings.cc
    Result<void> advise(const Parts& parts);

    // pages.cc
    struct Piece;
    Result<const image::MappingRange*> mapping_for(uint64_t address) const;
    Result<std::vector<Piece>> cut(std::span<const PageRange> ranges) const;
    Result<void> write(std::vector<Piece> pieces);
    Result<void> write_by_force(const Piece& piece, int error);
    std::atomic<bool> filling = true;  // what worked last: missing pages were filled, or ones that were there written
};

}  // namespace godwit
