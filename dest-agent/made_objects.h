// The shared memory of a tree, made again: each object once, in this agent, which writes its content by offset through
// a descriptor of its own and passes descriptors to the skeletons that map or hold it.
//
//   per round: take() → pages are written → ...   after the last: finish()
//
// Files on tmpfs are removed again unless release() was called. What happens if we die: anonymous memory and memfds end
// with us and the skeletons, files stay; the next migration names them.
// Threads: the tracer thread; what find() returns is written by others while no take() is under way.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <set>
#include <string>

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

    // The files on tmpfs that were agreed on; no other is made.
    void may_make(std::set<std::string> files) { files_ = std::move(files); }
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
    // The tree is ours: what was made stays when this ends.
    void release();

  private:
    class Object;
    Result<Object*> known(uint64_t id);
    std::map<uint64_t, std::unique_ptr<Object>> objects_;
    std::set<std::string> files_;
};

}  // namespace godwit
