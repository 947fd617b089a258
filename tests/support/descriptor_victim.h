// A forked child that makes some descriptors and waits, and a skeleton to put them into.
#pragma once

#include <sys/types.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "common/image/files.pb.h"
#include "dest-agent/skeleton.h"
#include "source-agent/collect/collect.h"

namespace godwit::test {

class DescriptorVictim {
  public:
    // `make` runs in the child, whose descriptors are 0, 1, 2 on /dev/null; a false answer fails the test.
    explicit DescriptorVictim(const std::function<bool()>& make);
    ~DescriptorVictim();  // kills and reaps it

    bool ready() const { return ready_; }
    pid_t pid() const { return pid_; }
    // The texts of all refusals of the survey.
    std::vector<std::string> refusals(const CollectOptions& options = {}, image::Plan* plan = nullptr) const;
    Result<image::Files> collect(const CollectOptions& options = {}) const;
    // What the child named by note() in `make`.
    int noted(size_t slot) const { return notes_[slot]; }

    static void note(size_t slot, int value) { notes_[slot] = value; }

  private:
    static int* notes_;  // shared with the child
    pid_t pid_ = 0;
    bool ready_ = false;
};

Result<image::Files> collect_from(pid_t pid, Remote* remote, const CollectOptions& options = {});

// A process with no memory to speak of and a free PID.
Result<Skeleton> bare_skeleton();

}  // namespace godwit::test
