#include "source-agent/collect/classify.h"

#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <algorithm>
#include <array>

#include "common/base/text.h"
#include "common/base/unique_fd.h"
#include "source-agent/collect/shared_objects.h"

namespace godwit {
namespace {

constexpr std::string_view deleted = " (deleted)";

// VmFlags (proc(5)) that are carried, or that tell nothing that would have to be. "gu" says that there may be guard pages; the page
// map says whether there are.
constexpr std::array<std::string_view, 26> carried_flags{
    "rd", "wr", "ex", "sh", "mr", "mw", "me", "ms", "gd", "lo", "sr", "rr", "dc", "de",
    "ac", "nr", "ar", "wf", "dd", "sd", "hg", "nh", "mg", "lf", "mm", "gu",
};

struct RefusedFlag {
    std::string_view flag;
    const char* what;
    const char* hint;
};
constexpr std::array<RefusedFlag, 9> refused_flags{{
    {"ht", "huge pages of hugetlbfs", "run the program without explicit huge pages"},
    {"pf", "device memory", "close the device first"},
    {"io", "device memory", "close the device first"},
    {"um", "a userfaultfd of the program's own", "a program that handles its own page faults is not carried yet"},
    {"uw", "a userfaultfd of the program's own", "a program that handles its own page faults is not carried yet"},
    {"ui", "a userfaultfd of the program's own", "a program that handles its own page faults is not carried yet"},
    {"ss", "a shadow stack", "run the program with GLIBC_TUNABLES=glibc.cpu.x86_shstk=off"},
    {"sl", "a sealed mapping (mseal)", "sealed mappings are not carried yet"},
    {"dp", "droppable memory", "MAP_DROPPABLE is not carried yet"},
}};

bool is_special(const std::string& path) {
    return path.empty() || path == "[heap]" || path == "[stack]" || path.starts_with("[anon:");
}

// The text between the colon and the bracket of "[anon:NAME]".
std::string anonymous_name(const std::string& path) {
    const size_t colon = path.find(':');
    return colon == std::string::npos ? std::string{} : path.substr(colon + 1, path.size() - colon - 2);
}

}  // namespace

Result<MappingClassifier> MappingClassifier::make(pid_t pid) {
    MappingClassifier out;
    out.pid_ = pid;
    out.shared_memory_device_ = TRY(shared_memory_device());
    return out;
}

std::string MappingClassifier::link_of(const Vma& vma) const {
    return fmt::format("/proc/{}/map_files/{:x}-{:x}", pid_, vma.start, vma.end);
}

std::string MappingClassifier::describe(const Vma& vma) const {
    return fmt::format("mapping {:x}-{:x} {} of pid {}", vma.start, vma.end, vma.path.empty() ? "(anonymous)" : printable(vma.path), pid_);
}

Result<MappingClass> MappingClassifier::classify(const Vma& vma) const {
    MappingClass out;
    if (vma.path == "[vdso]") {
        out.kind = image::MAPPING_VDSO;
        return out;
    }
    if (vma.path == "[vvar]" || vma.path == "[vvar_vclock]") {
        out.kind = image::MAPPING_VVAR;
        return out;
    }
    if (vma.path == "[vsyscall]") {
        out.kind = image::MAPPING_VSYSCALL;
        return out;
    }
    TRY(check_flags(vma));
    if (is_special(vma.path) && !vma.shared) {
        out.kind = image::MAPPING_ANONYMOUS;
        out.name = anonymous_name(vma.path);
        return out;
    }
    if (vma.path.starts_with("/") || vma.path.starts_with("[anon_shmem:")) return classify_file(vma);
    if (vma.path == "[uprobes]") return unsupported(describe(vma) + " belongs to uprobes", "end the tracing of the program, then restart it");
    return unsupported(describe(vma) + " is of a kind that is not known", "it cannot be carried");
}

Result<void> MappingClassifier::check_flags(const Vma& vma) const {
    for (const RefusedFlag& refused : refused_flags)
        if (vma.has(refused.flag)) return unsupported(describe(vma) + " is " + refused.what, refused.hint);
    for (const std::string& flag : vma.flags)
        if (std::find(carried_flags.begin(), carried_flags.end(), flag) == carried_flags.end())
            return unsupported(describe(vma) + " has the flag \"" + printable(flag) + "\", which is not known", "it cannot be carried");
    if (vma.protection_key != 0)
        return unsupported(describe(vma) + " has a protection key", "pkey_mprotect(2) is not carried yet");
    return {};
}

Result<MappingClass> MappingClassifier::classify_file(const Vma& vma) const {
    struct stat info;
    // The mapping's own file, whatever its name leads to now.
    if (::stat(link_of(vma).c_str(), &info) != 0) return fail_errno("cannot look at " + describe(vma));
    MappingClass out;
    out.device = info.st_dev;
    out.inode = info.st_ino;
    // These live on file systems of the kernel's own, as files without a name.
    if (vma.path.starts_with("/[aio]")) return unsupported(describe(vma) + " is a ring of io_setup(2)", "asynchronous I/O is not carried yet");
    if (vma.path.starts_with("/secretmem")) return unsupported(describe(vma) + " is memory of memfd_secret(2)", "nobody but the program can read it");
    if (info.st_dev == shared_memory_device_) return classify_shared_memory(vma, std::move(out));
    if (S_ISCHR(info.st_mode)) {
        if (info.st_rdev != makedev(1, 5) || vma.shared)
            return unsupported(describe(vma) + " is a device", "close the device first");
        out.kind = image::MAPPING_ANONYMOUS;  // a private mapping of /dev/zero is anonymous memory
        return out;
    }
    if (!S_ISREG(info.st_mode)) return unsupported(describe(vma) + " is not a regular file", "it cannot be carried");
    if (info.st_nlink == 0 || vma.path.ends_with(deleted))
        return unsupported(describe(vma) + " is a deleted file", "restart the program after an upgrade; deleted files are not carried yet");
    struct stat named;
    if (::stat(vma.path.c_str(), &named) != 0 || named.st_dev != info.st_dev || named.st_ino != info.st_ino)
        return unsupported(describe(vma) + ": its path leads to another file now", "restart the program, or put the file back");
    out.kind = vma.shared ? image::MAPPING_FILE_SHARED : image::MAPPING_FILE_PRIVATE;
    out.path = vma.path;
    return out;
}

// A name that was given to the mapping (PR_SET_VMA_ANON_NAME) hides that of the object.
Result<MappingClass> MappingClassifier::classify_shared_memory(const Vma& vma, MappingClass out) const {
    const bool renamed = vma.path.starts_with("[anon_shmem:");
    const std::string path = renamed ? TRY(read_link(link_of(vma))) : vma.path;
    if (renamed) out.name = anonymous_name(vma.path);
    const bool memfd = path.starts_with("/memfd:");
    if (path.starts_with("/SYSV")) return unsupported(describe(vma) + " is SysV shared memory", "SysV IPC is not carried yet");
    if (!memfd && path != "/dev/zero (deleted)")
        return unsupported(describe(vma) + " is shared memory of a kind that is not known", "it cannot be carried");
    if (!memfd && !vma.shared) return unsupported(describe(vma) + " is a private mapping of shared memory", "it cannot be carried");
    out.kind = vma.shared ? image::MAPPING_OBJECT_SHARED : image::MAPPING_OBJECT_PRIVATE;
    return out;
}

}  // namespace godwit
