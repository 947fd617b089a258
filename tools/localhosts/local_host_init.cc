// The native half of tools/localhosts: makes one "host" out of namespaces and runs programs in it.
//
//   local_host_init start --name N --cgroup DIR --first-pid N [--keep PATH]...
//       Makes the host, prints the process id of its init as seen from outside, and stays until standard
//       input ends. Whatever ends the caller, SIGKILL included, closes that pipe: then everything in the
//       host is killed and its cgroup removed. --keep names folders that stay visible below /tmp and /run.
//   local_host_init run --init PID --cgroup DIR [--report-fd FD] -- PROGRAM [ARG]...
//       Runs a program in the host, standard streams as they are, and exits as it did (128 + signal).
//   local_host_init spawn --init PID --cgroup DIR [--log FILE] [--env K=V]... -- PROGRAM [ARG]...
//       Starts a daemon there (own session, no descriptor and no variable of ours) and prints its process id
//       as seen in the host.
//
// Kernel: pidfd in setns() needs Linux 5.8. Must be run by root.
#include <dirent.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

namespace {

struct Options {
    std::string name = "a";
    std::string cgroup;
    std::string log = "/dev/null";
    int first_pid = 0;
    int report_fd = -1;
    pid_t init = 0;
    std::vector<std::string> keep;
    std::vector<std::string> env;
    std::vector<char*> command;
};

[[noreturn]] void die(const std::string& what) {
    std::fprintf(stderr, "local_host_init: %s: %s\n", what.c_str(), std::strerror(errno));
    _exit(125);
}

void check(bool good, const std::string& what) {
    if (!good) die(what);
}

void write_text(const std::string& path, const std::string& text) {
    const int fd = open(path.c_str(), O_WRONLY | O_CLOEXEC);
    check(fd >= 0, path);
    check(write(fd, text.data(), text.size()) == static_cast<ssize_t>(text.size()), path);
    close(fd);
}

void make_folders(const std::string& path) {
    for (size_t end = path.find('/', 1); ; end = path.find('/', end + 1)) {
        mkdir(path.substr(0, end).c_str(), 0755);
        if (end == std::string::npos) return;
    }
}

// ---- the host's own file systems -------------------------------------------------------------------

// A folder that a private /tmp or /run would hide, held open so that it can be bound into its place again.
struct Kept {
    std::string path;
    int fd;
};

void mount_over(const std::string& target, const char* type, unsigned long flags, const char* data) {
    check(mount(type, target.c_str(), type, flags, data) == 0, "mount " + target);
}

void bind_again(const Kept& kept) {
    make_folders(kept.path);
    const std::string link = "/proc/self/fd/" + std::to_string(kept.fd);
    check(mount(link.c_str(), kept.path.c_str(), nullptr, MS_BIND | MS_REC, nullptr) == 0, "bind " + kept.path);
    close(kept.fd);
}

void make_device_folder() {
    struct Node { const char* name; unsigned major, minor; };
    static constexpr Node nodes[] = {{"null", 1, 3}, {"zero", 1, 5}, {"full", 1, 7}, {"random", 1, 8},
                                     {"urandom", 1, 9}, {"kmsg", 1, 11}, {"tty", 5, 0}, {"fuse", 10, 229}};
    // The minor of userfaultfd is given out at boot, so it is copied from the machine's own node.
    struct stat fault_node {};
    const bool has_faults = stat("/dev/userfaultfd", &fault_node) == 0;
    mount_over("/dev", "tmpfs", MS_NOSUID, "mode=755,size=4m");
    const mode_t old = umask(0);
    for (const Node& node : nodes)
        check(mknod((std::string("/dev/") + node.name).c_str(), S_IFCHR | 0666, makedev(node.major, node.minor)) == 0, node.name);
    if (has_faults) check(mknod("/dev/userfaultfd", S_IFCHR | 0600, fault_node.st_rdev) == 0, "/dev/userfaultfd");
    umask(old);
    mkdir("/dev/pts", 0755);
    mkdir("/dev/shm", 01777);
    mount_over("/dev/pts", "devpts", MS_NOSUID | MS_NOEXEC, "newinstance,ptmxmode=0666,mode=620");
    mount_over("/dev/shm", "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777");
    check(symlink("pts/ptmx", "/dev/ptmx") == 0 && symlink("/proc/self/fd", "/dev/fd") == 0, "/dev links");
}

// Where the v2 hierarchy is mounted, from mountinfo(5): "... MOUNTPOINT ... - cgroup2 ...".
std::string cgroup2_mount() {
    std::ifstream in("/proc/self/mountinfo");
    std::string found;
    for (std::string line; std::getline(in, line);) {
        if (line.find(" - cgroup2 ") == std::string::npos) continue;
        std::istringstream words(line);
        for (int i = 0; i < 5; ++i) words >> found;
    }
    return found;
}

void make_file_systems(const Options& options) {
    check(mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) == 0, "make / private");
    std::vector<Kept> kept;
    for (const std::string& path : options.keep)
        if (path.rfind("/tmp/", 0) == 0 || path.rfind("/run/", 0) == 0) {
            const int fd = open(path.c_str(), O_PATH | O_CLOEXEC);
            check(fd >= 0, path);
            kept.push_back({path, fd});
        }
    mount_over("/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, nullptr);
    mount_over("/run", "tmpfs", MS_NOSUID | MS_NODEV, "mode=755");
    mount_over("/tmp", "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777");
    for (const Kept& one : kept) bind_again(one);
    make_device_folder();
    // The host sees its own subtree as the whole hierarchy, as a machine would.
    const std::string cgroups = cgroup2_mount();
    check(!cgroups.empty() && umount2(cgroups.c_str(), MNT_DETACH) == 0, "unmount cgroup2");
    mount_over(cgroups, "cgroup2", MS_NOSUID | MS_NODEV | MS_NOEXEC, nullptr);
}

// ---- init ------------------------------------------------------------------------------------------

// Process 1 of the host: reaps, and dies with its keeper; the kernel then kills everyone else in it.
[[noreturn]] void be_init(const Options& options, int ready) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != 0) _exit(125);  // 0: the keeper is alive, outside our namespace
    prctl(PR_SET_NAME, "host-init");
    setsid();
    write_text(options.cgroup + "/cgroup.procs", "0");
    check(unshare(CLONE_NEWCGROUP) == 0, "unshare cgroup namespace");
    const std::string host_name = "godwit-" + options.name;
    check(sethostname(host_name.data(), host_name.size()) == 0, "sethostname");
    make_file_systems(options);
    if (options.first_pid > 0) write_text("/proc/sys/kernel/ns_last_pid", std::to_string(options.first_pid - 1));
    sigset_t children;
    sigemptyset(&children);
    sigaddset(&children, SIGCHLD);
    sigprocmask(SIG_BLOCK, &children, nullptr);
    check(chdir("/") == 0, "chdir /");
    const int null = open("/dev/null", O_RDWR);
    check(null >= 0 && dup2(null, 0) == 0 && dup2(null, 1) == 1, "/dev/null");
    check(write(ready, "r", 1) == 1, "report ready");
    close(ready);
    dup2(null, 2);
    for (;;) {
        siginfo_t info;
        sigwaitinfo(&children, &info);
        while (waitpid(-1, nullptr, WNOHANG) > 0) {
        }
    }
}

