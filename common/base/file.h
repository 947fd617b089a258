// Whole small files: /proc, /sys, journals, keys.
#pragma once

#include <string>
#include <string_view>

#include "common/base/result.h"
#include "common/base/unique_fd.h"

namespace godwit {

// open(2) with O_CLOEXEC; the Problem names the path.
Result<UniqueFd> open_file(const std::string& path, int flags, unsigned mode = 0);
// The whole content, up to `limit` bytes (more is an error). Works on /proc files, whose size is unknown.
Result<std::string> read_file(const std::string& path, size_t limit = 64u << 20);
// One write(2) of the whole text, as /proc and cgroup files need it.
Result<void> write_once(const std::string& path, std::string_view text);
// Writes a new file beside `path`, fsyncs it, renames it over `path` and fsyncs the folder: after a
// crash at any point there is the old content or the new one.
Result<void> replace_file(const std::string& path, std::string_view text, unsigned mode = 0600);
// mkdir -p with this mode for what is missing.
Result<void> make_folders(const std::string& path, unsigned mode = 0700);
// All bytes, or a Problem; retries after EINTR and short transfers.
Result<void> write_all(int fd, const void* data, size_t size);
Result<void> read_all(int fd, void* data, size_t size);

}  // namespace godwit
