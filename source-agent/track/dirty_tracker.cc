#include "source-agent/track/dirty_tracker.h"

#include <fmt/format.h>

#include "source-agent/track/soft_dirty.h"
#include "source-agent/track/userfaultfd.h"
#include "source-agent/track/wp_async.h"

namespace godwit {

Result<std::unique_ptr<DirtyTracker>> make_tracker(pid_t pid, TrackerBackend backend) {
    std::optional<Problem> missing;
    if (backend != TrackerBackend::soft_dirty) {
        missing = Userfaultfd::missing();
        if (!missing) return std::make_unique<WpAsyncTracker>(pid);
        if (backend == TrackerBackend::wp_async) return Failure(std::move(*missing));
    }
    if (TRY(SoftDirtyTracker::available())) return std::make_unique<SoftDirtyTracker>(pid);
    if (!missing)
        return unsupported("this kernel has no soft-dirty bits (CONFIG_MEM_SOFT_DIRTY)", "use userfaultfd (Linux 6.7), or --mode stop");
    return unsupported(fmt::format("this kernel cannot track the memory that a process writes: {}, and it has no soft-dirty bits "
                                   "(CONFIG_MEM_SOFT_DIRTY)", missing->what),
                       "use --mode stop");
}

}  // namespace godwit
