// A child of the test that leads a session of its own, does what it is told and then waits to be killed.
#pragma once

#include <sys/mman.h>
#include <sys/types.h>

#include <cstdint>
#include <functional>
#include <string>

namespace godwit::test {

// What the child tells: shared with the test.
struct Told {
    uint64_t number[32];
};

class ForkedChild {
  public:
    // `act` runs in the child and returns 0 when it is as it should be, else an errno; it may leave threads behind.
    // `session`: setsid() first.
    explicit ForkedChild(const std::function<int(Told&)>& act, bool session = true);
    ~ForkedChild();
    ForkedChild(const ForkedChild&) = delete;
    ForkedChild& operator=(const ForkedChild&) = delete;

    pid_t pid() const { return pid_; }
    // What `act` returned.
    int error() const { return error_; }
    // It is one by which a kernel says that it lacks something.
    bool not_here() const;
    uint64_t told(int which) const { return told_->number[which]; }

  private:
    Told* told_ = nullptr;
    pid_t pid_ = 0;
    int error_ = 0;
};

}  // namespace godwit::test
