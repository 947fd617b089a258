// What system calls cost that are made in another process: by the executor, by PTRACE_SYSCALL, and natively.
#include <sys/syscall.h>

#include <string>

#include "common/remote/remote.h"
#include "tools/bench/godwit_bench/samples.h"
#include "tools/bench/godwit_bench/subject.h"

namespace godwit::bench {
namespace {

constexpr int sizes[] = {1, 100, 1000, 3000};
constexpr int injections = 100;
constexpr uint64_t native_calls = 200'000;

double microseconds_since(Clock::time_point begun) {
    return milliseconds_since(begun) * 1000;
}

Result<void> measure_batches(Remote& remote, pid_t pid, Samples& samples) {
    for (const int size : sizes) {
        Batch batch;
        for (int i = 0; i < size; ++i) batch.call(SYS_getpid);
        const auto begun = Clock::now();
        TRY(remote.run(batch));
        samples["batch " + std::to_string(size)].push_back(microseconds_since(begun));
        if (batch.result_of(static_cast<Batch::Call>(size - 1)) != pid) return fail("getpid in the target gave another number than its own");
    }
    return {};
}

Result<void> measure_attached(Tracee& task, pid_t pid, Samples& samples) {
    const auto before = Clock::now();
    Remote remote = TRY(Remote::attach(task));
    samples["attach"].push_back(microseconds_since(before));
    Batch warm_up;
    warm_up.call(SYS_getpid);
    TRY(remote.run(warm_up));
    TRY(measure_batches(remote, pid, samples));
    const auto leaving = Clock::now();
    TRY(remote.leave());
    samples["leave"].push_back(microseconds_since(leaving));
    return {};
}

Result<void> measure_injection(Tracee& task, pid_t pid, Samples& samples) {
    const RemotePtr instruction = TRY(find_syscall_instruction(pid));
    const auto begun = Clock::now();
    for (int i = 0; i < injections; ++i)
        if (TRY(task.inject(instruction, SYS_getpid, {})) != pid) return fail("an injected getpid gave another number than the target's own");
    samples["injection, each"].push_back(microseconds_since(begun) / injections);
    return {};
}

}  // namespace

Result<Samples> measure_batch(const BatchOptions& options) {
    Samples samples;
    const Subject subject = TRY(Subject::start(1 << 20));
    for (int i = 0; i < options.repeat; ++i) {
        const auto native = TRY(subject.call_getpid(native_calls));
        samples["native, each"].push_back(static_cast<double>(native.count()) / 1000 / native_calls);
        const auto begun = Clock::now();
        const auto attached = while_stopped(subject, [&](Tracee& task) {
            samples["seize and stop"].push_back(microseconds_since(begun));
            return measure_attached(task, subject.pid(), samples);
        });
        if (!attached) return Failure(attached.error());
        TRY(while_stopped(subject, [&](Tracee& task) { return measure_injection(task, subject.pid(), samples); }));
    }
    return samples;
}

}  // namespace godwit::bench
