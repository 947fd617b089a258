#include "common/kernel/machine.h"

#include <fmt/format.h>
#include <sys/auxv.h>
#include <sys/utsname.h>
#include <unistd.h>
#include <xxhash.h>

#include <cstring>
#include <ctime>

#include "common/base/file.h"
#include "common/kernel/proc.h"

#ifndef AT_RSEQ_FEATURE_SIZE
#define AT_RSEQ_FEATURE_SIZE 27  // Linux 6.3
#endif

namespace godwit {
namespace {

constexpr int64_t second_ns = 1'000'000'000;

// /proc/PID/timens_offsets holds the offsets for children of PID; they are PID's own when both links name one namespace.
Result<TimeOffsets> read_offsets(pid_t pid) {
    TimeOffsets out;
    const auto text = read_file(fmt::format("/proc/{}/timens_offsets", pid));
    if (!text) {
        if (text.error().error == ENOENT && ::access("/proc/self/ns/time", F_OK) != 0) return out;
        return Failure(text.error());
    }
    long long seconds = 0;
    long nanoseconds = 0;
    const char* at = std::strstr(text->c_str(), "monotonic");
    if (at != nullptr && std::sscanf(at, "monotonic %lld %ld", &seconds, &nanoseconds) == 2)
        out.monotonic_ns = seconds * second_ns + nanoseconds;
    at = std::strstr(text->c_str(), "boottime");
    if (at != nullptr && std::sscanf(at, "boottime %lld %ld", &seconds, &nanoseconds) == 2)
        out.boottime_ns = seconds * second_ns + nanoseconds;
    return out;
}

}  // namespace

int64_t now_ns(clockid_t clock) {
    timespec now{};
    ::clock_gettime(clock, &now);
    return now.tv_sec * second_ns + now.tv_nsec;
}

Result<TimeOffsets> time_offsets_of(pid_t pid) {
    if (::access("/proc/self/ns/time", F_OK) != 0) return TimeOffsets{};
    if (TRY(namespace_inode(pid, "time")) != TRY(namespace_inode(pid, "time_for_children")))
        return unsupported(fmt::format("pid {} has made a time namespace for its children", pid),
                           "time namespaces made by the tree itself are not carried yet");
    return read_offsets(pid);
}

Result<image::Clocks> clocks_of(pid_t pid) {
    const TimeOffsets ours = TRY(time_offsets_of(::getpid()));
    const TimeOffsets theirs = TRY(time_offsets_of(pid));
    image::Clocks clocks;
    clocks.set_monotonic_ns(now_ns(CLOCK_MONOTONIC) - ours.monotonic_ns + theirs.monotonic_ns);
    clocks.set_boottime_ns(now_ns(CLOCK_BOOTTIME) - ours.boottime_ns + theirs.boottime_ns);
    clocks.set_realtime_ns(now_ns(CLOCK_REALTIME));
    return clocks;
}

Result<image::Machine> this_machine() {
    image::Machine machine;
    utsname names{};
    if (::uname(&names) != 0) return fail_errno("uname");
    machine.set_architecture(names.machine);
    machine.set_kernel_release(names.release);
    machine.set_host_name(names.nodename);
    std::string boot_id = TRY(read_file("/proc/sys/kernel/random/boot_id"));
    boot_id.erase(boot_id.find_last_not_of('\n') + 1);
    machine.set_boot_id(boot_id);
    machine.set_page_size(static_cast<uint32_t>(::sysconf(_SC_PAGESIZE)));
    machine.set_rseq_size(static_cast<uint32_t>(::getauxval(AT_RSEQ_FEATURE_SIZE)));
    for (const Vma& vma : TRY(read_maps(::getpid()))) {
        if (vma.path != "[vdso]") continue;
        machine.set_vdso_size(static_cast<uint32_t>(vma.size()));
        const uint64_t hash = XXH3_64bits(reinterpret_cast<const void*>(vma.start), vma.size());
        machine.set_vdso_hash(&hash, sizeof hash);
    }
    detail::fill_cpu(machine);
    return machine;
}

std::vector<Problem> compare_machines(const image::Machine& from, const image::Machine& to) {
    std::vector<Problem> problems;
    const auto refuse = [&](std::string what, std::string hint) {
        problems.push_back({std::move(what), std::move(hint), ExitCode::unsupported, 0});
    };
    if (from.architecture() != to.architecture()) {
        refuse(fmt::format("the tree runs on {} and this host is {}", from.architecture(), to.architecture()),
               "migrate to a host of the same architecture");
        return problems;
    }
    if (from.page_size() != to.page_size())
        refuse(fmt::format("pages are {} bytes there and {} here", from.page_size(), to.page_size()),
               "migrate to a host with the same page size");
    if (from.vdso_size() != to.vdso_size() || from.vdso_hash() != to.vdso_hash())
        refuse(fmt::format("the vDSO of kernel {} differs from that of kernel {} here", from.kernel_release(), to.kernel_release()),
               "hosts with different kernels are not carried yet: boot the same kernel on both");
    if (from.rseq_size() > to.rseq_size())
        refuse(fmt::format("rseq has {} bytes there and {} here", from.rseq_size(), to.rseq_size()),
               "use the same kernel on both hosts");
    for (Problem& problem : detail::compare_cpus(from, to)) problems.push_back(std::move(problem));
    return problems;
}

}  // namespace godwit
