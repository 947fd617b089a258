// What this host can say of a plan before anything is touched: all objections at once.
#pragma once

#include <set>
#include <string>
#include <tuple>
#include <vector>

#include "common/base/result.h"
#include "common/image/process.pb.h"
#include "common/image/session.pb.h"
#include "dest-agent/policy.h"

namespace godwit {

// Machine, PIDs, files, credentials, free memory, kinds of objects. Reads only. Problems name the object and the hint.
std::vector<Problem> check_plan(const image::Plan& plan, const CredentialPolicy& policy);

// Paths of files of the plan that are memory of the tree and that this host does not have: they come with it.
std::set<std::string> files_to_come(const image::Plan& plan);

// A file of the plan against the file of that name here.
std::vector<Problem> check_file(const image::FileIdentity& theirs, const image::Plan& plan, const std::string& boot_id);

// The files of a source that passed check_file(): layouts map no others.
class CheckedFiles {
  public:
    void add(const image::FileIdentity& file);
    // A Problem names a file that was not checked, or not for writing.
    Result<void> require(const image::Layout& layout) const;

  private:
    using Key = std::tuple<std::string, uint64_t, uint64_t, bool>;  // path, device, inode, writable
    std::set<Key> files_;
};

}  // namespace godwit
