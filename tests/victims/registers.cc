// Checks, for ever, that nothing about its own execution is harmed from outside: registers, flags, vector state,
// memory, timeouts, signals, masks, pipes, restartable sequences. On harm prints "FAIL ..." and exits with 1; after
// SIGTERM prints "ok N" and exits with 0.
//
// registers [FILE]   FILE becomes an array of 64-bit counters: 5, one per task, that rise while it is well; then how
// often a call
//                    returned EINTR that the kernel lets return it at any stop (signal(7))
//
// Every task works in short bursts between blocking calls of a millisecond or so.
#include <fcntl.h>
#include <linux/futex.h>
#include <poll.h>
#include <pthread.h>
#include <sys/epoll.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/rseq.h>
#include <sys/sem.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>

namespace {

[[noreturn]] void harm(const char* what, long value = 0, long expected = 0) {
    std::printf("FAIL %s: %ld (%#lx), not %ld (%#lx), errno %d\n", what, value, value, expected, expected, errno);
    std::fflush(stdout);
    ::_exit(1);
}

void expect(const char* what, long value, long expected) {
    if (value != expected) harm(what, value, expected);
}

enum Task { main_task, registers_task, times_task, signals_task, peer_task, tasks, eintr = tasks };
volatile uint64_t* progress;
std::atomic<bool> stopping{false};

// For calls of signal(7), "Interruption ... by stop signals", of which the caller may forbid any.
bool broken_off(long result) {
    if (result != -1 || errno != EINTR) return false;
    __atomic_add_fetch(&progress[eintr], 1, __ATOMIC_RELAXED);
    return true;
}

// --- registers

struct Machine {
    uint64_t rax, rbx, rdx, rsi, rdi, rbp, r8, r9, r10, r11, r12, r13, r14, r15, flags;
    uint64_t pad;
    uint64_t ymm[16][4];
};

}  // namespace

// hold_machine(in, out, count): loads everything from *in, then loops `count` times without changing any, or, for 0,
// makes the system call in rax, then stores everything to *out. rcx is the loop's, and r11 and rcx the system call's.
asm(R"(
    .text
hold_machine:
    push %rbx
    push %rbp
    push %r12
    push %r13
    push %r14
    push %r15
    push %rsi
    mov %rdx, %rcx
    .set i, 0
    .irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
    vmovdqu 128 + 32 * \n(%rdi), %ymm\n
    .endr
    push 112(%rdi)
    popfq
    mov 0(%rdi), %rax
    mov 8(%rdi), %rbx
    mov 16(%rdi), %rdx
    mov 24(%rdi), %rsi
    mov 40(%rdi), %rbp
    mov 48(%rdi), %r8
    mov 56(%rdi), %r9
    mov 64(%rdi), %r10
    mov 72(%rdi), %r11
    mov 80(%rdi), %r12
    mov 88(%rdi), %r13
    mov 96(%rdi), %r14
    mov 104(%rdi), %r15
    mov 32(%rdi), %rdi
    jrcxz 2f
1:  loop 1b
    jmp 3f
2:  syscall
3:  mov (%rsp), %rcx
    mov %rax, 0(%rcx)
    mov %rbx, 8(%rcx)
    mov %rdx, 16(%rcx)
    mov %rsi, 24(%rcx)
    mov %rdi, 32(%rcx)
    mov %rbp, 40(%rcx)
    mov %r8, 48(%rcx)
    mov %r9, 56(%rcx)
    mov %r10, 64(%rcx)
    mov %r11, 72(%rcx)
    mov %r12, 80(%rcx)
    mov %r13, 88(%rcx)
    mov %r14, 96(%rcx)
    mov %r15, 104(%rcx)
    pushfq
    pop 112(%rcx)
    .irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
    vmovdqu %ymm\n, 128 + 32 * \n(%rcx)
    .endr
    cld
    pop %rsi
    pop %r15
    pop %r14
    pop %r13
    pop %r12
    pop %rbp
    pop %rbx
    vzeroupper
    ret

// hold_zmm(in, out, count): the same for the upper sixteen registers of AVX-512 and a mask register.
hold_zmm:
    mov %rdx, %rcx
    .irp n, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31
    vmovdqu64 64 * (\n - 16)(%rdi), %zmm\n
    .endr
    kmovw 1024(%rdi), %k5
1:  loop 1b
    .irp n, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31
    vmovdqu64 %zmm\n, 64 * (\n - 16)(%rsi)
    .endr
    kmovw %k5, 1024(%rsi)
    ret
)");
extern "C" void hold_machine(const Machine* in, Machine* out, uint64_t count);
extern "C" void hold_zmm(const void* in, void* out, uint64_t count);

