// What a process is besides its memory and descriptors: limits, umask, folder, niceness, affinity, names,
// argument and environment strings, dumpable, death signal, sub-reaper, transparent huge pages, timer slack.
#include <linux/prctl.h>
#include <sched.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include <vector>

#include "tests/victims/victim.h"

using namespace victim;

namespace {

constexpr __rlimit_resource limited[] = {RLIMIT_NOFILE, RLIMIT_CORE, RLIMIT_STACK, RLIMIT_CPU, RLIMIT_FSIZE, RLIMIT_SIGPENDING};

std::string content(const char* path) {
    std::string text;
    const int fd = open(path, O_RDONLY | O_CLOEXEC);
    CHECK(fd >= 0);
    char buffer[4096];
    for (ssize_t got; (got = read(fd, buffer, sizeof buffer)) > 0;) text.append(buffer, static_cast<size_t>(got));
    close(fd);
    return text;
}

std::string link_target(const char* path) {
    char buffer[4096];
    const ssize_t length = readlink(path, buffer, sizeof buffer);
    CHECK(length > 0);
    return {buffer, static_cast<size_t>(length)};
}

std::string personality_of(int what) {
    int value = -1;
    CHECK(prctl(what, &value, 0, 0, 0) == 0);
    return std::to_string(value);
}

// Everything that must stay, as text, so that a difference can be named.
std::vector<std::string> snapshot() {
    std::vector<std::string> all;
    for (const auto resource : limited) {
        rlimit limit{};
        CHECK(getrlimit(resource, &limit) == 0);
        all.push_back("limit " + std::to_string(resource) + " " + std::to_string(limit.rlim_cur) + " " + std::to_string(limit.rlim_max));
    }
    const mode_t mask = umask(0);
    umask(mask);
    all.push_back("umask " + std::to_string(mask));
    all.push_back("cwd " + link_target("/proc/self/cwd"));
    all.push_back("root " + link_target("/proc/self/root"));
    all.push_back("exe " + link_target("/proc/self/exe"));
    all.push_back("comm " + content("/proc/self/comm"));
    all.push_back("cmdline " + content("/proc/self/cmdline"));
    all.push_back("environ " + content("/proc/self/environ"));
    all.push_back("auxv " + content("/proc/self/auxv"));
    all.push_back("nice " + std::to_string(getpriority(PRIO_PROCESS, 0)));
    cpu_set_t cpus;
    CHECK(sched_getaffinity(0, sizeof cpus, &cpus) == 0);
    all.push_back("cpus " + std::to_string(CPU_COUNT(&cpus)) + (CPU_ISSET(0, &cpus) ? " with 0" : " without 0"));
    all.push_back("policy " + std::to_string(sched_getscheduler(0)));
    all.push_back("dumpable " + std::to_string(prctl(PR_GET_DUMPABLE)));
    all.push_back("death signal " + personality_of(PR_GET_PDEATHSIG));
    all.push_back("sub-reaper " + personality_of(PR_GET_CHILD_SUBREAPER));
    all.push_back("thp disabled " + std::to_string(prctl(PR_GET_THP_DISABLE, 0, 0, 0, 0)));
    all.push_back("slack " + std::to_string(prctl(PR_GET_TIMERSLACK)));
    all.push_back("oom " + content("/proc/self/oom_score_adj"));
    all.push_back("ids " + std::to_string(getpid()) + " " + std::to_string(getpgrp()) + " " + std::to_string(getsid(0)));
    all.push_back("coredump " + content("/proc/self/coredump_filter"));
    return all;
}

void set_limit(__rlimit_resource resource, rlim_t soft, rlim_t hard) {
    const rlimit limit{soft, hard};
    CHECK(setrlimit(resource, &limit) == 0);
}

void write_to(const char* path, const char* text) {
    const int fd = open(path, O_WRONLY | O_CLOEXEC);
    CHECK(fd >= 0 && write(fd, text, strlen(text)) > 0 && close(fd) == 0);
}

}  // namespace

int main(int argc, char** argv) {
    Victim self(argc, argv);
    set_limit(RLIMIT_NOFILE, 321, 654);
    set_limit(RLIMIT_CORE, 0, 4096);
    set_limit(RLIMIT_FSIZE, 1 << 30, RLIM_INFINITY);
    umask(0137);
    CHECK(chdir(self.text("dir", "/usr").c_str()) == 0);
    CHECK(setpriority(PRIO_PROCESS, 0, 5) == 0);
    cpu_set_t first;
    CPU_ZERO(&first);
    CPU_SET(0, &first);
    CHECK(sched_setaffinity(0, sizeof first, &first) == 0);
    const sched_param normal{};
    CHECK(sched_setscheduler(0, SCHED_BATCH, &normal) == 0);
    CHECK(prctl(PR_SET_NAME, "a) (new name") == 0);
    CHECK(prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0) == 0 && prctl(PR_SET_TIMERSLACK, 123456) == 0);
    CHECK(prctl(PR_SET_CHILD_SUBREAPER, 1) == 0);
    if (self.flag("death-signal")) CHECK(prctl(PR_SET_PDEATHSIG, SIGTERM) == 0);
    if (self.flag("not-dumpable")) CHECK(prctl(PR_SET_DUMPABLE, 0) == 0);
    write_to("/proc/self/oom_score_adj", "321");
    write_to("/proc/self/coredump_filter", "0x11");
    const auto before = snapshot();
    self.ready();
    do {
        const auto now = snapshot();
        for (size_t i = 0; i < now.size(); ++i)
            if (now[i] != before[i]) {
                say("was: %.200s", before[i].c_str());
                say("is:  %.200s", now[i].c_str());
                CHECK(!"an attribute changed");
            }
    } while (self.going(10));
    return self.done();
}
