// Descriptors of shared memory that was made with the mappings.
#include <fmt/format.h>
#include <unistd.h>

#include "dest-agent/restore/files_internal.h"

namespace godwit::files {

Result<UniqueFd> open_object(const image::Description& description, MadeObjects* objects) {
    const image::ObjectFile& file = description.object_file();
    if (objects == nullptr) return fail(fmt::format("shared object {:#x} is not to be had", file.object()));
    UniqueFd fd = TRY(objects->open(file.object(), static_cast<int>(description.flags())));
    if (file.position() != 0 && ::lseek64(fd.get(), file.position(), SEEK_SET) != file.position())
        return fail_errno(
            fmt::format("cannot set the position {} in shared object {:#x}", file.position(), file.object()));
    return fd;
}

}  // namespace godwit::files
