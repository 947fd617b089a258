// Holds objects that may not be carried: HOLDS --log FILE --hold KIND[,KIND...]. It says "held KIND" or "cannot KIND
// REASON" for each, and goes on; a refused migration must leave it so. --dir DIR is a folder of its own.
#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/bpf.h>
#include <linux/filter.h>
#include <linux/io_uring.h>
#include <linux/perf_event.h>
#include <linux/seccomp.h>
#include <linux/userfaultfd.h>
#include <mqueue.h>
#include <net/if.h>
#include <netinet/in.h>
#include <netpacket/packet.h>
#include <pty.h>
#include <sched.h>
#include <sys/epoll.h>
#include <sys/fanotify.h>
#include <sys/file.h>
#include <sys/inotify.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/shm.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>

#include <map>
#include <functional>

#include "tests/victims/victim.h"

using namespace victim;

namespace {

std::string dir;

int child_that_sleeps() {
    const pid_t child = fork();
    if (child == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        for (;;) pause();
    }
    return child;
}

int system_v_memory() {
    const int id = shmget(IPC_PRIVATE, 8192, 0600);
    if (id < 0 || shmat(id, nullptr, 0) == reinterpret_cast<void*>(-1)) return -1;
    return shmctl(id, IPC_RMID, nullptr);
}

// Somebody who is no child of ours and ends with us; `fd` is all that it keeps open.
int leave_to_an_orphan(int fd) {
    const pid_t self = getpid();
    const pid_t child = fork();
    if (child != 0) return waitpid(child, nullptr, 0) == child ? 0 : -1;
    if (fork() != 0) _exit(0);
    const int kept = fd < 0 ? -1 : dup2(fd, 900);
    close_range(0, kept < 0 ? ~0u : 899, 0);
    if (kept >= 0) close_range(901, ~0u, 0);
    while (kill(self, 0) == 0) sleep_ms(20);
    _exit(0);
}

int memfd_held_outside() {
    const int fd = static_cast<int>(syscall(SYS_memfd_create, "held", 0));
    return fd >= 0 && ftruncate(fd, 4096) == 0 ? leave_to_an_orphan(fd) : -1;
}

int memory_mapped_outside() {
    if (mmap(nullptr, 4096, PROT_READ, MAP_SHARED | MAP_ANONYMOUS, -1, 0) == MAP_FAILED) return -1;
    return leave_to_an_orphan(-1);
}

int deleted_file() {
    const std::string path = dir + "/deleted";
    const int fd = open(path.c_str(), O_RDWR | O_CREAT, 0600);
    return fd >= 0 && write(fd, "x", 1) == 1 && unlink(path.c_str()) == 0 ? fd : -1;
}

int deleted_mapping() {
    const std::string path = dir + "/mapped";
    const int fd = open(path.c_str(), O_RDWR | O_CREAT, 0600);
    if (fd < 0 || ftruncate(fd, 4096) != 0) return -1;
    void* at = mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    return at != MAP_FAILED && unlink(path.c_str()) == 0 ? 0 : -1;
}

int filter() {
    sock_filter allow = BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
    sock_fprog program{1, &allow};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0) return -1;
    return prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program);
}

int faults() {
    const int fd = static_cast<int>(syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK));
    uffdio_api api{UFFD_API, 0, 0};
    return fd >= 0 && ioctl(fd, UFFDIO_API, &api) == 0 ? fd : -1;
}

int performance() {
    perf_event_attr event{};
    event.size = sizeof event;
    event.type = PERF_TYPE_SOFTWARE;
    event.config = PERF_COUNT_SW_PAGE_FAULTS;
    return static_cast<int>(syscall(SYS_perf_event_open, &event, 0, -1, -1, 0));
}

int bpf_map() {
    bpf_attr attributes{};
    attributes.map_type = BPF_MAP_TYPE_ARRAY;
    attributes.key_size = 4;
    attributes.value_size = 4;
    attributes.max_entries = 1;
    return static_cast<int>(syscall(SYS_bpf, BPF_MAP_CREATE, &attributes, sizeof attributes));
}

int uring() {
    io_uring_params parameters{};
    return static_cast<int>(syscall(SYS_io_uring_setup, 4, &parameters));
}

int connected_tcp() {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t length = sizeof address;
    const int listener = socket(AF_INET, SOCK_STREAM, 0);
    const int client = socket(AF_INET, SOCK_STREAM, 0);
    if (bind(listener, reinterpret_cast<sockaddr*>(&address), length) != 0 || listen(listener, 1) != 0) return -1;
    getsockname(listener, reinterpret_cast<sockaddr*>(&address), &length);
    if (connect(client, reinterpret_cast<sockaddr*>(&address), length) != 0) return -1;
    return accept(listener, nullptr, nullptr);
}

