#include "dest-agent/made_objects.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <linux/memfd.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <set>

#include "common/base/fault.h"
#include "common/base/file.h"
#include "common/base/log.h"
#include "common/base/text.h"
#include "dest-agent/layout.h"

#ifndef MFD_EXEC
#define MFD_EXEC 0x10U  // Linux 6.3
#endif

namespace godwit {
namespace {

constexpr const char* hostile = "the source is broken or hostile";
constexpr uint64_t most_size = uint64_t{1} << 62;

uint64_t whole_pages(uint64_t size) { return (size + page_size - 1) / page_size * page_size; }

Failure cannot_make(int error, const std::string& name) {
    const char* hint = error == EMFILE || error == ENFILE
                           ? "raise the limit of open files of `godwit serve` (ulimit -n)"
                       : error == EACCES ? "vm.memfd_noexec keeps this host from making executable memfds"
                       : error == ENOMEM || error == ENOSPC ? "free memory here, or migrate to a larger host"
                                                            : "";
    return fail_errno(error, "cannot make " + name, hint);
}

// Its seals come last; until then it is as anybody may change it, which is us alone.
Result<UniqueFd> make_memfd(const image::SharedObject& wanted, const std::string& name) {
    // Without MFD_EXEC newer kernels warn, or make it not executable; older ones do not know the flag.
    int fd = ::memfd_create(wanted.name().c_str(), MFD_CLOEXEC | MFD_ALLOW_SEALING | MFD_EXEC);
    if (fd < 0 && errno == EINVAL) fd = ::memfd_create(wanted.name().c_str(), MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (fd < 0) return cannot_make(errno, name);
    return UniqueFd(fd);
}

// The kernel makes such an object with a mapping only; the mapping's own link opens it.
Result<UniqueFd> make_anonymous(const image::SharedObject& wanted, const std::string& name) {
    const uint64_t size = whole_pages(wanted.size());
    void* start = ::mmap(nullptr, size, PROT_READ | PROT_WRITE,
                         MAP_SHARED | MAP_ANONYMOUS | (wanted.no_reserve() ? MAP_NORESERVE : 0), -1, 0);
    if (start == MAP_FAILED) return cannot_make(errno, name);
    const Mapping mapping(start, size);
    const auto address = reinterpret_cast<uintptr_t>(start);
    return open_file(fmt::format("/proc/self/map_files/{:x}-{:x}", address, address + size), O_RDWR);
}

Result<UniqueFd> make_file(const image::SharedObject& wanted, const std::string& name) {
    const int fd = ::open(wanted.name().c_str(), O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK, 0600);
    if (fd < 0) return cannot_make(errno, name);
    return UniqueFd(fd);
}

}  // namespace

class MadeObjects::Object final : public PageTarget {
  public:
    explicit Object(image::SharedObject wanted) : wanted_(std::move(wanted)) {}
    ~Object() override;
    Object(const Object&) = delete;
    Object& operator=(const Object&) = delete;

    Result<void> make();
    // Later words about the same object.
    Result<void> correct(const image::SharedObject& wanted);
    Result<void> finish();
    Result<int> to_map(bool may_write);
    Result<UniqueFd> open(int flags) const;
    void release() { released_ = true; }

    Result<void> write(std::span<const PageRange> ranges, const std::byte* content) override;
    Result<void> zero(std::span<const PageRange> ranges) override;

  private:
    std::string name() const;
    Result<void> check() const;
    Result<void> check_range(uint64_t offset, uint64_t length) const;
    Result<void> set_size();
    Result<void> punch(uint64_t offset, uint64_t length);

