// CPU and kernel facts that decide whether a tree can go on elsewhere, and clocks.
#pragma once

#include <vector>

#include "common/base/result.h"
#include "common/image/session.pb.h"

namespace godwit {

// This machine. Words of cpu_features for x86-64: CPUID leaf 1 ecx, edx; leaf 7.0 ebx, ecx, edx; leaf 7.1 eax; leaf
// 0xd.1 eax; leaf 0x80000001 ecx, edx.
Result<image::Machine> this_machine();

// Everything that keeps a program which started on `from` from going on on `to`, one Problem each.
std::vector<Problem> compare_machines(const image::Machine& from, const image::Machine& to);

// CLOCK_MONOTONIC, CLOCK_BOOTTIME and CLOCK_REALTIME as `pid` sees them (through its time namespace), from a
// reading of ours and /proc/PID/timens_offsets: offsets of the initial namespace's clocks, so nesting cannot add up.
Result<image::Clocks> clocks_of(pid_t pid);

// Nanoseconds of one of this thread's clocks.
int64_t now_ns(clockid_t clock);

// What is to be added to the initial namespace's clock for it to show what /proc/PID/timens_offsets of its children says.
struct TimeOffsets {
    int64_t monotonic_ns = 0;
    int64_t boottime_ns = 0;
};
// Offsets that apply to `pid` itself; zero where the kernel has no time namespaces.
Result<TimeOffsets> time_offsets_of(pid_t pid);

namespace detail {
// Architecture-dependent part, in common/kernel/<architecture>/.
void fill_cpu(image::Machine& machine);
std::vector<Problem> compare_cpus(const image::Machine& from, const image::Machine& to);
}  // namespace detail

}  // namespace godwit
