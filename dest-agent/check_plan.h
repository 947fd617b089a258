// What this host can say of a plan before anything is touched: all objections at once.
#pragma once

#include <string>
#include <vector>

#include "common/base/result.h"
#include "common/image/session.pb.h"
#include "dest-agent/policy.h"

namespace godwit {

// Machine, PIDs, files, credentials, free memory, kinds of objects. Reads only. Problems name the object and the hint.
std::vector<Problem> check_plan(const image::Plan& plan, const CredentialPolicy& policy);

// A file of the plan against the file of that name here.
std::vector<Problem> check_file(const image::FileIdentity& theirs, const image::Plan& plan, const std::string& boot_id);

}  // namespace godwit
