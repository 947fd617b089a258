// Options of a socket, asked through a duplicate and set on a new one.
//
// Carried are the options of a fixed table whose value differs from that of a new socket of the same kind: what was never
// set follows the destination's defaults. Buffer sizes count as set when SO_BUF_LOCK (Linux 5.14) says that autotuning is
// off; the kernel shows the double of what is set, which is undone here.
#pragma once

#include <string>

#include "common/base/result.h"
#include "common/image/files.pb.h"

namespace godwit {

using SocketOptions = google::protobuf::RepeatedPtrField<image::SocketOption>;

Result<void> read_socket_options(int socket, SocketOptions& out);
// `who` names the socket in a Problem. An option that is not in the table is a Problem: the peer is newer or hostile.
Result<void> set_socket_options(int socket, const SocketOptions& options, const std::string& who);

// What a socket filter, an upper layer (kTLS) or IP options would be lost: its name, or nothing.
std::string uncarried_option(int socket);

}  // namespace godwit
