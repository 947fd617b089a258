// What the files_*.cc of this folder share: one function per group of kinds makes open file descriptions in this agent.
//
// If we die, they are closed with us and the skeletons end; nothing here has an effect outside the agent and the skeletons
// but a TCP port that is taken while it is bound.
// Threads: the tracer thread.
#pragma once

#include <map>
#include <vector>

#include "common/base/result.h"
#include "common/base/unique_fd.h"
#include "common/image/files.pb.h"
#include "dest-agent/made_objects.h"
#include "dest-agent/skeleton.h"

namespace godwit::files {

// The descriptions that were made, by their id.
using Made = std::map<uint32_t, UniqueFd>;

// For messages: "descriptor 5 of pid 7".
std::string who_holds(const image::Files& files, uint32_t description);

Result<UniqueFd> open_file_again(const image::Description& description);
// Of a shared object that was made with the mappings.
Result<UniqueFd> open_object(const image::Description& description, MadeObjects* objects);
// All ends of all pipes, with what is in them.
Result<void> make_pipes(const image::Files& files, Made& made);
// All socketpairs, with what is in them.
Result<void> make_socket_pairs(const image::Files& files, Made& made);
Result<UniqueFd> make_tcp(const image::Description& description, const std::string& who);
// eventfd, timerfd, signalfd and empty epoll sets. `pid`: a process of the tree, whose clocks deadlines are told in.
Result<UniqueFd> make_event(const image::Description& description, pid_t pid);

// Flags that fcntl(F_SETFL) sets, and the owner and signal of SIGIO. After everything else: an owner may be signalled.
Result<void> set_flags(int fd, const image::Description& description, const std::string& who);

// Empties the skeleton's table but for the executor's socket and puts the descriptors in it under their numbers.
Result<void> pass(Skeleton& skeleton, const image::DescriptorTable& table, const Made& made);
// Adds the items of the epoll sets; every descriptor has its number.
Result<void> add_epoll_items(Skeleton& skeleton, const image::DescriptorTable& table, const image::Files& files);

}  // namespace godwit::files
