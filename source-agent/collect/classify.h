// What a VMA is: the one classifier of survey and collect.
#pragma once

#include <optional>
#include <string>

#include "common/base/result.h"
#include "common/image/process.pb.h"
#include "common/kernel/proc.h"

namespace godwit {

struct MappingClass {
    image::MappingKind kind = image::MAPPING_UNKNOWN;
    std::string path;      // of a file mapping
    uint64_t device = 0;   // of the file or shared object, from stat(2) of the mapping itself
    uint64_t inode = 0;
    std::string name;      // PR_SET_VMA_ANON_NAME
};

class MappingClassifier {
  public:
    static Result<MappingClassifier> make(pid_t pid);

    // A Problem with code unsupported names what cannot be carried. error == ENOENT: the mapping is gone, or the process is.
    Result<MappingClass> classify(const Vma& vma) const;

    std::string link_of(const Vma& vma) const;  // its /proc/PID/map_files entry
    std::string describe(const Vma& vma) const;  // "mapping 7f..-7f.. PATH of pid N"

  private:
    Result<MappingClass> classify_file(const Vma& vma) const;
    Result<MappingClass> classify_shared_memory(const Vma& vma, MappingClass out) const;
    Result<void> check_flags(const Vma& vma) const;

    pid_t pid_ = 0;
    uint64_t shared_memory_device_ = 0;  // st_dev of the kernel's own tmpfs, where anonymous shared memory lives
};

}  // namespace godwit
