// Regular files, directories and the memory devices.
#include <fcntl.h>
#include <fmt/format.h>
#include <linux/magic.h>
#include <sys/sysmacros.h>
#include <sys/vfs.h>

#include <algorithm>

#include "common/base/text.h"
#include "source-agent/collect/files_internal.h"

namespace godwit::files {
namespace {

// File systems whose files are storage: what is written there is found there again. All others (proc, sysfs, cgroup,
// bpf ...) show the state of this kernel; one that is not listed is refused by its number. Values: linux/magic.h and statfs(2).
constexpr uint64_t storage[] = {
    EXT4_SUPER_MAGIC,        // ext2 and ext3 too
    0x58465342,              // xfs
    BTRFS_SUPER_MAGIC,
    F2FS_SUPER_MAGIC,
    OVERLAYFS_SUPER_MAGIC,
    TMPFS_MAGIC,
    RAMFS_MAGIC,
    NFS_SUPER_MAGIC,
    0xFF534D42,              // cifs
    0xFE534D42,              // smb2
    CEPH_SUPER_MAGIC,
    FUSE_SUPER_MAGIC,        // virtiofs too
    V9FS_MAGIC,
    EROFS_SUPER_MAGIC_V1,
    SQUASHFS_MAGIC,
    MSDOS_SUPER_MAGIC,
    0x2011BAB0,              // exfat
    0x5346544e,              // ntfs
    0x7366746e,              // ntfs3
    ISOFS_SUPER_MAGIC,
    UDF_SUPER_MAGIC,
    0x2fc12fc1,              // zfs
    0xca451a4e,              // bcachefs
    0x01161970,              // gfs2
    OCFS2_SUPER_MAGIC,
    0x0BD00BD0,              // lustre
    0x47504653,              // gpfs
    AFS_FS_MAGIC,
    0x3153464a,              // jfs
    REISERFS_SUPER_MAGIC,
    NILFS_SUPER_MAGIC,
    ECRYPTFS_SUPER_MAGIC,
    0x19830326,              // beegfs
};

const char* name_of_file_system(uint64_t type) {
    switch (type) {
        case PROC_SUPER_MAGIC: return "proc";
        case SYSFS_MAGIC: return "sysfs";
        case DEBUGFS_MAGIC: return "debugfs";
        case TRACEFS_MAGIC: return "tracefs";
        case CGROUP_SUPER_MAGIC: return "cgroup";
        case CGROUP2_SUPER_MAGIC: return "cgroup2";
        case BPF_FS_MAGIC: return "bpf";
        case SECURITYFS_MAGIC: return "securityfs";
        case NSFS_MAGIC: return "nsfs";
        case DEVPTS_SUPER_MAGIC: return "devpts";
        case HUGETLBFS_MAGIC: return "hugetlbfs";
        case 0x19800202: return "mqueue";
        default: return nullptr;
    }
}

Refusal check_file_system(const Seen& one) {
    // Asked of the descriptor: not every file system is mounted where a path would lead to it.
    struct statfs info {};
    if (::statfs(fmt::format("/proc/{}/fd/{}", one.pid, one.fd).c_str(), &info) != 0)
        return refuse(one, fmt::format("cannot look at the file system of {}", printable(one.link)), "is it still mounted?");
    const auto type = static_cast<uint64_t>(static_cast<uint32_t>(info.f_type));
    if (std::find(std::begin(storage), std::end(storage), type) != std::end(storage)) return {};
    if (const char* name = name_of_file_system(type))
        return refuse(one, fmt::format("{} is on {}, which shows the state of this host", printable(one.link), name),
                      "have the program close it, then try again");
    return refuse(one, fmt::format("{} is on a file system of type {:#x}, which is not known to hold plain files", printable(one.link), type),
                  "have the program close it, then try again");
}

}  // namespace

Refusal check_file(const Seen& one) {
    const std::string path = printable(one.link);
    if (one.link.starts_with("/secretmem"))
        return refuse(one, "a secret memory file", "this kind is not carried yet: have the program close it");
    if (one.status.st_nlink == 0)
        return refuse(one, "the file was deleted: " + path, "deleted files are not carried yet: have the program close it");
    if (auto refusal = check_file_system(one)) return refusal;
    struct stat there {};
    if (::stat(one.link.c_str(), &there) != 0 || there.st_dev != one.status.st_dev || there.st_ino != one.status.st_ino)
        return refuse(one, "the file was replaced or deleted, or is not reached from here: " + path,
                      "have the program open it again; godwit and the program need the same view of files");
    return {};
}

void collect_file(const Seen& one, image::Description& out) {
    auto* file = out.mutable_file();
    file->set_mode(one.status.st_mode);
    if (one.kind != Kind::memory_device) {
        file->set_path(one.link);
        file->set_position(one.position);
        return;
    }
    // By number, wherever the node stood: these are the same five in every /dev.
    const unsigned number = minor(one.status.st_rdev);
    file->set_device_number(one.status.st_rdev);
    file->set_path(number == 3 ? "/dev/null" : number == 5 ? "/dev/zero" : number == 7 ? "/dev/full" : number == 8 ? "/dev/random" : "/dev/urandom");
}

}  // namespace godwit::files