namespace {

uint64_t random_word() {
    static thread_local uint64_t state = 88172645463325252ull ^ static_cast<uint64_t>(::gettid());
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state;
}

template <class T>
void randomise(T& value) {
    for (size_t i = 0; i < sizeof value / 8; ++i) reinterpret_cast<uint64_t*>(&value)[i] = random_word();
}

void check_registers(bool in_call) {
    Machine in, out;
    randomise(in);
    in.flags = 0x202 | (random_word() & 0xcd5);  // CF PF AF ZF SF DF OF
    if (in_call) in.rax = SYS_poll, in.rdi = 0, in.rsi = 0, in.rdx = 1;
    out = in;
    hold_machine(&in, &out, in_call ? 0 : 20000);
    if (in_call) {
        expect("poll in registers", static_cast<long>(out.rax), 0);
        in.rax = out.rax, in.r11 = out.r11;
    }
    for (size_t i = 0; i < sizeof in / 8; ++i) {
        char name[40];
        std::snprintf(name, sizeof name, "register word %zu %s", i, in_call ? "over a call" : "without a call");
        expect(name, static_cast<long>(reinterpret_cast<uint64_t*>(&out)[i]),
               static_cast<long>(reinterpret_cast<uint64_t*>(&in)[i]));
    }
}

void check_zmm() {
    struct Wide {
        uint64_t words[128], k;
    } in, out;
    randomise(in);
    in.k &= 0xffff;
    out = in;
    hold_zmm(&in, &out, 20000);
    if (std::memcmp(&in, &out, sizeof in) != 0) harm("AVX-512 state");
}

// --- restartable sequences: counters per CPU, incremented without atomic instructions

struct alignas(64) Count {
    uint64_t value;
};
Count counts[1024];
std::atomic<uint64_t> increments{0};

bool increment_here() {
    auto* area = reinterpret_cast<struct rseq*>(static_cast<char*>(__builtin_thread_pointer()) + __rseq_offset);
    asm goto(
        ".pushsection __rseq_cs, \"aw\"\n"
        ".balign 32\n"
        "3: .long 0, 0\n"
        "   .quad 1f, 2f - 1f, 4f\n"
        ".popsection\n"
        "   leaq 3b(%%rip), %%rax\n"
        "   movq %%rax, %[section]\n"
        "1: movl %[cpu], %%eax\n"
        "   shl $6, %%rax\n"
        "   movq (%[counts], %%rax), %%rdx\n"
        "   movl $300, %%ecx\n"
        "5: dec %%ecx\n"
        "   jnz 5b\n"
        "   incq %%rdx\n"
        "   movq %%rdx, (%[counts], %%rax)\n"
        "2:\n"
        ".pushsection __rseq_failure, \"ax\"\n"
        "   .byte 0x0f, 0xb9, 0x3d\n"
        "   .long 0x53053053\n"
        "4: jmp %l[aborted]\n"
        ".popsection\n"
        :
        : [section] "m"(area->rseq_cs), [cpu] "m"(area->cpu_id), [counts] "r"(counts)
        : "rax", "rcx", "rdx", "memory", "cc"
        : aborted);
    return true;
aborted:
    return false;
}

void check_sequences() {
    if (__rseq_size == 0) return;
    uint64_t done = 0;
    while (done < 300)
        if (increment_here()) ++done;
    increments += done;
}

// --- time

int64_t now() {
    timespec time;
    ::clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1'000'000'000 + time.tv_nsec;
}

struct AtLeast {
    const char* what;
    int64_t nanoseconds;
    int64_t start = now();
    bool broken = false;
    ~AtLeast() {
        if (!broken && now() - start < nanoseconds) harm(what, now() - start, nanoseconds);
    }
};

void check_times(int epoll, int semaphore) {
    constexpr int64_t span = 2'000'000;
    const timespec time{0, span};
    {
        const AtLeast length{"length of nanosleep", span};
        timespec rest{77, 77};
        expect("nanosleep", ::nanosleep(&time, &rest), 0);
    }
    {
        const AtLeast length{"length of an absolute clock_nanosleep", span};
        const int64_t end = length.start + span;
        const timespec until{end / 1'000'000'000, end % 1'000'000'000};
        expect("clock_nanosleep", ::clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, nullptr), 0);
    }
    {
        const AtLeast length{"length of futex", span};
        uint32_t word = 5;
        expect("futex", ::syscall(SYS_futex, &word, FUTEX_WAIT | FUTEX_PRIVATE_FLAG, 5, &time, nullptr, 0), -1);
        expect("errno of futex", errno, ETIMEDOUT);
    }
    {
        AtLeast length{"length of epoll_wait", span};
        epoll_event event;
        const int got = ::epoll_wait(epoll, &event, 1, 2);
        length.broken = broken_off(got);
        if (!length.broken) expect("epoll_wait", got, 0);
    }
    {
        const AtLeast length{"length of poll", span};
        expect("poll", ::poll(nullptr, 0, 2), 0);
    }
    {
        const AtLeast length{"length of ppoll", span};
        expect("ppoll", ::ppoll(nullptr, 0, &time, nullptr), 0);
    }
    {
        AtLeast length{"length of semtimedop", span};
        sembuf take{0, -1, 0};
        const int got = ::semtimedop(semaphore, &take, 1, &time);
        expect("semtimedop", got, -1);
        length.broken = broken_off(got);
        if (!length.broken) expect("errno of semtimedop", errno, EAGAIN);
    }
}

