// Owners of file descriptors and mappings. Explicit, self-move-safe, never an implicit int.
#pragma once

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <utility>

namespace godwit {

// Owns one descriptor, which whoever opens it makes close-on-exec. Closing leaves errno alone.
class [[nodiscard]] UniqueFd {
  public:
    UniqueFd() = default;
    explicit UniqueFd(int fd) : fd_(fd) {}
    UniqueFd(UniqueFd&& other) noexcept : fd_(other.release()) {}
    UniqueFd& operator=(UniqueFd&& other) noexcept {
        if (this != &other) reset(other.release());
        return *this;
    }
    ~UniqueFd() { reset(); }

    int get() const { return fd_; }
    bool valid() const { return fd_ >= 0; }
    explicit operator bool() const { return valid(); }
    int release() { return std::exchange(fd_, -1); }
    void reset(int fd = -1) {
        const int saved = errno;
        if (fd_ >= 0) ::close(fd_);
        fd_ = fd;
        errno = saved;
    }

  private:
    int fd_ = -1;
};

// Owns one mapping of this process.
class [[nodiscard]] Mapping {
  public:
    Mapping() = default;
    Mapping(void* start, size_t size) : start_(start), size_(size) {}
    Mapping(Mapping&& other) noexcept : start_(std::exchange(other.start_, nullptr)), size_(std::exchange(other.size_, 0)) {}
    Mapping& operator=(Mapping&& other) noexcept {
        std::swap(start_, other.start_);
        std::swap(size_, other.size_);
        return *this;
    }
    ~Mapping() {
        if (start_ != nullptr) ::munmap(start_, size_);
    }
    std::byte* data() const { return static_cast<std::byte*>(start_); }
    size_t size() const { return size_; }
    explicit operator bool() const { return start_ != nullptr; }

  private:
    void* start_ = nullptr;
    size_t size_ = 0;
};

}  // namespace godwit
