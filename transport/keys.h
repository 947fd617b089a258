// The keys of two hosts that trust each other.
#pragma once

#include <string>

#include "common/base/result.h"

namespace godwit {

// Makes DIR/source and DIR/destination (mode 0700), each with ca.pem, cert.pem and key.pem (mode 0600): each host
// is given one of them. Refuses where either is there already; leaves nothing behind when it fails.
//
// Keys are ECDSA P-256, certificates X.509 v3, valid for ten years from a day ago (clocks differ). The CA's own key
// is never written and is gone when the function returns: no third certificate can ever be made, and the CA stands
// for this pair of hosts alone. More hosts, or lost keys, mean a new pair. Both certificates may connect and accept,
// so a tree can go there and back.
Result<void> init_keys(const std::string& dir);

}  // namespace godwit