// Removes a cgroup and everything below it. What was killed a moment ago may still be on its way out, and the
// kernel has no event for "may be removed", so it is tried again for at most five seconds.
void remove_cgroup(const std::string& path) {
    if (DIR* dir = opendir(path.c_str())) {
        while (const dirent* entry = readdir(dir))
            if (entry->d_type == DT_DIR && entry->d_name[0] != '.') remove_cgroup(path + "/" + entry->d_name);
        closedir(dir);
    }
    for (int i = 0; i < 500 && rmdir(path.c_str()) != 0 && errno == EBUSY; ++i) usleep(10000);
}

int keep(pid_t init, const Options& options) {
    const int init_fd = static_cast<int>(syscall(SYS_pidfd_open, init, 0));
    pollfd watched[2] = {{0, POLLIN, 0}, {init_fd, POLLIN, 0}};
    for (;;) {
        if (poll(watched, 2, -1) < 0 && errno != EINTR) break;
        char buffer[64];
        if (watched[1].revents != 0) break;
        if (watched[0].revents != 0 && read(0, buffer, sizeof buffer) <= 0) break;
    }
    kill(init, SIGKILL);
    waitpid(init, nullptr, 0);  // returns once everything in the PID namespace is gone
    remove_cgroup(options.cgroup);
    return 0;
}

int start(const Options& options) {
    setsid();  // Ctrl-C at the caller's terminal must not take us away before we have cleaned up
    for (const int sig : {SIGINT, SIGTERM, SIGHUP, SIGQUIT}) signal(sig, SIG_IGN);
    check(mkdir(options.cgroup.c_str(), 0755) == 0, options.cgroup);
    int ready[2];
    check(pipe2(ready, O_CLOEXEC) == 0, "pipe");
    const unsigned long flags = CLONE_NEWPID | CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWUTS | CLONE_NEWIPC | SIGCHLD;
    const auto init = static_cast<pid_t>(syscall(SYS_clone, flags, nullptr, nullptr, nullptr, 0UL));
    if (init < 0) remove_cgroup(options.cgroup);
    check(init >= 0, "clone");
    if (init == 0) be_init(options, ready[1]);
    close(ready[1]);
    char byte;
    if (read(ready[0], &byte, 1) == 1) {
        std::printf("%d\n", init);
        std::fflush(stdout);
    }
    return keep(init, options);  // after a failure init is dead already: only the clean-up happens
}

// ---- run and spawn ---------------------------------------------------------------------------------

