// Users, groups, capabilities, securebits and no_new_privs, as a service that dropped its rights has them.
// --keep-caps keeps two capabilities (one of them ambient) beside the changed user.
#include <grp.h>
#include <linux/capability.h>
#include <linux/securebits.h>
#include <sys/fsuid.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#include <vector>

#include "tests/victims/victim.h"

using namespace victim;

namespace {

struct Credentials {
    uid_t uid[4] = {};
    gid_t gid[4] = {};
    gid_t groups[32] = {};
    int group_count = 0;
    __user_cap_data_struct caps[2] = {};
    unsigned long long bounding = 0;
    unsigned long long ambient = 0;
    int securebits = 0;
    int no_new_privs = 0;
    int keep_caps = 0;
};

Credentials current() {
    Credentials now;
    CHECK(getresuid(&now.uid[0], &now.uid[1], &now.uid[2]) == 0 && getresgid(&now.gid[0], &now.gid[1], &now.gid[2]) == 0);
    now.uid[3] = static_cast<uid_t>(setfsuid(static_cast<uid_t>(-1)));
    now.gid[3] = static_cast<gid_t>(setfsgid(static_cast<gid_t>(-1)));
    now.group_count = getgroups(32, now.groups);
    __user_cap_header_struct header{_LINUX_CAPABILITY_VERSION_3, 0};
    CHECK(syscall(SYS_capget, &header, now.caps) == 0);
    for (int cap = 0; cap < 64; ++cap) {
        if (prctl(PR_CAPBSET_READ, cap) == 1) now.bounding |= 1ULL << cap;
        if (prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_IS_SET, cap, 0, 0) == 1) now.ambient |= 1ULL << cap;
    }
    now.securebits = prctl(PR_GET_SECUREBITS);
    now.no_new_privs = prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0);
    now.keep_caps = prctl(PR_GET_KEEPCAPS);
    return now;
}

bool same(const Credentials& a, const Credentials& b) {
    return memcmp(a.uid, b.uid, sizeof a.uid) == 0 && memcmp(a.gid, b.gid, sizeof a.gid) == 0 && a.group_count == b.group_count &&
           memcmp(a.groups, b.groups, sizeof a.groups) == 0 && memcmp(a.caps, b.caps, sizeof a.caps) == 0 &&
           a.bounding == b.bounding && a.ambient == b.ambient && a.securebits == b.securebits &&
           a.no_new_privs == b.no_new_privs && a.keep_caps == b.keep_caps;
}

void set_caps(unsigned permitted, unsigned effective, unsigned inheritable) {
    __user_cap_header_struct header{_LINUX_CAPABILITY_VERSION_3, 0};
    __user_cap_data_struct caps[2] = {{effective, permitted, inheritable}, {0, 0, 0}};
    CHECK(syscall(SYS_capset, &header, caps) == 0);
}

}  // namespace

int main(int argc, char** argv) {
    Victim self(argc, argv);
    const gid_t groups[] = {7, 50, 65534};
    CHECK(setgroups(3, groups) == 0);
    CHECK(prctl(PR_CAPBSET_DROP, CAP_SYS_MODULE) == 0 && prctl(PR_CAPBSET_DROP, CAP_SYS_BOOT) == 0);
    CHECK(prctl(PR_SET_SECUREBITS, SECBIT_NO_CAP_AMBIENT_RAISE_LOCKED | SECBIT_KEEP_CAPS) == 0);
    CHECK(setresgid(65534, 65534, 7) == 0 && setresuid(65534, 65534, 33) == 0);
    if (self.flag("keep-caps")) {
        const unsigned kept = 1U << CAP_NET_BIND_SERVICE | 1U << CAP_DAC_OVERRIDE;
        set_caps(kept, 1U << CAP_NET_BIND_SERVICE, kept);
        CHECK(prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_NET_BIND_SERVICE, 0, 0) == 0);
    } else {
        set_caps(0, 0, 0);
    }
    if (self.flag("no-new-privs")) CHECK(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
    const Credentials before = current();
    CHECK(before.group_count == 3 && before.uid[2] == 33 && before.gid[2] == 7);
    self.ready();
    do {
        CHECK(same(before, current()));
        CHECK(open("/etc/shadow", O_RDONLY) == -1 && errno == EACCES);
    } while (self.going());
    return self.done();
}
