// Sleeps in one system call that has no end of its own; what is migrated must still be in it.
#include <unistd.h>
int main() {
    for (;;) pause();
}
