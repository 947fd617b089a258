// Restartable sequences: glibc's registration stays, the cpu number in it is kept up to date, and an increment
// made inside a critical section is never lost, however the thread is interrupted.
#include <sched.h>
#include <sys/rseq.h>

#include <pthread.h>

#include "tests/victims/victim.h"

using namespace victim;

namespace {

rseq* area() {
    auto* thread = static_cast<char*>(__builtin_thread_pointer());
    return reinterpret_cast<rseq*>(thread + __rseq_offset);
}

// counter += 1 as a critical section whose middle is long, so that interruptions fall into it; false: aborted.
bool increment(unsigned long* counter) {
    rseq* registered = area();
    asm goto(
        ".pushsection __rseq_cs, \"aw\"\n"
        ".balign 32\n"
        "9: .long 0, 0\n"
        ".quad 1f, 2f - 1f, 4f\n"
        ".popsection\n"
        "leaq 9b(%%rip), %%rax\n"
        "movq %%rax, %[cs]\n"
        "1: movq %[counter], %%rcx\n"
        "movl $2000, %%eax\n"
        "3: decl %%eax\n jnz 3b\n"
        "incq %%rcx\n"
        "movq %%rcx, %[counter]\n"
        "2:\n"
        "jmp %l[finished]\n"
        ".long 0x53053053\n"  // the signature that glibc registered; the kernel looks for it before the abort handler
        "4: jmp %l[aborted]\n"
        :
        : [cs] "m"(registered->rseq_cs), [counter] "m"(*counter)
        : "rax", "rcx", "memory", "cc"
        : finished, aborted);
finished:
    return true;
aborted:
    return false;
}

volatile bool ending = false;

void* work(void* argument) {
    auto* counter = static_cast<unsigned long*>(argument);
    unsigned long done = 0;
    while (!ending) {
        for (int i = 0; i < 60; ++i)
            if (increment(counter)) ++done;
        CHECK(*counter == done);
        const unsigned cpu = __atomic_load_n(&area()->cpu_id, __ATOMIC_RELAXED);
        CHECK(cpu < 4096);
        sleep_ms(4);
    }
    return nullptr;
}

}  // namespace

int main(int argc, char** argv) {
    Victim self(argc, argv);
    if (__rseq_size == 0) {
        say("skip: glibc did not register rseq");
        return 77;
    }
    unsigned long counters[3] = {};
    pthread_t threads[3];
    for (int i = 0; i < 3; ++i) CHECK(pthread_create(&threads[i], nullptr, work, &counters[i]) == 0);
    self.ready();
    unsigned long other = 0;
    unsigned long done = 0;
    while (self.going(5)) {
        for (int i = 0; i < 30; ++i)
            if (increment(&other)) ++done;
        CHECK(other == done);
    }
    ending = true;
    for (const pthread_t thread : threads) CHECK(pthread_join(thread, nullptr) == 0);
    return self.done();
}
