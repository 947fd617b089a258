#include "common/kernel/tree_clock.h"

#include <fmt/format.h>
#include <time.h>

#include <cstdio>

#include "common/base/file.h"

namespace godwit {
namespace {

constexpr int64_t billion = 1'000'000'000;

// Lines "monotonic   SECONDS NANOSECONDS" and "boottime   ...".
Result<int64_t> offset_of(const std::string& pid, int clock) {
    const std::string path = "/proc/" + pid + "/timens_offsets";
    const auto text = read_file(path);
    if (!text && text.error().error == ENOENT && ::access(("/proc/" + pid).c_str(), F_OK) == 0) return 0;
    if (!text) return Failure(text.error());
    const char* name = clock == CLOCK_MONOTONIC ? "monotonic" : "boottime";
    const size_t at = text->find(name);
    long long seconds = 0, nanoseconds = 0;
    if (at == std::string::npos || std::sscanf(text->c_str() + at, "%*s %lld %lld", &seconds, &nanoseconds) != 2)
        return fail("cannot make sense of " + path);
    return seconds * billion + nanoseconds;
}

}  // namespace

int64_t own_clock(int clock) {
    timespec now{};
    ::clock_gettime(clock, &now);
    return now.tv_sec * billion + now.tv_nsec;
}

Result<int64_t> tree_clock(pid_t pid, int clock) {
    const int64_t theirs = TRY(offset_of(std::to_string(pid), clock));
    const int64_t ours = TRY(offset_of("self", clock));
    return own_clock(clock) - ours + theirs;
}

}  // namespace godwit
