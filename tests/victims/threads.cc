// Threads, each with its own name, signal mask, alternate stack, TLS and vector registers, which share a robust
// mutex and a condition variable. --threads N (default 8).
#include <pthread.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#include <memory>
#include <vector>

#include "tests/victims/victim.h"

using namespace victim;

namespace {

thread_local unsigned long tls_value = 0;
pthread_mutex_t robust;
pthread_mutex_t plain = PTHREAD_MUTEX_INITIALIZER;
pthread_cond_t turn = PTHREAD_COND_INITIALIZER;
unsigned long robust_count = 0;
unsigned long set_up = 0;  // workers
volatile bool ending = false;
volatile bool first_may_end = false;

// Sleeps with a pattern in ten SSE registers and MXCSR; the system call is made by hand so that nothing
// between touches them.
bool vectors_survive_sleep(unsigned long pattern, long ms) {
    alignas(16) unsigned long in[2] = {pattern, ~pattern};
    alignas(16) unsigned long out[8] = {};
    const timespec rest{ms / 1000, ms % 1000 * 1000000};
    long result = SYS_nanosleep;
    asm volatile(
        "movdqa %[in], %%xmm6\n movdqa %%xmm6, %%xmm9\n movdqa %%xmm6, %%xmm13\n movdqa %%xmm6, %%xmm15\n"
        "xor %%esi, %%esi\n"
        "syscall\n"
        "movdqa %%xmm6, %[o0]\n movdqa %%xmm9, %[o1]\n movdqa %%xmm13, %[o2]\n movdqa %%xmm15, %[o3]\n"
        : "+a"(result), [o0] "=m"(*reinterpret_cast<__int128*>(&out[0])), [o1] "=m"(*reinterpret_cast<__int128*>(&out[2])),
          [o2] "=m"(*reinterpret_cast<__int128*>(&out[4])), [o3] "=m"(*reinterpret_cast<__int128*>(&out[6]))
        : [in] "m"(*reinterpret_cast<__int128*>(&in[0])), "D"(&rest)
        : "rcx", "r11", "rsi", "xmm6", "xmm9", "xmm13", "xmm15", "memory");
    for (int i = 0; i < 8; ++i)
        if (out[i] != in[i % 2]) return false;
    return result == 0 || result == -EINTR;
}

void check_identity(int index, pid_t tid, const char* name, const void* stack, const sigset_t& mask) {
    char now[16] = {};
    stack_t alternate{};
    sigset_t mask_now;
    CHECK(static_cast<pid_t>(syscall(SYS_gettid)) == tid);
    CHECK(prctl(PR_GET_NAME, now) == 0 && strcmp(now, name) == 0);
    CHECK(sigaltstack(nullptr, &alternate) == 0 && alternate.ss_sp == stack && alternate.ss_flags == 0);
    CHECK(pthread_sigmask(SIG_BLOCK, nullptr, &mask_now) == 0);
    for (int sig = 1; sig <= SIGRTMAX; ++sig) CHECK(sigismember(&mask, sig) == sigismember(&mask_now, sig));
    CHECK(tls_value % 1000 == static_cast<unsigned long>(index) % 1000);
}

struct Start {
    int index;
    long rest_ms;
};

void* work(void* argument) {
    const auto start = std::unique_ptr<Start>(static_cast<Start*>(argument));
    char name[16];
    snprintf(name, sizeof name, "worker-%d", start->index);
    prctl(PR_SET_NAME, name);
    std::vector<char> stack_space(16384);
    stack_t alternate{};
    alternate.ss_sp = stack_space.data();
    alternate.ss_size = stack_space.size();
    CHECK(sigaltstack(&alternate, nullptr) == 0);
    sigset_t mask;
    sigemptyset(&mask);
    sigaddset(&mask, SIGTERM);
    sigaddset(&mask, SIGRTMIN + start->index % 20);
    pthread_sigmask(SIG_SETMASK, &mask, nullptr);
    const auto tid = static_cast<pid_t>(syscall(SYS_gettid));
    tls_value = static_cast<unsigned long>(start->index) % 1000;
    __atomic_add_fetch(&set_up, 1, __ATOMIC_RELEASE);
    unsigned long turns = 0;
    while (start->index == 0 ? !first_may_end : !ending) {
        CHECK(vectors_survive_sleep(0x1111111111111111UL * (static_cast<unsigned long>(start->index) % 15 + 1) + turns, start->rest_ms));
        check_identity(start->index, tid, name, stack_space.data(), mask);
        tls_value += 1000;
        CHECK(tls_value / 1000 == ++turns);
        CHECK(pthread_mutex_lock(&robust) == 0);
        ++robust_count;
        pthread_mutex_unlock(&robust);
        pthread_mutex_lock(&plain);
        timespec until{};
        clock_gettime(CLOCK_REALTIME, &until);
        until.tv_nsec += start->rest_ms * 1000000 % 900000000;
        if (until.tv_nsec >= 1000000000) ++until.tv_sec, until.tv_nsec -= 1000000000;
        const int waited = pthread_cond_timedwait(&turn, &plain, &until);
        CHECK(waited == 0 || waited == ETIMEDOUT);
        pthread_mutex_unlock(&plain);
    }
    // The first thread dies holding the mutex: the next owner is told, if the robust list is still registered.
    if (start->index == 0) CHECK(pthread_mutex_lock(&robust) == 0);
    return nullptr;
}

}  // namespace

int main(int argc, char** argv) {
    Victim self(argc, argv);
    const long count = self.number("threads", 8);
    pthread_mutexattr_t attributes;
    pthread_mutexattr_init(&attributes);
    pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST);
    pthread_mutex_init(&robust, &attributes);
    std::vector<pthread_t> threads(static_cast<size_t>(count));
    pthread_attr_t small;
    pthread_attr_init(&small);
    pthread_attr_setstacksize(&small, 128 * 1024);
    for (long i = 0; i < count; ++i)
        CHECK(pthread_create(&threads[static_cast<size_t>(i)], &small, work,
                             new Start{static_cast<int>(i), count > 16 ? count / 2 : 4}) == 0);
    while (__atomic_load_n(&set_up, __ATOMIC_ACQUIRE) != threads.size()) sleep_ms(1);
    self.ready();
    unsigned long last = 0;
    long long moved = now_ns();
    while (self.going()) {
        pthread_cond_signal(&turn);
        const unsigned long now = __atomic_load_n(&robust_count, __ATOMIC_RELAXED);
        if (now != last) last = now, moved = now_ns();
        CHECK(now_ns() - moved < 30000000000LL);  // the workers go on
    }
    ending = true;
    pthread_cond_broadcast(&turn);
    for (size_t i = 1; i < threads.size(); ++i) CHECK(pthread_join(threads[i], nullptr) == 0);
    first_may_end = true;
    CHECK(pthread_join(threads[0], nullptr) == 0);
    CHECK(pthread_mutex_lock(&robust) == EOWNERDEAD);
    return self.done();
}