// --- signals and pipes, between the signals task and its peer

int to_peer[2], from_peer[2];
pid_t signals_tid;
volatile sig_atomic_t caught[2];
void on_signal(int number) { caught[number == SIGUSR2] = caught[number == SIGUSR2] + 1; }

void check_mask(const char* what, const sigset_t& expected) {
    sigset_t mask;
    ::pthread_sigmask(SIG_BLOCK, nullptr, &mask);
    for (int i = 1; i < 65; ++i)
        if (sigismember(&mask, i) != sigismember(&expected, i)) harm(what, i);
}

void ask_peer(char command) { expect("write to peer", ::write(to_peer[1], &command, 1), 1); }

void check_signals() {
    sigset_t own, open;
    ::pthread_sigmask(SIG_BLOCK, nullptr, &own);
    open = own;
    sigdelset(&open, SIGUSR1);
    // The peer's SIGUSR1 must end the sigsuspend; early or twice it must not.
    int before = caught[0];
    ask_peer('1');
    expect("sigsuspend", ::sigsuspend(&open), -1);
    expect("errno of sigsuspend", errno, EINTR);
    expect("signals at sigsuspend", caught[0], before + 1);
    check_mask("mask after sigsuspend", own);
    // SIGUSR2 (SA_RESTART, not blocked) comes before the byte: read restarts and returns it.
    before = caught[1];
    ask_peer('2');
    char answer = 0;
    expect("read", ::read(from_peer[0], &answer, 1), 1);
    expect("byte", answer, 'b');
    expect("signals at read", caught[1], before + 1);
    check_mask("mask after read", own);
}

void* peer(void*) {
    for (;;) {  // until the signals task, which may be waiting, says so
        char command = 0;
        expect("read of peer", ::read(to_peer[0], &command, 1), 1);
        const timespec moment{0, 1'000'000};
        expect("nanosleep of peer", ::nanosleep(&moment, nullptr), 0);
        if (command == 'q') break;
        ::syscall(SYS_tgkill, ::getpid(), signals_tid, command == '1' ? SIGUSR1 : SIGUSR2);
        if (command == '2') {
            const char answer = 'b';
            expect("write of peer", ::write(from_peer[1], &answer, 1), 1);
        }
        check_sequences();
        progress[peer_task] = progress[peer_task] + 1;
    }
    return nullptr;
}

