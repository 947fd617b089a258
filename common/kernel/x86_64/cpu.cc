// CPU features by CPUID (Intel SDM volume 2A) and the extended state that the kernel has enabled (XGETBV).
#include <cpuid.h>
#include <fmt/format.h>

#include <array>

#include "common/kernel/machine.h"

namespace godwit::detail {
namespace {

struct Word {
    uint32_t leaf;
    uint32_t subleaf;
    int output;  // 0 eax, 1 ebx, 2 ecx, 3 edx
    const char* name;
    uint32_t relevant;  // bits that a program can come to depend on
};

// Only what instructions in user mode depend on: bits for kernels (APIC, SMAP, VMX, PT ...) are left out, and OSXSAVE and
// the hypervisor bit, which tell of the host rather than of the CPU.
constexpr std::array<Word, 9> words{{
    {1, 0, 2, "1.ecx", 0x76d8'3203},
    {1, 0, 3, "1.edx", 0x0780'8110},
    {7, 0, 1, "7.ebx", 0xf1af'0b39},
    {7, 0, 2, "7.ecx", 0x1a40'5f62},
    {7, 0, 3, "7.edx", 0x03c1'411c},
    {7, 1, 0, "7.1.eax", 0x00a0'1cb7},
    {0xd, 1, 0, "d.1.eax", 0x0000'0007},
    {0x80000001, 0, 2, "80000001.ecx", 0x0021'09e1},
    {0x80000001, 0, 3, "80000001.edx", 0xe840'0800},
}};

uint32_t read_word(const Word& word) {
    uint32_t out[4] = {};
    if (__get_cpuid_count(word.leaf, word.subleaf, &out[0], &out[1], &out[2], &out[3]) == 0) return 0;
    return out[word.output];
}

uint64_t enabled_state() {
    uint32_t low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return static_cast<uint64_t>(high) << 32 | low;
}

}  // namespace

void fill_cpu(image::Machine& machine) {
    for (const Word& word : words) machine.add_cpu_features(read_word(word));
    uint32_t eax, ebx, ecx, edx;
    const bool has_xsave = __get_cpuid(1, &eax, &ebx, &ecx, &edx) != 0 && (ecx & bit_OSXSAVE) != 0;
    if (!has_xsave) return;
    machine.set_xstate_features(enabled_state());
    if (__get_cpuid_count(0xd, 0, &eax, &ebx, &ecx, &edx) != 0) machine.set_xstate_size(ebx);
}

std::vector<Problem> compare_cpus(const image::Machine& from, const image::Machine& to) {
    std::vector<Problem> problems;
    std::string missing;
    for (size_t i = 0; i < words.size(); ++i) {
        const auto index = static_cast<int>(i);
        const uint32_t there = index < from.cpu_features_size() ? from.cpu_features(index) : 0;
        const uint32_t here = index < to.cpu_features_size() ? to.cpu_features(index) : 0;
        const uint32_t lost = there & ~here & words[i].relevant;
        if (lost != 0) missing += fmt::format("{}CPUID {} bits {:#x}", missing.empty() ? "" : ", ", words[i].name, lost);
    }
    if (!missing.empty())
        problems.push_back({"this CPU lacks features that the tree may have found at its start: " + missing,
                            "migrate to a CPU that has all features of the first", ExitCode::unsupported, 0});
    if (from.xstate_features() != to.xstate_features() || from.xstate_size() != to.xstate_size())
        problems.push_back({fmt::format("the vector state differs: XCR0 {:#x} ({} bytes) there, {:#x} ({} bytes) here",
                                        from.xstate_features(), from.xstate_size(), to.xstate_features(), to.xstate_size()),
                            "hosts with different vector state are not carried yet", ExitCode::unsupported, 0});
    return problems;
}

}  // namespace godwit::detail
