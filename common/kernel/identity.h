// What makes a file the same file on two hosts.
#pragma once

#include <string>

#include "common/base/result.h"
#include "common/image/session.pb.h"

namespace godwit {

// Looks at the file that `open_path` leads to (a path, or a link such as /proc/PID/map_files/..., whose file is found even
// if its name is gone); `name` is the path that the other host will look up. Only regular files are opened, read-only, and
// only when not `writable`: an ELF file gives its build-id (the NT_GNU_BUILD_ID note), any other one the XXH3-64 of its
// content. Files larger than 1 GiB without a build-id get neither and match only as the very same file.
// A Problem with error ENOENT: it is gone.
Result<image::FileIdentity> identify_file(const std::string& open_path, const std::string& name, bool writable);

}  // namespace godwit
