// The shared memory of a tree, made again: each object once, in this agent, which writes its content by offset through
// a descriptor of its own and passes descriptors to the skeletons that map or hold it.
//
//   per round: take() → pages are written → ...   after the last: finish()
//
// What happens if we die: anonymous memory and memfds end with us and the skeletons.
// Threads: the tracer thread; what find() returns is written by others while no take() is under way.
#pragma once

#include <cstdint>
#include <map>
#include <memory>

#include "common/base/result.h"
#include "common/base/unique_fd.h"
#include "common/image/process.pb.h"
#include "dest-agent/page_target.h"

namespace godwit {

class MadeObjects {
  public:
    MadeObjects();
    ~MadeObjects();
    MadeObjects(const MadeObjects&) = delete;
    MadeObjects& operator=(const MadeObjects&) = delete;

    // The objects of the first layout of a round: makes what is new, gives the others their sizes, punches what was
    // dropped, forgets what is not named any more.
    Result<void> take(const image::Layout& layout);
    // Null: no such object.
    PageTarget* find(uint64_t id);

    // A descriptor to be mapped: with write access or without. Ours; lives as long as the object.
    Result<int> to_map(uint64_t id, bool may_write);
    // A description of its own with these flags (F_GETFL).
    Result<UniqueFd> open(uint64_t id, int flags);
    // Every page is written, every mapping and description made: owner, mode, seals.
    Result<void> finish();

  private:
    class Object;
    Result<Object*> known(uint64_t id);
    std::map<uint64_t, std::unique_ptr<Object>> objects_;
};

}  // namespace godwit
