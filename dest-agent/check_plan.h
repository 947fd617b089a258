// What this host can say of a plan before anything is touched: all objections at once.
#pragma once

#include <set>
#include <string>
#include <vector>

#include "common/base/result.h"
#include "common/image/session.pb.h"
#include "dest-agent/policy.h"

namespace godwit {

// Machine, PIDs, files, credentials, free memory, kinds of objects. Reads only. Problems name the object and the hint.
std::vector<Problem> check_plan(const image::Plan& plan, const CredentialPolicy& policy);

// Paths of files of the plan that are memory of the tree and that this host does not have: they come with it.
std::set<std::string> files_to_come(const image::Plan& plan);

// A file of the plan against the file of that name here.
std::vector<Problem> check_file(const image::FileIdentity& theirs, const image::Plan& plan, const std::string& boot_id);

}  // namespace godwit
