#include "common/kernel/identity.h"

#include <elf.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>
#include <xxhash.h>

#include <cstring>
#include <memory>
#include <optional>
#include <vector>

#include "common/base/file.h"
#include "common/base/text.h"

namespace godwit {
namespace {

constexpr uint64_t largest_hashed = 1ull << 30;
constexpr size_t largest_notes = 1u << 20;

template <class T>
bool read_at(int fd, uint64_t offset, T& out) {
    return ::pread(fd, &out, sizeof out, static_cast<off_t>(offset)) == sizeof out;
}

// The build-id in one PT_NOTE segment, empty if there is none.
std::string build_id_in(const std::vector<char>& notes) {
    size_t at = 0;
    const auto padded = [](uint64_t size) { return (size + 3) & ~3ull; };
    while (at + sizeof(Elf64_Nhdr) <= notes.size()) {
        Elf64_Nhdr header;
        std::memcpy(&header, notes.data() + at, sizeof header);
        at += sizeof header;
        const uint64_t size = padded(header.n_namesz) + padded(header.n_descsz);
        if (size > notes.size() - at) return {};
        const char* name = notes.data() + at;
        if (header.n_type == NT_GNU_BUILD_ID && header.n_namesz == 4 && std::memcmp(name, "GNU", 4) == 0)
            return {name + padded(header.n_namesz), header.n_descsz};
        at += size;
    }
    return {};
}

// Empty for what is not a 64-bit ELF file with a build-id.
std::string read_build_id(int fd) {
    Elf64_Ehdr header;
    if (!read_at(fd, 0, header) || std::memcmp(header.e_ident, ELFMAG, SELFMAG) != 0) return {};
    if (header.e_ident[EI_CLASS] != ELFCLASS64 || header.e_phentsize != sizeof(Elf64_Phdr)) return {};
    for (unsigned i = 0; i < header.e_phnum; ++i) {
        Elf64_Phdr segment;
        if (!read_at(fd, header.e_phoff + i * sizeof segment, segment)) return {};
        if (segment.p_type != PT_NOTE || segment.p_filesz > largest_notes) continue;
        std::vector<char> notes(segment.p_filesz);
        if (::pread(fd, notes.data(), notes.size(), static_cast<off_t>(segment.p_offset)) != static_cast<ssize_t>(notes.size()))
            return {};
        if (std::string id = build_id_in(notes); !id.empty()) return id;
    }
    return {};
}

Result<uint64_t> hash_content(int fd, const std::string& name) {
    const std::unique_ptr<XXH3_state_t, decltype(&XXH3_freeState)> state(XXH3_createState(), XXH3_freeState);
    if (!state) return fail("out of memory");
    XXH3_64bits_reset(state.get());
    std::vector<char> buffer(1u << 20);
    for (;;) {
        const ssize_t got = ::read(fd, buffer.data(), buffer.size());
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) return fail_errno("cannot read " + printable(name));
        if (got == 0) return XXH3_64bits_digest(state.get());
        XXH3_64bits_update(state.get(), buffer.data(), static_cast<size_t>(got));
    }
}

}  // namespace

Result<image::FileIdentity> identify_file(const std::string& open_path, const std::string& name, bool writable) {
    struct stat info;
    struct statfs file_system;
    if (::stat(open_path.c_str(), &info) != 0) return fail_errno("cannot look at " + printable(name));
    if (::statfs(open_path.c_str(), &file_system) != 0) return fail_errno("cannot look at the file system of " + printable(name));
    image::FileIdentity identity;
    identity.set_path(name);
    identity.set_device(info.st_dev);
    identity.set_inode(info.st_ino);
    identity.set_size(static_cast<uint64_t>(info.st_size));
    identity.set_mtime_ns(info.st_mtim.tv_sec * 1'000'000'000 + info.st_mtim.tv_nsec);
    identity.set_mode(info.st_mode);
    identity.set_writable(writable);
    uint64_t id = 0;
    std::memcpy(&id, &file_system.f_fsid, sizeof id);
    identity.set_file_system(id);
    if (!S_ISREG(info.st_mode) || writable) return identity;
    const UniqueFd fd = TRY(open_file(open_path, O_RDONLY | O_NOCTTY | O_NONBLOCK));
    identity.set_build_id(read_build_id(fd.get()));
    if (identity.build_id().empty() && identity.size() <= largest_hashed) identity.set_content_hash(TRY(hash_content(fd.get(), name)));
    return identity;
}

}  // namespace godwit
