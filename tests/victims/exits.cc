// Does something drastic when it gets SIGUSR1, between two looks at its memory. --then WHAT:
//   exit     ends with exit code 7, after the line "exits"
//   crash    ends by SIGSEGV, after "crashes"
//   exec     becomes a new program image (itself, with --then nothing), after "execs"; the new one says "ready" again
//   thread-exec   the same, called by another thread than the first
//   leader   its first thread ends, another goes on, after "leaves"
//   fork     a child is born, ends and is waited for; "forks" once it is over
//   child    a child is born and stays, after "has a child"
//   userfaultfd  has one, and memory under it, after "catches faults"
//   nothing  it says so
// --mb N of memory are held (default 8).
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include <vector>

#include "tests/victims/victim.h"

using namespace victim;

namespace {

volatile sig_atomic_t asked = 0;
std::vector<unsigned long> held;
char** arguments;

void become_new() {
    std::vector<char*> argv;
    for (char** at = arguments; *at != nullptr; ++at)
        argv.push_back(strcmp(at[0], "--then") == 0 ? strdup("--now") : *at);
    argv.push_back(nullptr);
    execv("/proc/self/exe", argv.data());
    CHECK(!"execv");
}

void* in_thread(void* what) {
    if (strcmp(static_cast<const char*>(what), "exec") == 0) become_new();
    return nullptr;
}

void check() {
    for (size_t i = 0; i < held.size(); i += 64) CHECK(held[i] == i * 3);
}

// The first thread has ended: this one is the victim now.
void* go_on(void* victim) {
    Victim& self = *static_cast<Victim*>(victim);
    while (self.going()) check();
    say("done");
    _exit(0);
}

void born_and_gone() {
    const pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        held[0] = 1;  // its own copy
        _exit(held[64] == 192 ? 5 : 6);
    }
    int status = 0;
    CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 5);
    volatile unsigned long& word = held[held.size() / 2];
    word = word + 0;  // shared with the child no longer
    say("forks");
}

void catch_faults() {
    const int fd = static_cast<int>(syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK));
    uffdio_api api{UFFD_API, 0, 0};
    void* at = mmap(nullptr, 65536, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    uffdio_register range{{reinterpret_cast<unsigned long>(at), 65536}, UFFDIO_REGISTER_MODE_MISSING, 0};
    CHECK(fd >= 0 && at != MAP_FAILED && ioctl(fd, UFFDIO_API, &api) == 0 && ioctl(fd, UFFDIO_REGISTER, &range) == 0);
    say("catches faults");
}

void act(const std::string& what, Victim& self) {
    pthread_t thread;
    if (what == "exit") {
        say("exits");
        _exit(7);
    } else if (what == "crash") {
        say("crashes");
        signal(SIGSEGV, SIG_DFL);
        *static_cast<volatile int*>(nullptr) = 1;
    } else if (what == "exec") {
        say("execs");
        become_new();
    } else if (what == "thread-exec") {
        say("execs");
        CHECK(pthread_create(&thread, nullptr, in_thread, const_cast<char*>("exec")) == 0);
        for (;;) pause();
    } else if (what == "leader") {
        CHECK(pthread_create(&thread, nullptr, go_on, &self) == 0);
        say("leaves");
        pthread_exit(nullptr);
    } else if (what == "fork") {
        born_and_gone();
    } else if (what == "userfaultfd") {
        catch_faults();
    } else if (what == "child") {
        const pid_t child = fork();
        CHECK(child >= 0);
        if (child == 0) {
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            for (;;) pause();
        }
        say("has a child");
    } else {
        say("nothing");
    }
}

}  // namespace

int main(int argc, char** argv) {
    static Victim self(argc, argv);
    arguments = argv;
    const std::string what = self.text("then", "nothing");
    held.resize(static_cast<size_t>(self.number("mb", 8)) << 17);
    for (size_t i = 0; i < held.size(); ++i) held[i] = i * 3;
    struct sigaction action {};
    action.sa_handler = [](int) { asked = 1; };
    sigaction(SIGUSR1, &action, nullptr);
    self.ready();
    while (self.going()) {
        if (asked != 0) {
            asked = 0;
            act(what, self);
        }
        check();
    }
    check();
    return self.done();
}
