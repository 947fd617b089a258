// Sleeps in one system call that has no end of its own; what is migrated must still be in it.
#include "tests/victims/victim.h"

int main(int argc, char** argv) {
    victim::Victim self(argc, argv);
    self.ready();
    // Only SIGTERM ends the pause: any other return is an interruption that the program could see.
    const int result = pause();
    CHECK(result == -1 && errno == EINTR && victim::stop_asked);
    return self.done();
}
