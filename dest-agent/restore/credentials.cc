#include <fmt/format.h>
#include <linux/capability.h>
#include <linux/securebits.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#include "common/base/file.h"
#include "common/kernel/proc.h"
#include "dest-agent/restore/parts.h"

namespace godwit {
namespace {

constexpr uint32_t fixed_uids = SECBIT_KEEP_CAPS | SECBIT_NO_SETUID_FIXUP;

struct Held {
    uint64_t permitted = 0;
    uint64_t bounding = 0;
};

std::string capability_list(uint64_t set) {
    std::string text;
    for (int i = 0; i < 64; ++i)
        if ((set >> i) & 1) text += fmt::format("{}{}", text.empty() ? "" : ",", i);
    return text;
}

Result<Held> held_by(pid_t tid) {
    const Status status = TRY(read_status(tid, tid));
    return Held{status_hex(status, "CapPrm"), status_hex(status, "CapBnd")};
}

void add_capset(NamedCalls& calls, const std::string& what, uint64_t effective, uint64_t permitted, uint64_t inheritable) {
    const __user_cap_header_struct head{_LINUX_CAPABILITY_VERSION_3, 0};
    const auto low = [](uint64_t set) { return static_cast<uint32_t>(set); };
    const auto high = [](uint64_t set) { return static_cast<uint32_t>(set >> 32); };
    const __user_cap_data_struct sets[2] = {{low(effective), low(permitted), low(inheritable)},
                                            {high(effective), high(permitted), high(inheritable)}};
    calls.call(what, SYS_capset, calls.batch().bytes(&head, sizeof head), calls.batch().bytes(sets, sizeof sets));
}

void add_ids(NamedCalls& calls, const image::Credentials& wanted) {
    const std::vector<uint32_t> groups(wanted.groups().begin(), wanted.groups().end());
    calls.call("set the groups", SYS_setgroups, groups.size(), calls.batch().bytes(groups.data(), groups.size() * sizeof(uint32_t)));
    calls.call(fmt::format("set gids {},{},{}", wanted.gid(), wanted.egid(), wanted.sgid()), SYS_setresgid, wanted.gid(), wanted.egid(), wanted.sgid());
    calls.call("set the fsgid", SYS_setfsgid, wanted.fsgid());
    calls.call(fmt::format("set uids {},{},{}", wanted.uid(), wanted.euid(), wanted.suid()), SYS_setresuid, wanted.uid(), wanted.euid(), wanted.suid());
    calls.call("set the fsuid", SYS_setfsuid, wanted.fsuid());
}

}  // namespace

// With SECBIT_NO_SETUID_FIXUP ids and capabilities are independent of each other, so that each is set by itself: ids, the
// inheritable and ambient sets while all is permitted, the bounding set and the real securebits while CAP_SETPCAP is, then the rest.
Result<void> add_credentials(NamedCalls& calls, pid_t tid, const image::Credentials& wanted) {
    const Held held = TRY(held_by(tid));
    const uint64_t missing = (wanted.permitted() & ~held.permitted) | (wanted.bounding() & ~held.bounding);
    if (missing != 0)
        return unsupported(fmt::format("task {} holds or may gain capabilities that this agent has not: {}", tid, capability_list(missing)),
                           "start the destination with them");
    calls.call("set securebits", SYS_prctl, PR_SET_SECUREBITS, fixed_uids);
    add_ids(calls, wanted);
    add_capset(calls, "set the inheritable capabilities", held.permitted, held.permitted, wanted.inheritable());
    calls.call("clear the ambient capabilities", SYS_prctl, PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
    for (int i = 0; i < 64; ++i) {
        if ((wanted.ambient() >> i) & 1)
            calls.call(fmt::format("raise ambient capability {}", i), SYS_prctl, PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, i, 0, 0);
        if ((held.bounding >> i) & ~(wanted.bounding() >> i) & 1)
            calls.call(fmt::format("drop capability {} from the bounding set", i), SYS_prctl, PR_CAPBSET_DROP, i, 0, 0, 0);
    }
    calls.call("set securebits", SYS_prctl, PR_SET_SECUREBITS, wanted.securebits());
    add_capset(calls, "set the capabilities", wanted.effective(), wanted.permitted(), wanted.inheritable());
    if (wanted.no_new_privileges()) calls.call("set no_new_privs", SYS_prctl, PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    return {};
}

}  // namespace godwit
