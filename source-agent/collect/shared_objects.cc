#include "source-agent/collect/shared_objects.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <linux/magic.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <algorithm>
#include <ctime>

#include "common/base/file.h"
#include "common/base/text.h"
#include "common/image/layout_changes.h"
#include "common/kernel/proc.h"

namespace godwit {
namespace {

constexpr uint64_t page_size = 4096;
constexpr std::string_view deleted = " (deleted)";
constexpr std::string_view memfd_prefix = "/memfd:";
// Longer than any tick by which kernels stamp times (10 ms with CONFIG_HZ=100).
constexpr int64_t stamp_step_ns = 20'000'000;

int64_t nanoseconds(const timespec& time) { return time.tv_sec * int64_t{1'000'000'000} + time.tv_nsec; }

int64_t wall_clock_ns() {
    timespec now{};
    ::clock_gettime(CLOCK_REALTIME, &now);
    return nanoseconds(now);
}

uint64_t whole_pages(uint64_t size) { return (size + page_size - 1) / page_size * page_size; }

bool is_gone(const Problem& problem) {
    return problem.error == ENOENT || problem.error == ESRCH || problem.error == EBADF;
}

bool maps_object(const image::MappingRange& range) {
    return range.kind() == image::MAPPING_OBJECT_SHARED || range.kind() == image::MAPPING_OBJECT_PRIVATE;
}

// Where the file has content. Between the two calls it may be cut or punched: then the stretch ends.
Result<Ranges> data_of(int fd, const std::string& name) {
    Ranges out;
    for (off64_t at = 0;;) {
        const off64_t data = ::lseek64(fd, at, SEEK_DATA);
        if (data < 0 && errno == ENXIO) return out;
        if (data < 0) return fail_errno("cannot find the content of " + name);
        const off64_t hole = ::lseek64(fd, data, SEEK_HOLE);
        if (hole < 0 && errno == ENXIO) return out;
        if (hole < 0) return fail_errno("cannot find the holes of " + name);
        const uint64_t start = static_cast<uint64_t>(data) / page_size * page_size;
        if (hole > data) append(out, {start, whole_pages(static_cast<uint64_t>(hole))});
        at = std::max(hole, data + 1);
    }
}

bool is_on_tmpfs(int fd) {
    struct statfs system {};
    return ::fstatfs(fd, &system) == 0 && system.f_type == TMPFS_MAGIC;
}

bool is_file(const std::string& path, uint64_t id) {
    struct stat info {};
    return ::lstat(path.c_str(), &info) == 0 && info.st_nlink == 1 && shared_object_id(info.st_dev, info.st_ino) == id;
}

// The name as it was given: of "/memfd:NAME (deleted)" NAME, of anything else all of it.
std::string memfd_name(std::string link) {
    if (link.ends_with(deleted)) link.resize(link.size() - deleted.size());
    return link.substr(std::min(link.size(), memfd_prefix.size()));
}

}  // namespace

uint64_t shared_object_id(uint64_t device, uint64_t inode) {
    // Both count up from small numbers, and the device is never 0.
    constexpr unsigned inode_bits = 40;
    return (device << inode_bits) + inode;
}

Result<uint64_t> shared_memory_device() {
    void* start = ::mmap(nullptr, page_size, PROT_READ, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (start == MAP_FAILED) return fail_errno("mmap");
    const Mapping mapping(start, page_size);
    const auto address = reinterpret_cast<uintptr_t>(start);
    struct stat info {};
    const std::string link = fmt::format("/proc/self/map_files/{:x}-{:x}", address, address + page_size);
    if (::stat(link.c_str(), &info) != 0) return fail_errno("cannot look at " + link);
    return static_cast<uint64_t>(info.st_dev);
}

Result<std::vector<HeldObject>> held_objects(pid_t pid, const std::map<std::string, uint64_t>& files) {
    const uint64_t device = TRY(shared_memory_device());
    std::vector<HeldObject> out;
    for (const int fd : TRY(read_fd_numbers(pid))) {
        const std::string path = fmt::format("/proc/{}/fd/{}", pid, fd);
        const auto link = read_link(path);
        if (!link) continue;
        const auto file = files.find(*link);
        if (file == files.end() && !link->starts_with(memfd_prefix)) continue;
        struct stat info {};
        if (::stat(path.c_str(), &info) != 0) continue;
        const uint64_t id = shared_object_id(info.st_dev, info.st_ino);
        const bool memfd = info.st_dev == device && info.st_nlink == 0;
        if (file == files.end() ? memfd : file->second == id) out.push_back({fd, id});
    }
    return out;
}

struct SharedObjects::Object {
    uint64_t id = 0;
    UniqueFd fd;
    std::string name;  // for messages
    std::unique_ptr<ObjectPages> pages;
    image::SharedObject told;  // what the destination is to make of it
    Ranges have;               // content that was found, sent or pending
    Ranges pending;            // to be sent
    Ranges dropped;            // to be told
    Ranges zeros;              // known to be zero at both ends, though there are pages
    bool sent = false;         // once: the destination's pages are zeros before
    int64_t changed_ns = 0;    // ctime as of the last look
    int64_t looked_ns = 0;     // 0: never
    bool was_held = false;

    // Of the look that is going on.
    bool seen = false;
    bool held = false;  // open in the tree: write(2) may reach it
    Ranges touched;     // through page tables

    Result<void> describe();
    Result<void> look();
    Result<void> look_at_content(bool moved);
};

// What can change while it is in use. Who has a file removed or renamed while it is copied would find it there all the
// same.
Result<void> SharedObjects::Object::describe() {
    struct stat info {};
    if (::fstat(fd.get(), &info) != 0) return fail_errno("cannot look at " + name);
    if (told.kind() == image::OBJECT_TMPFS && !is_file(told.name(), id))
        return unsupported("file " + name + " was removed or renamed while it was copied", "try again");
    told.set_size(static_cast<uint64_t>(info.st_size));
    told.set_mode(info.st_mode & 07777);
    told.set_uid(info.st_uid);
    told.set_gid(info.st_gid);
    if (told.kind() == image::OBJECT_MEMFD) {
        const int seals = ::fcntl(fd.get(), F_GET_SEALS);
        if (seals < 0) return fail_errno("cannot ask the seals of " + name);
        told.set_seals(static_cast<uint32_t>(seals));
    }
    told.set_modified_ns(nanoseconds(info.st_mtim));
    changed_ns = nanoseconds(info.st_ctim);
    return {};
}

Result<void> SharedObjects::Object::look() {
    const int64_t changed_before = changed_ns, looked_before = looked_ns;
    // Before anything else: what changes from here on is the next look's.
    looked_ns = wall_clock_ns();
    TRY(describe());
    const bool first = looked_before == 0;
    // Whoever knows the name of a file can open it between two looks.
    held |= told.kind() == image::OBJECT_TMPFS;
    if (first && held) pages->remember();
    return look_at_content(first || changed_ns != changed_before || changed_before > looked_before - stamp_step_ns);
}

// Nothing comes or goes while the ctime stands still but what a page fault makes, and that the trackers tell.
Result<void> SharedObjects::Object::look_at_content(bool moved) {
    const Ranges data = moved ? TRY(data_of(fd.get(), name)) : unite(have, touched);
    const Ranges gone = subtract(have, data);
    Ranges written = unite(intersect(touched, data), subtract(data, have));
    pending = subtract(pending, gone);
    // Between two looks a descriptor that neither of them saw would have to come from somebody outside.
    if (moved && (held || was_held)) {
        if (!pages->remembers()) written = data;
        pages->remember();
        written = unite(written, TRY(pages->differing(subtract(subtract(data, written), pending))));
    }
    zeros = subtract(subtract(zeros, gone), written);
    if (moved && sent && !held && !was_held) {
        const Ranges found = TRY(pages->zeros_among(subtract(subtract(subtract(data, written), pending), zeros)));
        zeros = unite(zeros, found);
        written = unite(written, found);
    }
    was_held = held;
    pending = unite(pending, written);
    if (sent) dropped = unite(dropped, clip(gone, 0, whole_pages(told.size())));
    have = data;
    touched.clear();
    return {};
}

SharedObjects::SharedObjects() = default;
SharedObjects::~SharedObjects() = default;

void SharedObjects::begin_look() {
    for (auto& [id, object] : objects_) {
        object->seen = false;
        object->held = false;
        object->touched.clear();
    }
}

Result<SharedObjects::Object*> SharedObjects::add(UniqueFd fd, uint64_t id) {
    auto object = std::make_unique<Object>();
    const std::string link = TRY(read_link(fmt::format("/proc/self/fd/{}", fd.get())));
    object->id = id;
    object->told.set_id(id);
    if (link.starts_with(memfd_prefix)) {
        object->told.set_kind(image::OBJECT_MEMFD);
        object->told.set_name(memfd_name(link));
        object->name = printable(link);
    } else if (link == "/dev/zero (deleted)") {
        object->told.set_kind(image::OBJECT_ANONYMOUS);
        object->name = fmt::format("shared memory {:#x}", id);
    } else if (link.starts_with("/") && is_on_tmpfs(fd.get()) && !link.ends_with(deleted)) {
        object->told.set_kind(image::OBJECT_TMPFS);
        object->told.set_name(link);
        object->name = printable(link);
        files_[link] = id;
    } else {
        return unsupported("shared memory " + printable(link) + " is of a kind that is not known",
                           "it cannot be carried");
    }
    object->pages = std::make_unique<ObjectPages>(fd.get(), object->name);
    object->fd = std::move(fd);
    Object* added = object.get();
    objects_[id] = std::move(object);
    return added;
}

Result<void> SharedObjects::find_mapped(pid_t pid, const image::MappingRange& mapping) {
    const uint64_t id = mapping.shared_object();
    auto known = objects_.find(id);
    Object* object = known == objects_.end() ? nullptr : known->second.get();
    if (object == nullptr) {
        const std::string link = fmt::format("/proc/{}/map_files/{:x}-{:x}", pid, mapping.start(), mapping.end());
        UniqueFd fd = TRY(open_file(link, O_RDONLY | O_NOATIME | O_NONBLOCK));
        struct stat info {};
        if (::fstat(fd.get(), &info) != 0) return fail_errno("cannot look at " + link);
        if (shared_object_id(info.st_dev, info.st_ino) != id)
            return fail_errno(ENOENT, link + " is another mapping now");
        object = TRY(add(std::move(fd), id));
    }
    object->seen = true;
    if (mapping.no_reserve()) object->told.set_no_reserve(true);
    return {};
}

Result<void> SharedObjects::find_held(pid_t pid) {
    UniqueFd process;
    for (const HeldObject& held : TRY(held_objects(pid, files_))) {
        if (const auto known = objects_.find(held.id); known != objects_.end()) {
            known->second->seen = known->second->held = true;
            continue;
        }
        if (!process) process = UniqueFd(static_cast<int>(::syscall(SYS_pidfd_open, pid, 0)));
        const UniqueFd duplicate(static_cast<int>(::syscall(SYS_pidfd_getfd, process.get(), held.fd, 0)));
        struct stat info {};
        // The number may be another's by now; only what is the object is opened, and anew: a duplicate shares its
        // position.
        if (!duplicate || ::fstat(duplicate.get(), &info) != 0 || shared_object_id(info.st_dev, info.st_ino) != held.id)
            continue;
        UniqueFd fd = TRY(open_file(fmt::format("/proc/self/fd/{}", duplicate.get()), O_RDONLY | O_NOATIME));
        Object* object = TRY(add(std::move(fd), held.id));
        object->seen = object->held = true;
    }
    return {};
}

Result<void> SharedObjects::find(pid_t pid, image::Layout& layout) {
    auto& mappings = *layout.mutable_mappings();
    for (int i = 0; i < mappings.size();) {
        if (maps_object(mappings[i])) {
            const auto found = find_mapped(pid, mappings[i]);
            if (!found && (layout.last() || !is_gone(found.error()))) return found;
            if (!found) {
                mappings.DeleteSubrange(i, 1);
                continue;
            }
        }
        ++i;
    }
    return find_held(pid);
}

void SharedObjects::touch(const image::MappingRange& mapping, Ranges addresses) {
    const auto known = objects_.find(mapping.shared_object());
    if (known == objects_.end() || addresses.empty()) return;
    for (ByteRange& range : addresses) {
        range.start += mapping.offset() - mapping.start();
        range.end += mapping.offset() - mapping.start();
    }
    known->second->touched = unite(known->second->touched, addresses);
}

void SharedObjects::changed(const image::Layout& before, const image::Layout& layout, const MemoryChanges& changes) {
    for (const image::MappingRange& mapping : layout.mappings())
        if (mapping.kind() == image::MAPPING_OBJECT_SHARED) touch(mapping, clip(changes.written, mapping.start(), mapping.end()));
    const LayoutChanges gone = compare(before, layout);
    Ranges unmapped;
    for (const auto& span : gone.unmap) append(unmapped, {span.start, span.end});
    for (const image::MappingRange& mapping : before.mappings())
        if (mapping.kind() == image::MAPPING_OBJECT_SHARED) touch(mapping, clip(unmapped, mapping.start(), mapping.end()));
}

Result<void> SharedObjects::end_look() {
    // A file that the tree does not use any more it may open again.
    for (const auto& [path, id] : files_) objects_.at(id)->seen |= is_file(path, id);
    // What is gone stays known until the destination is told: it has it, and its content, till then.
    for (auto& [id, object] : objects_)
        if (object->seen) TRY(object->look());
    return {};
}

uint64_t SharedObjects::pending_bytes() const {
    uint64_t sum = 0;
    for (const auto& [id, object] : objects_)
        for (const ByteRange& range : object->pending) sum += range.end - range.start;
    return sum;
}

uint64_t SharedObjects::tell(image::Layout& layout) {
    std::erase_if(objects_, [](const auto& entry) { return !entry.second->seen; });
    std::erase_if(files_, [&](const auto& entry) { return !objects_.contains(entry.second); });
    uint64_t dropped = 0;
    for (auto& [id, object] : objects_) {
        image::SharedObject& told = *layout.add_objects();
        told = object->told;
        for (const ByteRange& range : object->dropped) {
            image::PageSpan& span = *told.add_dropped();
            span.set_start(range.start);
            span.set_length(range.end - range.start);
            dropped += span.length();
        }
        object->dropped.clear();
    }
    return dropped;
}

std::vector<PageJob> SharedObjects::jobs(bool may_vanish) const {
    std::vector<PageJob> jobs;
    for (const auto& [id, object] : objects_) {
        if (object->pending.empty()) continue;
        PageJob job;
        job.object = id;
        job.source = object->pages.get();
        job.ranges = object->pending;
        job.zeros_there = !object->sent;
        job.may_vanish = may_vanish;
        jobs.push_back(std::move(job));
    }
    return jobs;
}

void SharedObjects::sent() {
    for (auto& [id, object] : objects_) {
        object->pending.clear();
        object->sent = true;
    }
}

}  // namespace godwit
