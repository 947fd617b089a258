// The descriptors of a tree: survey_files() and collect_files() of collect.h.
#include <fcntl.h>
#include <fmt/format.h>

#include <algorithm>

#include "common/base/log.h"
#include "common/kernel/identity.h"
#include "source-agent/collect/collect.h"
#include "source-agent/collect/files_internal.h"

namespace godwit {
namespace {

using files::Kind;
using files::Looker;
using files::Seen;

bool is_writable(const Seen& one) {
    return (one.flags & O_ACCMODE) != O_RDONLY;
}

// What the destination must have: every file and directory once, as strictly as any descriptor of it needs.
Result<void> plan_files(const Looker& looker, image::Plan& plan, Problems& problems) {
    std::map<std::pair<std::string, bool>, const Seen*> wanted;
    for (const Seen& one : looker.seen)
        if (one.kind == Kind::file || one.kind == Kind::directory) wanted.try_emplace({one.link, is_writable(one)}, &one);
    for (const auto& [key, one] : wanted) {
        if (!key.second && wanted.contains({key.first, true})) continue;
        auto identity = identify_file(fmt::format("/proc/{}/fd/{}", one->pid, one->fd), one->link, key.second);
        if (!identity && (identity.error().error == ENOENT || identity.error().error == ESRCH)) continue;  // closed meanwhile
        if (!identity) {
            problems.push_back(std::move(identity.error()));
            continue;
        }
        identity->set_used_by(one->who());
        *plan.add_files() = std::move(*identity);
    }
    return {};
}

void plan_kinds(const Looker& looker, image::Plan& plan) {
    std::set<std::string> kinds(plan.object_kinds().begin(), plan.object_kinds().end());
    for (const Seen& one : looker.seen)
        if (one.kind != Kind::other && kinds.insert(files::kind_name(one.kind)).second)
            plan.add_object_kinds(files::kind_name(one.kind));
}

Result<void> collect_description(const Seen& one, const Looker& looker, image::Description& out) {
    out.set_flags(one.flags);
    out.set_owner_signal(static_cast<uint32_t>(one.owner_signal));
    if (one.owner != 0) {
        out.set_owner(TRY(looker.inside(one.owner)));
        out.set_owner_type(static_cast<uint32_t>(one.owner_type));
    }
    switch (one.kind) {
        case Kind::file:
        case Kind::directory:
        case Kind::memory_device: files::collect_file(one, out); return {};
        case Kind::object: files::collect_object(one, out); return {};
        case Kind::pipe: files::collect_pipe(one, out); return {};
        case Kind::event_fd:
        case Kind::epoll:
        case Kind::timer_fd:
        case Kind::signal_fd: return files::collect_event(one, looker, out);
        case Kind::unix_socket: return files::collect_unix(one, looker, out);
        case Kind::tcp_socket: return files::collect_tcp(one, looker, out);
        case Kind::other: break;
    }
    return unsupported(one.who() + ": an object of a kind that is not known here");
}

// All are logged, the first is returned.
Failure refuse_all(const Problems& problems) {
    for (const Problem& problem : problems) spdlog::warn("appeared since the survey: {} ({})", problem.what, problem.hint);
    Problem first = problems.front();
    if (problems.size() > 1) first.what += fmt::format(" (and {} more)", problems.size() - 1);
    return Failure(std::move(first));
}

}  // namespace

Result<void> survey_files(const Tree& tree, const CollectOptions& options, image::Plan& plan, Problems& problems) {
    Looker looker;
    looker.pids = tree.pids;
    looker.options = options;
    TRY(looker.look());
    auto refusals = TRY(files::check_all(looker));
    const bool accepted = refusals.empty();
    std::move(refusals.begin(), refusals.end(), std::back_inserter(problems));
    plan_kinds(looker, plan);
    // Files are read for their identity, which is only worth it when nothing stands in the way.
    if (!accepted) return {};
    return plan_files(looker, plan, problems);
}

Result<image::Files> collect_files(std::vector<Subject>& subjects, const CollectOptions& options) {
    Looker looker;
    looker.options = options;
    for (const Subject& subject : subjects) {
        looker.pids.push_back(subject.process->pid);
        if (subject.remote != nullptr) looker.skip[subject.process->pid] = subject.remote->socket_number();
    }
    TRY(looker.look());
    if (const auto problems = TRY(files::check_all(looker)); !problems.empty()) return refuse_all(problems);

    image::Files out;
    const std::vector<size_t> first = TRY(files::share(looker));
    std::vector<uint32_t> id(first.size());
    for (size_t i = 0; i < first.size(); ++i) {
        if (first[i] == i) {
            auto* description = out.add_descriptions();
            description->set_id(static_cast<uint32_t>(out.descriptions_size()));
            TRY(collect_description(looker.seen[i], looker, *description));
        }
        id[i] = first[i] == i ? static_cast<uint32_t>(out.descriptions_size()) : id[first[i]];
    }
    for (const Subject& subject : subjects) {
        auto* table = out.add_tables();
        table->set_pid(subject.pid_inside);
        for (size_t i = 0; i < looker.seen.size(); ++i) {
            if (looker.seen[i].pid != subject.process->pid) continue;
            auto* descriptor = table->add_descriptors();
            descriptor->set_fd(looker.seen[i].fd);
            descriptor->set_description(id[i]);
            descriptor->set_close_on_exec(looker.seen[i].close_on_exec);
        }
    }
    TRY(files::collect_pipe_contents(looker, out));
    return out;
}

}  // namespace godwit