void* signals(void*) {
    signals_tid = ::gettid();
    sigset_t mask;
    sigemptyset(&mask);
    sigaddset(&mask, SIGUSR2);
    ::pthread_sigmask(SIG_UNBLOCK, &mask, nullptr);
    while (!stopping) {
        check_signals();
        progress[signals_task] = progress[signals_task] + 1;
    }
    ask_peer('q');
    return nullptr;
}

void* registers(void*) {
    const bool wide = __builtin_cpu_supports("avx512f");
    auto* memory = static_cast<uint64_t*>(std::malloc(65536));
    for (uint64_t i = 0; i < 8192; ++i) memory[i] = i * 0x9e3779b97f4a7c15;
    while (!stopping) {
        check_registers(false);
        check_registers(true);
        if (wide) check_zmm();
        check_sequences();
        for (uint64_t i = 0; i < 8192; ++i)
            if (memory[i] != i * 0x9e3779b97f4a7c15) harm("memory", static_cast<long>(memory[i]), static_cast<long>(i));
        progress[registers_task] = progress[registers_task] + 1;
    }
    std::free(memory);
    return nullptr;
}

void* times(void*) {
    const int epoll = ::epoll_create1(EPOLL_CLOEXEC);
    const int semaphore = ::semget(IPC_PRIVATE, 1, 0600);
    sembuf probe{0, 1, 0};
    if (semaphore < 0 || ::semop(semaphore, &probe, 1) != 0) harm("semget");
    probe.sem_op = -1;
    ::semop(semaphore, &probe, 1);
    while (!stopping) {
        check_times(epoll, semaphore);
        check_sequences();
        progress[times_task] = progress[times_task] + 1;
    }
    ::semctl(semaphore, 0, IPC_RMID);
    ::close(epoll);
    return nullptr;
}

void* shared_progress(const char* path) {
    constexpr size_t size = 4096;
    if (path == nullptr) return ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    const int fd = ::open(path, O_RDWR | O_CREAT, 0600);
    if (fd < 0 || ::ftruncate(fd, size) != 0) harm("progress file");
    void* at = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    ::close(fd);
    return at;
}

}  // namespace

int main(int argc, char** argv) {
    if (!__builtin_cpu_supports("avx")) harm("AVX is needed");
    progress = static_cast<volatile uint64_t*>(shared_progress(argc > 1 ? argv[1] : nullptr));
    sigset_t all, term;
    sigfillset(&all);
    ::pthread_sigmask(SIG_SETMASK, &all, nullptr);
    struct sigaction action {};
    action.sa_handler = on_signal;
    action.sa_flags = SA_RESTART;
    ::sigaction(SIGUSR1, &action, nullptr);
    ::sigaction(SIGUSR2, &action, nullptr);
    if (::pipe2(to_peer, O_CLOEXEC) != 0 || ::pipe2(from_peer, O_CLOEXEC) != 0) harm("pipe");

    void* (*const bodies[])(void*) = {registers, times, signals, peer};
    pthread_t threads[4];
    for (int i = 0; i < 4; ++i) ::pthread_create(&threads[i], nullptr, bodies[i], nullptr);
    sigemptyset(&term);
    sigaddset(&term, SIGTERM);
    for (;;) {
        const timespec time{0, 2'000'000};
        errno = 0;
        const int got = ::sigtimedwait(&term, nullptr, &time);
        if (got == SIGTERM) break;
        expect("sigtimedwait", got, -1);
        if (!broken_off(got)) expect("errno of sigtimedwait", errno, EAGAIN);
        check_mask("mask of main", [&] {
            sigset_t kernel = all;
            sigdelset(&kernel, SIGKILL);
            sigdelset(&kernel, SIGSTOP);
            sigdelset(&kernel, 32);  // the C library's own
            sigdelset(&kernel, 33);
            return kernel;
        }());
        progress[main_task] = progress[main_task] + 1;
    }
    stopping = true;
    for (const pthread_t thread : threads) ::pthread_join(thread, nullptr);
    uint64_t counted = 0;
    for (const Count& count : counts) counted += count.value;
    expect("increments in restartable sequences", static_cast<long>(counted), static_cast<long>(increments.load()));
    uint64_t rounds = 0;
    for (int i = 0; i < tasks; ++i) rounds += progress[i];
    std::printf("ok %lu\n", rounds);
    return 0;
}
