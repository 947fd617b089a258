#include <fmt/format.h>

#include "source-agent/collect/collect.h"

namespace godwit {

Result<Problems> survey(const Tree& tree, const CollectOptions& options, image::Plan& plan) {
    Problems problems;
    for (const pid_t pid : tree.pids) {
        TRY(survey_process(pid, options, plan, problems));
        // Of a process that is not to be looked into (a kernel thread, our own ancestor) nothing more is asked.
        if (plan.processes_size() == 0) return problems;
        TRY(survey_memory(pid, options, plan, problems));
    }
    TRY(survey_objects(tree, plan, problems));
    TRY(survey_files(tree, options, plan, problems));
    for (image::FileIdentity& file : *plan.mutable_files())
        if (file.used_by().find("pid") != 0) file.set_used_by(fmt::format("pid {} {}", tree.root, file.used_by()));
    return problems;
}

}  // namespace godwit
