// Errors as values: what was tried, on which object, why it failed, and what would help.
//
// A Problem becomes one line and one hint on the user's screen. Every function that can fail
// returns Result<T>; nothing in godwit throws across a function that is declared to return one.
#pragma once

#include <cerrno>
#include <string>
#include <string_view>
#include <tl/expected.hpp>
#include <utility>

namespace godwit {

// What `godwit` exits with. After all but `uncertain` the tree runs on at the source.
enum class ExitCode : int {
    done = 0,
    failed = 1,
    usage = 2,
    unsupported = 3,  // this tree or host is not supported; nothing was touched
    peer = 4,         // the peer or the network failed
    uncertain = 5,    // both sides hold state: `godwit recover` settles it
};

// One failure. `what` names the object (pid, fd, inode, address) and is one line without a full stop.
struct [[nodiscard]] Problem {
    std::string what;
    std::string hint;
    ExitCode code = ExitCode::failed;
    int error = 0;  // errno where the kernel gave one, else 0

    Problem&& hinted(std::string text) && {
        hint = std::move(text);
        return std::move(*this);
    }
    Problem&& coded(ExitCode value) && {
        code = value;
        return std::move(*this);
    }
};

template <class T>
using Result = tl::expected<T, Problem>;
using Failure = tl::unexpected<Problem>;

// A failure that no system call caused.
inline Failure fail(std::string what, std::string hint = {}, ExitCode code = ExitCode::failed) {
    return Failure(Problem{std::move(what), std::move(hint), code, 0});
}
inline Failure unsupported(std::string what, std::string hint = {}) {
    return fail(std::move(what), std::move(hint), ExitCode::unsupported);
}
inline Failure peer_failed(std::string what, std::string hint = {}) {
    return fail(std::move(what), std::move(hint), ExitCode::peer);
}

// The funnel from errno: "what: strerror(error)".
Failure fail_errno(int error, std::string what, std::string hint = {});
// The same with the current errno, read before anything else can change it.
inline Failure fail_errno(std::string what) {
    return fail_errno(errno, std::move(what));
}

namespace detail {
template <class T>
T unwrap(Result<T>& result) {
    return std::move(*result);
}
inline void unwrap(Result<void>&) {}
}  // namespace detail

}  // namespace godwit

// Evaluates to the value of a Result or returns its Problem from the enclosing function.
#define TRY(...)                                                                    \
    __extension__({                                                                 \
        auto try_result_ = (__VA_ARGS__);                                           \
        if (!try_result_) return ::godwit::Failure(std::move(try_result_.error())); \
        ::godwit::detail::unwrap(try_result_);                                      \
    })