// Returns the descriptor through which our child moves itself to the host's cgroup.
int enter(const Options& options) {
    const int procs = open((options.cgroup + "/cgroup.procs").c_str(), O_WRONLY | O_CLOEXEC);
    check(procs >= 0, options.cgroup);
    const int init = static_cast<int>(syscall(SYS_pidfd_open, options.init, 0));
    check(init >= 0, "no host with init " + std::to_string(options.init));
    const int all = CLONE_NEWPID | CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWCGROUP;
    check(setns(init, all) == 0, "setns");
    close(init);
    return procs;
}

void default_signals() {
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, nullptr);
    for (int sig = 1; sig < 65; ++sig) signal(sig, SIG_DFL);
}

[[noreturn]] void execute(const Options& options) {
    execvp(options.command[0], options.command.data());
    const int error = errno;
    std::fprintf(stderr, "local_host_init: %s: %s\n", options.command[0], std::strerror(error));
    _exit(error == ENOENT ? 127 : 126);
}

volatile sig_atomic_t running = 0;
void forward(int sig) { kill(running, sig); }

int run(const Options& options) {
    const int procs = enter(options);
    int held[2];  // the child waits until it is known, so that no signal is lost
    check(pipe2(held, O_CLOEXEC) == 0, "pipe");
    const pid_t child = fork();
    check(child >= 0, "fork");
    if (child == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        close(held[1]);
        char byte;
        if (read(held[0], &byte, 1) != 1) _exit(125);
        check(write(procs, "0", 1) == 1, "join " + options.cgroup);
        execute(options);
    }
    running = child;
    for (const int sig : {SIGINT, SIGTERM, SIGHUP, SIGUSR1, SIGUSR2, SIGCONT}) signal(sig, forward);
    if (options.report_fd >= 0) dprintf(options.report_fd, "%d\n", child), close(options.report_fd);
    check(write(held[1], "g", 1) == 1, "start the program");
    int status = 0;
    while (waitpid(child, &status, 0) < 0 && errno == EINTR) {
    }
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

[[noreturn]] void be_daemon(const Options& options, int procs) {
    setsid();
    check(write(procs, "0", 1) == 1, "join " + options.cgroup);
    const int null = open("/dev/null", O_RDWR);
    const int log = open(options.log.c_str(), O_WRONLY | O_CREAT | O_APPEND, 0644);
    check(null >= 0 && log >= 0 && chdir("/") == 0, options.log);
    default_signals();
    clearenv();
    setenv("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", 1);
    setenv("HOME", "/", 1);
    setenv("LANG", "C.UTF-8", 1);
    for (const std::string& pair : options.env) putenv(strdup(pair.c_str()));
    umask(022);
    dup2(null, 0), dup2(log, 1), dup2(log, 2);
    syscall(SYS_close_range, 3, ~0U, 0);
    execute(options);
}

int spawn(const Options& options) {
    const int procs = enter(options);
    int report[2];
    check(pipe2(report, O_CLOEXEC) == 0, "pipe");
    const pid_t middle = fork();  // ends at once, so that the host's init becomes the daemon's parent
    check(middle >= 0, "fork");
    if (middle == 0) {
        const pid_t child = fork();
        if (child == 0) be_daemon(options, procs);
        _exit(write(report[1], &child, sizeof child) == sizeof child && child > 0 ? 0 : 125);
    }
    close(report[1]);
    pid_t child = -1;
    const bool told = read(report[0], &child, sizeof child) == sizeof child && child > 0;
    waitpid(middle, nullptr, 0);
    if (told) std::printf("%d\n", child);
    return told ? 0 : 125;
}

// ---- command line ----------------------------------------------------------------------------------

int usage() {
    std::fprintf(stderr, "usage: local_host_init start|run|spawn OPTIONS [-- PROGRAM ARG...]; see tools/localhosts\n");
    return 2;
}

bool parse(int argc, char** argv, Options& options) {
    for (int i = 2; i < argc; ++i) {
        const std::string word = argv[i];
        if (word == "--") {
            options.command.assign(argv + i + 1, argv + argc + 1);  // with the terminating null
            return options.command.size() > 1;
        }
        if (++i >= argc) return false;
        if (word == "--name") options.name = argv[i];
        else if (word == "--cgroup") options.cgroup = argv[i];
        else if (word == "--log") options.log = argv[i];
        else if (word == "--first-pid") options.first_pid = std::atoi(argv[i]);
        else if (word == "--report-fd") options.report_fd = std::atoi(argv[i]);
        else if (word == "--init") options.init = std::atoi(argv[i]);
        else if (word == "--keep") options.keep.emplace_back(argv[i]);
        else if (word == "--env") options.env.emplace_back(argv[i]);
        else return false;
    }
    return true;
}

}  // namespace

int main(int argc, char** argv) {
    Options options;
    if (argc < 2 || !parse(argc, argv, options) || options.cgroup.empty()) return usage();
    const std::string verb = argv[1];
    if (verb == "start") return start(options);
    if (options.init <= 0 || options.command.empty()) return usage();
    return verb == "run" ? run(options) : verb == "spawn" ? spawn(options) : usage();
}
