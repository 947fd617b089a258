#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <optional>
#include <sstream>

#include "common/base/file.h"
#include "common/remote/places.h"
#include "common/remote/trace.h"
#include "common/remote/x86_64/image.h"

namespace godwit {
namespace {

struct Line {
    Range range;
    std::string permissions, name;
};

Result<std::vector<Line>> read_maps(pid_t pid) {
    std::istringstream text(TRY(read_file(fmt::format("/proc/{}/maps", pid), 1u << 30)));
    std::vector<Line> lines;
    for (std::string line; std::getline(text, line);) {
        uint64_t start = 0, end = 0;
        char permissions[5] = {};
        int name_at = 0;
        if (std::sscanf(line.c_str(), "%lx-%lx %4s %*x %*x:%*x %*u %n", &start, &end, permissions, &name_at) < 3)
            return fail(fmt::format("cannot parse the mappings of process {}", pid));
        lines.push_back({{RemotePtr(start), end - start}, permissions, line.substr(static_cast<size_t>(name_at))});
    }
    return lines;
}

Result<Range> find_vdso(pid_t pid) {
    for (const Line& line : TRY(read_maps(pid)))
        if (line.name == "[vdso]") return line.range;
    return unsupported(fmt::format("process {} has no vDSO", pid),
                       "the kernel was started with vdso=0, or the process unmapped it");
}

uint64_t boot_space() { return (executor::boot_code().size() + 63) & ~63ull; }

Result<std::string> read_vdso(const Range& vdso, const ProcessMemory& memory) {
    std::string bytes(vdso.size, '\0');
    TRY(memory.read(vdso.start, bytes.data(), bytes.size()));
    return bytes;
}

// The places for boot code, from the end: offset and the head that is there; stops at the first that is in use by the
// vDSO.
struct BootSpot {
    size_t offset = 0;
    std::optional<executor::Boot> left;
};
std::vector<BootSpot> boot_spots(const std::string& vdso) {
    std::vector<BootSpot> spots;
    for (size_t offset = vdso.size(); offset >= boot_space();) {
        offset -= boot_space();
        const std::string_view here = std::string_view(vdso).substr(offset, boot_space());
        executor::Boot head{};
        std::memcpy(&head, here.data(), sizeof head);
        if (head.magic == GW_MAGIC)
            spots.push_back({offset, head});
        else if (here.find_first_not_of('\0') == std::string_view::npos)
            spots.push_back({offset, std::nullopt});
        else
            break;
    }
    return spots;
}

Result<std::optional<Region>> region_at(const Line& line, const ProcessMemory& memory) {
    if (line.permissions != "r-xs" || line.range.size != GW_CODE_SIZE || line.name != "/dev/zero (deleted)")
        return std::optional<Region>();
    uint64_t head[2] = {};
    TRY(memory.read(line.range.start, head, sizeof head));
    if (head[0] != GW_MAGIC) return std::optional<Region>();
    Region region{{line.range.start, head[1]}, {}};
    constexpr uint64_t slots[] = {GW_HOST_SLOT, GW_VISITOR_SLOT};
    for (size_t i = 0; i < 2; ++i) {
        uint64_t owner = 0;
        TRY(memory.read(line.range.start + slots[i] + GW_OWNER, &owner, sizeof owner));
        region.owners[i] = static_cast<pid_t>(owner);
    }
    return std::optional(region);
}

}  // namespace

bool Places::hold(pid_t tid, RemotePtr instruction) const {
    const auto in = [&](const Range& range) { return range.holds(instruction); };
    return std::any_of(boots.begin(), boots.end(), in) ||
           std::any_of(regions.begin(), regions.end(), [&](const Region& region) {
               return in(region.range) ||
                      std::find(region.owners.begin(), region.owners.end(), tid) != region.owners.end();
           });
}

Result<Places> find_executors(pid_t pid) {
    const ProcessMemory memory = TRY(ProcessMemory::open(pid));
    Places places;
    for (const Line& line : TRY(read_maps(pid))) {
        if (const auto region = TRY(region_at(line, memory))) places.regions.push_back(*region);
        if (line.name != "[vdso]") continue;
        const std::string vdso = TRY(read_vdso(line.range, memory));
        for (const BootSpot& spot : boot_spots(vdso))
            if (spot.left) places.boots.push_back({line.range.start + spot.offset, boot_space()});
    }
    return places;
}

Result<BootPlace> find_boot_place(pid_t pid, const ProcessMemory& memory) {
    const Range vdso = TRY(find_vdso(pid));
    const std::string bytes = TRY(read_vdso(vdso, memory));
    std::optional<BootSpot> best;
    uint64_t sequence = 0;
    for (const BootSpot& spot : boot_spots(bytes)) {
        const uint64_t here = spot.left ? spot.left->sequence : 0;
        sequence = std::max(sequence, here);
        if (!best || here < (best->left ? best->left->sequence : 0)) best = spot;
    }
    if (!best)
        return unsupported(
            fmt::format("the vDSO of process {} has no room for {} bytes of boot code", pid, boot_space()),
            "this kernel's vDSO fills its last page");
    return BootPlace{vdso.start + best->offset, sequence + 1};
}

Result<RemotePtr> find_syscall_instruction(pid_t pid) {
    const ProcessMemory memory = TRY(ProcessMemory::open(pid));
    const Range vdso = TRY(find_vdso(pid));
    const std::string bytes = TRY(read_vdso(vdso, memory));
    const size_t at = bytes.find("\x0f\x05");
    if (at == std::string::npos)
        return unsupported(fmt::format("the vDSO of process {} has no system call instruction", pid));
    return vdso.start + at;
}

Result<bool> inside_executor(const Tracee& task) {
    const Registers registers = TRY(task.registers());
    return TRY(find_executors(task.tid())).hold(task.tid(), executor::instruction_pointer(registers));
}

Result<int> clean_leftover(Tracee& task) {
    const size_t before = TRY(find_executors(task.tid())).regions.size();
    if (before == 0) return 0;
    Remote remote = TRY(Remote::attach(task));  // which removes them
    TRY(remote.leave());
    return static_cast<int>(before - TRY(find_executors(task.tid())).regions.size());
}

}  // namespace godwit
