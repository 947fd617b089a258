// Signal dispositions, blocked signals that stay pending with their siginfo (process-wide and of one thread),
// and handlers on an alternate stack.
#include <pthread.h>
#include <sys/syscall.h>

#include <vector>

#include "tests/victims/victim.h"

using namespace victim;

namespace {

char handler_stack[32768];
volatile sig_atomic_t handled = 0;
volatile sig_atomic_t off_stack = 0;

void on_user(int, siginfo_t* info, void*) {
    char here;
    if (&here < handler_stack || &here >= handler_stack + sizeof handler_stack) off_stack = 1;
    if (info->si_signo == SIGUSR2) handled = handled + 1;
}

void plain_handler(int) {}

std::vector<struct sigaction> dispositions() {
    std::vector<struct sigaction> all;
    for (int sig = 1; sig <= SIGRTMAX; ++sig) {
        struct sigaction action {};
        if (sigaction(sig, nullptr, &action) != 0) action.sa_flags = -1;
        all.push_back(action);
    }
    return all;
}

bool same(const std::vector<struct sigaction>& left, const std::vector<struct sigaction>& right) {
    for (size_t i = 0; i < left.size(); ++i) {
        if (left[i].sa_handler != right[i].sa_handler || left[i].sa_flags != right[i].sa_flags) return false;
        for (int sig = 1; sig <= SIGRTMAX; ++sig)
            if (sigismember(&left[i].sa_mask, sig) != sigismember(&right[i].sa_mask, sig)) return false;
    }
    return true;
}

void set(int sig, void (*handler)(int), int flags, int masked) {
    struct sigaction action {};
    action.sa_handler = handler;
    action.sa_flags = flags;
    if (masked != 0) sigaddset(&action.sa_mask, masked);
    CHECK(sigaction(sig, &action, nullptr) == 0);
}

// Takes one pending signal and checks where it says that it came from.
void take(int sig, int code, int value) {
    sigset_t one;
    sigemptyset(&one);
    sigaddset(&one, sig);
    siginfo_t info{};
    const timespec no_wait{0, 0};
    // By hand: glibc's sigtimedwait() reports SI_TKILL as SI_USER.
    CHECK(syscall(SYS_rt_sigtimedwait, &one, &info, &no_wait, 8) == sig);
    CHECK(info.si_code == code);
    CHECK(info.si_pid == getpid() && info.si_uid == getuid());
    if (code == SI_QUEUE) CHECK(info.si_value.sival_int == value);
}

}  // namespace

int main(int argc, char** argv) {
    Victim self(argc, argv);
    stack_t alternate{};
    alternate.ss_sp = handler_stack;
    alternate.ss_size = sizeof handler_stack;
    CHECK(sigaltstack(&alternate, nullptr) == 0);
    struct sigaction user {};
    user.sa_sigaction = on_user;
    user.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_RESTART;
    CHECK(sigaction(SIGUSR2, &user, nullptr) == 0);
    set(SIGPIPE, SIG_IGN, 0, 0);
    set(SIGHUP, SIG_IGN, SA_RESTART, 0);
    set(SIGCHLD, plain_handler, SA_NOCLDSTOP | SA_NOCLDWAIT, SIGUSR1);
    set(SIGWINCH, plain_handler, SA_RESETHAND | SA_NODEFER, SIGRTMIN + 4);
    set(SIGRTMIN + 9, plain_handler, SA_RESTART, SIGRTMAX);

    sigset_t blocked;
    sigemptyset(&blocked);
    for (const int sig : {SIGUSR1, SIGALRM, SIGRTMIN + 3, SIGRTMIN + 5}) sigaddset(&blocked, sig);
    CHECK(sigprocmask(SIG_BLOCK, &blocked, nullptr) == 0);
    kill(getpid(), SIGUSR1);
    for (int i = 1; i <= 5; ++i) CHECK(sigqueue(getpid(), SIGRTMIN + 3, sigval{i * 111}) == 0);
    CHECK(syscall(SYS_tgkill, getpid(), syscall(SYS_gettid), SIGALRM) == 0);
    siginfo_t own{};
    own.si_code = SI_QUEUE;
    own.si_pid = getpid();
    own.si_uid = getuid();
    own.si_value.sival_int = 4711;
    CHECK(syscall(SYS_rt_tgsigqueueinfo, getpid(), syscall(SYS_gettid), SIGRTMIN + 5, &own) == 0);
    const auto before = dispositions();
    sigset_t pending;
    sigpending(&pending);
    self.ready();

    int raised = 0;
    do {
        CHECK(same(before, dispositions()));
        sigset_t now;
        CHECK(sigpending(&now) == 0);
        for (int sig = 1; sig <= SIGRTMAX; ++sig) CHECK(sigismember(&now, sig) == sigismember(&pending, sig));
        raise(SIGUSR2);
        CHECK(handled == ++raised && off_stack == 0);
    } while (self.going());

    take(SIGUSR1, SI_USER, 0);
    take(SIGALRM, SI_TKILL, 0);
    take(SIGRTMIN + 5, SI_QUEUE, 4711);
    for (int i = 1; i <= 5; ++i) take(SIGRTMIN + 3, SI_QUEUE, i * 111);
    sigpending(&pending);
    for (int sig = 1; sig <= SIGRTMAX; ++sig) CHECK(sigismember(&pending, sig) == 0);
    return self.done();
}
