// What a Skeleton knows; shared by skeleton.cc, mappings.cc and pages.cc.
#pragma once

#include <atomic>
#include <optional>

#include "dest-agent/layout.h"
#include "dest-agent/page_filler.h"
#include "dest-agent/skeleton.h"

namespace godwit {

// What a mapping is made with. Where that is not its final protection, finish_memory() changes it.
uint32_t first_protection(const image::MappingRange& range);

struct Skeleton::State {
    State() = default;
    State(const State&) = delete;
    State& operator=(const State&) = delete;
    ~State();

    image::Layout layout;
    UniqueFd pidfd;
    std::vector<Tracee> tasks;  // never grows after the executor moved in, which points at the leader
    std::optional<Remote> remote;
    ProcessMemory memory;
    PageFiller filler;  // until finish_memory()
    bool released = false;

    // skeleton.cc
    Result<void> start(Spawner& spawner);
    Result<void> clear();
    Result<void> set_memory_map();
    Result<void> make_threads();
    void kill();

    // mappings.cc
    Result<void> make_mappings();
    Result<void> make_anonymous();
    Result<void> make_of_files();
    Result<void> make_shared_objects();
    Result<void> advise();

    // pages.cc
    struct Piece;
    Result<const image::MappingRange*> mapping_for(uint64_t address) const;
    Result<std::vector<Piece>> cut(std::span<const PageRange> ranges) const;
    Result<void> write(std::vector<Piece> pieces);
    Result<void> write_by_force(const Piece& piece, int error);
    std::atomic<bool> filling = true;  // what worked last: missing pages were filled, or ones that were there written
};

}  // namespace godwit
