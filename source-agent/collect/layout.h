// The mappings of a process as the destination is told of them, round after round.
//
// VmFlags (smaps) cost some 3 ms per GiB of populated memory, the list itself (maps) some microseconds. While the process runs
// all is read; once it is stopped flags are those of the round before wherever the list shows the same mapping, and all is
// read again when there is a new one. What this cannot see: advice given (madvise(2)) to a whole mapping in the milliseconds
// between that round and the freeze.
//
// Nothing here touches the process. Threads: one at a time.
#pragma once

#include <map>
#include <set>
#include <string>
#include <vector>

#include "source-agent/collect/classify.h"
#include "source-agent/collect/collect.h"

namespace godwit {

class LayoutReader {
  public:
    // `plan` names the files that the destination has checked; others are told with the layout. Files that move are shared objects.
    static Result<LayoutReader> make(pid_t pid, pid_t pid_inside, const image::Plan& plan, const CollectOptions& options = {});
    // Write protection by userfaultfd is ours from now on, not the program's own.
    void tracked() { tracked_ = true; }

    // What is gone when it is looked at, or cannot be carried, is passed over: the next reading shows what became of it.
    Result<image::Layout> read_running();
    // A mapping that cannot be carried is a Problem that names it.
    Result<image::Layout> read_stopped();

    // The destination has this layout, and so knows its new files.
    void told(const image::Layout& layout);

    // The mappings that the last layout was made of.
    const std::vector<Vma>& mappings() const { return mappings_; }
    pid_t pid() const { return pid_; }

  private:
    struct Known {
        Vma vma;
        MappingClass found;
    };
    explicit LayoutReader(MappingClassifier classifier) : classifier_(std::move(classifier)) {}
    Result<std::vector<Vma>> list_with_flags() const;
    Result<std::vector<Vma>> list_stopped() const;
    Result<image::Layout> begin() const;
    Result<MappingClass> classify(const Vma& vma) const;
    Result<void> add_file(const Vma& vma, const MappingClass& found);
    void add_new_files(image::Layout& layout) const;
    Result<void> check_guards(const Vma& vma) const;
    Result<void> add(const Vma& vma, const MappingClass& found, image::Layout& layout);

    MappingClassifier classifier_;
    pid_t pid_ = 0;
    pid_t pid_inside_ = 0;
    bool tracked_ = false;
    std::vector<Vma> mappings_;
    std::vector<Known> known_;  // by address
    std::set<std::string> files_;  // that the destination knows of
    std::map<std::string, image::FileIdentity> untold_;  // mapped since the plan; not every layout is sent
    std::set<uint64_t> moving_files_;
};

}  // namespace godwit
