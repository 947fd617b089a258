// A batch whose failures are told in the words of the task at hand: "cannot map 7f..-7f.. in process 7: Cannot allocate memory".
//
// Every call is made whatever became of those before it, which suits skeletons: what half succeeded is killed. Lives on the stack
// of one function.
#pragma once

#include <fmt/format.h>

#include <string>
#include <vector>

#include "common/remote/remote.h"

namespace godwit {

class NamedCalls {
  public:
    template <class... Arguments>
    Batch::Call call(std::string what, long number, Arguments... arguments) {
        names_.push_back(std::move(what));
        return batch_.call_may_fail(number, arguments...);
    }
    // What may fail without harm.
    template <class... Arguments>
    Batch::Call try_call(long number, Arguments... arguments) {
        names_.emplace_back();
        return batch_.call_may_fail(number, arguments...);
    }
    Batch& batch() { return batch_; }

    Result<void> run(Remote& remote) {
        if (!batch_.empty()) TRY(remote.run(batch_));
        return check(remote.pid());
    }
    Result<void> run_in(Remote& remote, Tracee& task) {
        if (!batch_.empty()) TRY(remote.run_in(task, batch_));
        return check(task.tid());
    }

  private:
    Result<void> check(pid_t pid) const {
        for (size_t i = 0; i < names_.size(); ++i) {
            const int64_t result = batch_.result_of(static_cast<Batch::Call>(i));
            if (result >= 0 || result <= -4096 || names_[i].empty()) continue;
            const char* hint = result == -ENOMEM ? "the destination is short of memory, or limits what godwit serve may map (ulimit -v)" : "";
            return fail_errno(static_cast<int>(-result), fmt::format("cannot {} in process {}", names_[i], pid), hint);
        }
        return {};
    }

    Batch batch_;
    std::vector<std::string> names_;
};

}  // namespace godwit
