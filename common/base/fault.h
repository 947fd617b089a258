// Numbered and named points at which a test makes the agent die, stop or lose its link.
//
// Every ptrace or injected operation calls fault_point(); each protocol message and commit step calls
// it with a name as well. In builds without GODWIT_FAULT_POINTS (release) the calls compile to nothing.
//
// GODWIT_FAULT=kill@N        SIGKILL to ourselves at operation number N (from 1)
// GODWIT_FAULT=kill@NAME     SIGKILL to ourselves at the first point of that name
// GODWIT_FAULT=stop@NAME     SIGSTOP to ourselves there (a harness looks around, then SIGCONT)
// GODWIT_FAULT=cut@NAME      every link is shut down there
// GODWIT_FAULT=VERB@NAME#K   the K-th time that the point of that name is passed, from 1
// GODWIT_FAULT_TRACE=FILE    appends one line "N NAME" per point, and is how a sweep learns the count
#pragma once

#include <functional>

namespace godwit {

#ifdef GODWIT_FAULT_POINTS
void fault_point(const char* name);
// What `cut@NAME` calls, on the thread that reached the point; set by the agent, shuts every link down.
void on_link_cut(std::function<void()> cut);
#else
inline void fault_point(const char*) {}
inline void on_link_cut(const std::function<void()>&) {}
#endif

}  // namespace godwit