    image::SharedObject wanted_;
    UniqueFd fd_;         // reads and writes
    UniqueFd read_only_;  // made when it is needed
    bool released_ = false;
};

// Only what is ours still: somebody may have put another file there.
MadeObjects::Object::~Object() {
    if (wanted_.kind() != image::OBJECT_TMPFS || !fd_ || released_) return;
    struct stat made {
    }, there{};
    const std::string& path = wanted_.name();
    const bool ours = ::fstat(fd_.get(), &made) == 0 && ::lstat(path.c_str(), &there) == 0 &&
                      made.st_dev == there.st_dev && made.st_ino == there.st_ino;
    if (ours && ::unlink(path.c_str()) != 0)
        spdlog::warn("cannot remove {}, which was made for a migration: {}", printable(path), std::strerror(errno));
}

std::string MadeObjects::Object::name() const {
    if (wanted_.kind() == image::OBJECT_TMPFS)
        return fmt::format("file {} of {} bytes", printable(wanted_.name()), wanted_.size());
    if (wanted_.kind() == image::OBJECT_MEMFD)
        return fmt::format("memfd \"{}\" of {} bytes", printable(wanted_.name()), wanted_.size());
    return fmt::format("shared memory {:#x} of {} bytes", wanted_.id(), wanted_.size());
}

Result<void> MadeObjects::Object::check() const {
    constexpr uint32_t known_seals = 0x3f;  // up to F_SEAL_EXEC, Linux 6.3
    const bool memfd = wanted_.kind() == image::OBJECT_MEMFD, anonymous = wanted_.kind() == image::OBJECT_ANONYMOUS;
    if (!memfd && !anonymous && wanted_.kind() != image::OBJECT_TMPFS)
        return peer_failed(
            fmt::format("shared object {:#x} is of kind {}", wanted_.id(), static_cast<int>(wanted_.kind())),
            "use the same godwit on both hosts");
    if (wanted_.size() > most_size || (anonymous && (wanted_.size() == 0 || wanted_.size() > address_limit)))
        return peer_failed(fmt::format("shared object {:#x} has {} bytes", wanted_.id(), wanted_.size()), hostile);
    if (wanted_.name().find('\0') != std::string::npos || (wanted_.seals() & ~known_seals) != 0 ||
        (wanted_.mode() & ~07777u) != 0)
        return peer_failed(
            fmt::format("shared object {:#x} has a name, seals or a mode that are not known", wanted_.id()), hostile);
    return {};
}

Result<void> MadeObjects::Object::make() {
    TRY(check());
    if (wanted_.dropped_size() != 0)
        return peer_failed(fmt::format("the first word of shared object {:#x} builds on another", wanted_.id()),
                           hostile);
    switch (wanted_.kind()) {
        case image::OBJECT_MEMFD:
            fd_ = TRY(make_memfd(wanted_, name()));
            break;
        case image::OBJECT_TMPFS:
            fd_ = TRY(make_file(wanted_, name()));
            break;
        default:
            fd_ = TRY(make_anonymous(wanted_, name()));
            break;
    }
    fault_point("objects:made");
    return set_size();
}

Result<void> MadeObjects::Object::correct(const image::SharedObject& wanted) {
    const bool same = wanted.kind() == wanted_.kind() && wanted.name() == wanted_.name();
    const uint64_t size = wanted_.size();
    wanted_ = wanted;
    TRY(check());
    if (!same || (wanted_.kind() == image::OBJECT_ANONYMOUS && size != wanted_.size()))
        return peer_failed(fmt::format("shared object {:#x} is another one now", wanted_.id()), hostile);
    if (size != wanted_.size()) TRY(set_size());
    for (const image::PageSpan& span : wanted_.dropped()) {
        TRY(check_range(span.start(), span.length()));
        TRY(punch(span.start(), span.length()));
    }
    wanted_.clear_dropped();
    return {};
}

Result<void> MadeObjects::Object::set_size() {
    if (wanted_.kind() == image::OBJECT_ANONYMOUS) return {};
    if (::ftruncate64(fd_.get(), static_cast<off64_t>(wanted_.size())) != 0) return cannot_make(errno, name());
    return {};
}

Result<void> MadeObjects::Object::check_range(uint64_t offset, uint64_t length) const {
    const uint64_t end = whole_pages(wanted_.size());
    if (offset % page_size == 0 && length % page_size == 0 && length != 0 && offset < end && length <= end - offset)
        return {};
    return peer_failed(fmt::format("{} bytes at offset {:#x} are no pages of {}", length, offset, name()), hostile);
}

// The last page may end behind the object: what comes of that is zeros.
Result<void> MadeObjects::Object::write(std::span<const PageRange> ranges, const std::byte* content) {
    fault_point("objects:write");
    for (const PageRange& range : ranges) TRY(check_range(range.address, range.length));
    for (const PageRange& range : ranges) {
        const uint64_t end = std::min(range.address + range.length, wanted_.size());
        for (uint64_t at = range.address; at < end;) {
            const ssize_t done =
                ::pwrite64(fd_.get(), content + (at - range.address), end - at, static_cast<off64_t>(at));
            if (done < 0 && errno == EINTR) continue;
            if (done <= 0) return cannot_make(done == 0 ? ENOSPC : errno, name());
            at += static_cast<uint64_t>(done);
        }
        content += range.length;
    }
    return {};
}

Result<void> MadeObjects::Object::zero(std::span<const PageRange> ranges) {
    for (const PageRange& range : ranges) TRY(check_range(range.address, range.length));
    for (const PageRange& range : ranges) TRY(punch(range.address, range.length));
    return {};
}

Result<void> MadeObjects::Object::punch(uint64_t offset, uint64_t length) {
    if (::fallocate64(fd_.get(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, static_cast<off64_t>(offset),
                      static_cast<off64_t>(length)) == 0)
        return {};
    return fail_errno(fmt::format("cannot punch {} bytes at offset {:#x} of {}", length, offset, name()));
}

Result<int> MadeObjects::Object::to_map(bool may_write) {
    if (may_write) return fd_.get();
    if (!read_only_) read_only_ = TRY(open(O_RDONLY));
    return read_only_.get();
}

Result<UniqueFd> MadeObjects::Object::open(int flags) const {
    constexpr int never = O_CREAT | O_EXCL | O_TRUNC | (O_TMPFILE & ~O_DIRECTORY) | O_DIRECTORY | O_ASYNC;
    return open_file(fmt::format("/proc/self/fd/{}", fd_.get()), flags & ~never);
}

Result<void> MadeObjects::Object::finish() {
    if (wanted_.kind() == image::OBJECT_ANONYMOUS) return {};
    struct stat now {};
    if (::fstat(fd_.get(), &now) != 0) return fail_errno("cannot look at " + name());
    if ((now.st_uid != wanted_.uid() || now.st_gid != wanted_.gid()) &&
        ::fchown(fd_.get(), wanted_.uid(), wanted_.gid()) != 0)
        return fail_errno(fmt::format("cannot give {} to uid {}", name(), wanted_.uid()));
    if ((now.st_mode & 07777) != wanted_.mode() && ::fchmod(fd_.get(), wanted_.mode()) != 0)
        return fail_errno(fmt::format("cannot give {} the mode {:#o}", name(), wanted_.mode()));
    if (wanted_.seals() != 0 && ::fcntl(fd_.get(), F_ADD_SEALS, wanted_.seals()) != 0)
        return fail_errno(errno, fmt::format("cannot seal {} with {:#x}", name(), wanted_.seals()),
                          "this kernel does not know all of its seals, or maps it for writing");
    if (wanted_.kind() != image::OBJECT_TMPFS) return {};
    constexpr int64_t billion = 1'000'000'000;
    const timespec times[2] = {{0, UTIME_NOW}, {wanted_.modified_ns() / billion, wanted_.modified_ns() % billion}};
    if (wanted_.modified_ns() >= 0 && ::futimens(fd_.get(), times) != 0)
        return fail_errno("cannot set the times of " + name());
    return {};
}

void MadeObjects::release() {
    for (auto& [id, object] : objects_) object->release();
}

MadeObjects::MadeObjects() = default;
MadeObjects::~MadeObjects() = default;

Result<void> MadeObjects::take(const image::Layout& layout) {
    std::set<uint64_t> named;
    for (const image::SharedObject& wanted : layout.objects()) {
        if (wanted.id() == 0 || !named.insert(wanted.id()).second)
            return peer_failed(fmt::format("shared object {:#x} came twice", wanted.id()), hostile);
        if (const auto have = objects_.find(wanted.id()); have != objects_.end()) {
            TRY(have->second->correct(wanted));
            continue;
        }
        if (wanted.kind() == image::OBJECT_TMPFS && !files_.contains(wanted.name()))
            return peer_failed(fmt::format("file {} was not agreed on", printable(wanted.name())), hostile);
        auto object = std::make_unique<Object>(wanted);
        TRY(object->make());
        objects_[wanted.id()] = std::move(object);
    }
    std::erase_if(objects_, [&](const auto& entry) { return !named.contains(entry.first); });
    return {};
}

PageTarget* MadeObjects::find(uint64_t id) {
    const auto found = objects_.find(id);
    return found == objects_.end() ? nullptr : found->second.get();
}

Result<MadeObjects::Object*> MadeObjects::known(uint64_t id) {
    const auto found = objects_.find(id);
    if (found == objects_.end()) return peer_failed(fmt::format("shared object {:#x} did not come", id), hostile);
    return found->second.get();
}

Result<int> MadeObjects::to_map(uint64_t id, bool may_write) { return TRY(known(id))->to_map(may_write); }

Result<UniqueFd> MadeObjects::open(uint64_t id, int flags) { return TRY(known(id))->open(flags); }

Result<void> MadeObjects::finish() {
    for (auto& [id, object] : objects_) TRY(object->finish());
    return {};
}

}  // namespace godwit