int udp() {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    const int fd = socket(AF_INET, SOCK_DGRAM, 0);
    return bind(fd, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0 ? fd : -1;
}

int unix_listener() {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    snprintf(address.sun_path, sizeof address.sun_path, "%s/socket", dir.c_str());
    const int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    return bind(fd, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0 && listen(fd, 1) == 0 ? fd : -1;
}

// One end stays here, the other goes to a child: an object whose other half is outside the process.
int half_pipe() {
    int end[2];
    if (pipe(end) != 0) return -1;
    return child_that_sleeps() > 0 ? close(end[0]) : -1;
}

int half_socketpair() {
    int end[2];
    if (socketpair(AF_UNIX, SOCK_STREAM, 0, end) != 0) return -1;
    return child_that_sleeps() > 0 ? close(end[0]) : -1;
}

int pty() {
    int master, slave;
    return openpty(&master, &slave, nullptr, nullptr, nullptr);
}

int fifo() {
    const std::string path = dir + "/fifo";
    return mkfifo(path.c_str(), 0600) == 0 ? open(path.c_str(), O_RDWR) : -1;
}

int file_for_lock(const char* name) { return open((dir + "/" + name).c_str(), O_RDWR | O_CREAT, 0600); }

int posix_lock(int command) {
    struct flock lock {};
    lock.l_type = F_WRLCK;
    return fcntl(file_for_lock(command == F_SETLK ? "posix" : "ofd"), command, &lock);
}

int traced_child() {
    const pid_t child = child_that_sleeps();
    return child > 0 ? static_cast<int>(ptrace(PTRACE_SEIZE, child, nullptr, nullptr)) : -1;
}

int with_processor_timer() {
    timer_t timer;
    sigevent event{};
    event.sigev_notify = SIGEV_NONE;
    return timer_create(CLOCK_PROCESS_CPUTIME_ID, &event, &timer);
}

int passed_descriptor() {
    int end[2];
    if (socketpair(AF_UNIX, SOCK_STREAM, 0, end) != 0) return -1;
    char byte = 'x';
    iovec data{&byte, 1};
    alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
    msghdr message{};
    message.msg_iov = &data;
    message.msg_iovlen = 1;
    message.msg_control = control;
    message.msg_controllen = sizeof control;
    cmsghdr* header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof(int));
    memcpy(CMSG_DATA(header), &log_fd, sizeof(int));
    return static_cast<int>(sendmsg(end[0], &message, 0));
}

const std::map<std::string, std::function<long()>>& kinds() {
    static const std::map<std::string, std::function<long()>> all = {
        {"io_uring", uring},
        {"inotify", [] { return inotify_init1(IN_CLOEXEC); }},
        {"fanotify", [] { return fanotify_init(FAN_CLASS_NOTIF, O_RDONLY); }},
        {"child", child_that_sleeps},
        {"zombie", [] { const pid_t child = fork(); if (child == 0) _exit(0); return child; }},
        {"tcp", connected_tcp},
        {"udp", udp},
        {"unix-listener", unix_listener},
        {"netlink", [] { return socket(AF_NETLINK, SOCK_RAW, 0); }},
        {"packet", [] { return socket(AF_PACKET, SOCK_DGRAM, 0); }},
        {"raw", [] { return socket(AF_INET, SOCK_RAW, IPPROTO_ICMP); }},
        {"half-pipe", half_pipe},
        {"half-socketpair", half_socketpair},
        {"passed-descriptor", passed_descriptor},
        {"pty", pty},
        {"fifo", fifo},
        {"seccomp", filter},
        {"userfaultfd", faults},
        {"perf", performance},
        {"bpf", bpf_map},
        {"shm", system_v_memory},
        {"memfd-outside", memfd_held_outside},
        {"memory-outside", memory_mapped_outside},
        {"memfd-huge", [] { return syscall(SYS_memfd_create, "huge", 4 /* MFD_HUGETLB */); }},
        {"deleted-file", deleted_file},
        {"deleted-mapping", deleted_mapping},
        {"pidfd", [] { return syscall(SYS_pidfd_open, getpid(), 0); }},
        {"namespace-file", [] { return open("/proc/self/ns/net", O_RDONLY); }},
        {"proc-file", [] { return open("/proc/self/maps", O_RDONLY); }},
        {"mount-namespace", [] { return unshare(CLONE_NEWNS); }},
        {"mqueue", [] { return mq_open("/godwit-held", O_RDWR | O_CREAT, 0600, nullptr); }},
        {"flock", [] { return flock(file_for_lock("flock"), LOCK_EX); }},
        {"posix-lock", [] { return posix_lock(F_SETLK); }},
        {"ofd-lock", [] { return posix_lock(F_OFD_SETLK); }},
        {"lease", [] { return fcntl(file_for_lock("lease"), F_SETLEASE, F_WRLCK); }},
        {"dnotify", [] { return fcntl(open(dir.c_str(), O_RDONLY), F_NOTIFY, DN_CREATE | DN_MULTISHOT); }},
        {"async-owner", [] { const int fd = unix_listener(); fcntl(fd, F_SETOWN, getpid()); return fcntl(fd, F_SETFL, O_ASYNC); }},
        {"traced-child", traced_child},
        {"processor-timer", with_processor_timer},
        {"memfd-secret", [] { return syscall(SYS_memfd_secret, 0); }},
        {"mount-handle", [] { return syscall(SYS_fsopen, "tmpfs", 0); }},
        {"vsock", [] { return socket(AF_VSOCK, SOCK_STREAM, 0); }},
        {"kmsg", [] { return open("/dev/kmsg", O_RDONLY | O_NONBLOCK); }},
        {"pages-locked", [] { return mlockall(MCL_CURRENT | MCL_FUTURE); }},
    };
    return all;
}

}  // namespace

int main(int argc, char** argv) {
    Victim self(argc, argv);
    dir = self.text("dir", "/tmp");
    std::string wanted = self.text("hold", "");
    signal(SIGIO, SIG_IGN);
    while (!wanted.empty()) {
        const size_t comma = wanted.find(',');
        const std::string kind = wanted.substr(0, comma);
        wanted = comma == std::string::npos ? "" : wanted.substr(comma + 1);
        const auto found = kinds().find(kind);
        CHECK(found != kinds().end());
        errno = 0;
        if (found->second() >= 0) say("held %s", kind.c_str());
        else say("cannot %s %s", kind.c_str(), strerror(errno));
    }
    self.ready();
    while (self.going()) {
    }
    return self.done();
}
