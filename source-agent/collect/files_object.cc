// Descriptors of shared memory: memfds, files on tmpfs. Their content is memory: shared_objects.h.
#include "common/base/text.h"
#include "source-agent/collect/files_internal.h"
#include "source-agent/collect/shared_objects.h"

namespace godwit::files {

Refusal check_object(const Seen& one) {
    if (!one.link.starts_with("/memfd:")) return {};  // a file that moves
    const std::string path = printable(one.link);
    const auto device = shared_memory_device();
    if (!device) return refuse(one, device.error().what, "godwit needs /proc/PID/map_files");
    if (one.status.st_dev == *device) return {};
    return refuse(one, "memory of huge pages (MFD_HUGETLB), or a deleted file: " + path,
                  "run the program without explicit huge pages");
}

void collect_object(const Seen& one, image::Description& out) {
    auto* object = out.mutable_object_file();
    object->set_object(shared_object_id(one.status.st_dev, one.status.st_ino));
    object->set_position(one.position);
}

}  // namespace godwit::files
