#include "tests/support/forked_child.h"

#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstdlib>

namespace godwit::test {

ForkedChild::ForkedChild(const std::function<int(Told&)>& act, bool session) {
    // Of a file, so that it is nothing unusual in the child.
    char name[] = "/tmp/godwit-told-XXXXXX";
    const int file = ::mkstemp(name);
    if (file < 0 || ::ftruncate(file, sizeof(Told)) != 0) ::abort();
    void* shared = ::mmap(nullptr, sizeof(Told), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    int ready[2];
    if (shared == MAP_FAILED || ::pipe(ready) != 0) ::abort();
    told_ = static_cast<Told*>(shared);
    pid_ = ::fork();
    if (pid_ == 0) {
        ::prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (session) ::setsid();
        int error = act(*told_);
        ::munmap(told_, sizeof(Told));
        ::close(file);
        if (::write(ready[1], &error, sizeof error) != sizeof error) ::_exit(1);
        ::close(ready[0]);
        ::close(ready[1]);
        for (;;) ::pause();
    }
    ::close(file);
    ::close(ready[1]);
    if (::read(ready[0], &error_, sizeof error_) != sizeof error_) error_ = ECHILD;
    ::close(ready[0]);
    ::unlink(name);
}

bool ForkedChild::not_here() const {
    return error_ == ENOSYS || error_ == EINVAL || error_ == EOPNOTSUPP || error_ == EPERM || error_ == ENODEV || error_ == ENOSPC;
}

ForkedChild::~ForkedChild() {
    ::kill(pid_, SIGKILL);
    int status = 0;
    while (::waitpid(pid_, &status, __WALL) < 0 && errno == EINTR) continue;
    ::munmap(told_, sizeof(Told));
}

}  // namespace godwit::test
