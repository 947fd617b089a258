// Regular files: offsets, flags, descriptions shared by dup, O_APPEND, a directory half read, character devices,
// close-on-exec. --dir DIR is a folder of the victim's own.
#include <dirent.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include <set>

#include "tests/victims/victim.h"

using namespace victim;

namespace {

std::string file(const std::string& dir, const char* name, size_t size) {
    const std::string path = dir + "/" + name;
    const int fd = open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600);
    CHECK(fd >= 0);
    std::string content;
    for (size_t i = 0; content.size() < size; ++i) content += std::to_string(i) + "\n";
    content.resize(size);
    CHECK(write(fd, content.data(), size) == static_cast<ssize_t>(size) && close(fd) == 0);
    return path;
}

int open_checked(const std::string& path, int flags) {
    const int fd = open(path.c_str(), flags, 0600);
    CHECK(fd >= 0);
    return fd;
}

struct Devices {
    int null = open_checked("/dev/null", O_RDWR);
    int zero = open_checked("/dev/zero", O_RDONLY | O_CLOEXEC);
    int full = open_checked("/dev/full", O_WRONLY);
    int random = open_checked("/dev/random", O_RDONLY | O_NONBLOCK);
    int urandom = open_checked("/dev/urandom", O_RDONLY);

    void check() const {
        char buffer[64];
        memset(buffer, 1, sizeof buffer);
        CHECK(write(null, "x", 1) == 1 && read(null, buffer, 1) == 0);
        CHECK(read(zero, buffer, 64) == 64 && buffer[0] == 0 && buffer[63] == 0);
        CHECK(write(full, "x", 1) == -1 && errno == ENOSPC);
        CHECK(read(random, buffer, 8) == 8 && read(urandom, buffer, 8) == 8);
        CHECK((fcntl(zero, F_GETFD) & FD_CLOEXEC) != 0 && (fcntl(null, F_GETFD) & FD_CLOEXEC) == 0);
        CHECK((fcntl(random, F_GETFL) & O_NONBLOCK) != 0);
    }
};

std::set<std::string> entries(int fd, int calls) {
    std::set<std::string> found;
    alignas(8) char buffer[256];
    while (calls-- != 0) {
        const long length = syscall(SYS_getdents64, fd, buffer, sizeof buffer);
        CHECK(length >= 0);
        if (length == 0) break;
        for (long at = 0; at < length;) {
            const auto* entry = reinterpret_cast<const dirent64*>(buffer + at);
            found.insert(entry->d_name);
            at += entry->d_reclen;
        }
    }
    return found;
}

}  // namespace

int main(int argc, char** argv) {
    Victim self(argc, argv);
    const std::string dir = self.text("dir", "/var/tmp");
    const std::string path = file(dir, "data", 100000);
    const int reader = open_checked(path, O_RDONLY);
    const int again = dup(reader);
    const int far = fcntl(reader, F_DUPFD_CLOEXEC, 700);
    const int apart = open_checked(path, O_RDWR | O_NOATIME);
    const int appender = open_checked(dir + "/appended", O_WRONLY | O_CREAT | O_APPEND);
    CHECK(again >= 0 && far == 700);
    CHECK(mkdir((dir + "/many").c_str(), 0700) == 0);
    for (int i = 0; i < 40; ++i) close(open_checked(dir + "/many/entry-" + std::to_string(i), O_WRONLY | O_CREAT));
    const int folder = open_checked(dir + "/many", O_RDONLY | O_DIRECTORY);
    std::set<std::string> seen = entries(folder, 2);
    const Devices devices;
    const int status = fcntl(apart, F_GETFL);
    struct stat before {};
    CHECK(fstat(reader, &before) == 0);
    off_t offset = 0;
    off_t appended = 0;
    self.ready();
    do {
        // Three numbers, one offset; the fourth has its own.
        char byte;
        CHECK(read(reader, &byte, 1) == 1 && lseek(again, 0, SEEK_CUR) == offset + 1 && lseek(far, 0, SEEK_CUR) == offset + 1);
        CHECK(lseek(apart, 0, SEEK_CUR) == 0 && fcntl(apart, F_GETFL) == status);
        offset = (offset + 17) % 90000;
        CHECK(lseek(far, offset, SEEK_SET) == offset && lseek(reader, 0, SEEK_CUR) == offset);
        CHECK((fcntl(far, F_GETFD) & FD_CLOEXEC) != 0 && (fcntl(reader, F_GETFD) & FD_CLOEXEC) == 0);
        CHECK(write(appender, "line\n", 5) == 5);
        appended += 5;
        CHECK(lseek(appender, 0, SEEK_CUR) == appended);
        devices.check();
    } while (self.going());
    for (const std::string& name : entries(folder, 1000)) CHECK(seen.insert(name).second);
    CHECK(seen.size() == 42);
    return self.done();
}
