#include "common/base/fault.h"

#ifdef GODWIT_FAULT_POINTS

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <atomic>
#include <csignal>
#include <cstdlib>
#include <mutex>
#include <string>

#include "common/base/file.h"

namespace godwit {
namespace {

enum class Action { none, kill, stop, cut };

struct Fault {
    Action action = Action::none;
    std::string name;
    unsigned long number = 0;
    unsigned long pass = 1;  // of the point of that name
    UniqueFd trace;

    Fault() {
        if (const char* path = std::getenv("GODWIT_FAULT_TRACE"))
            trace = UniqueFd(::open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600));
        const char* text = std::getenv("GODWIT_FAULT");
        if (text == nullptr) return;
        const std::string spec = text;
        const size_t at = spec.find('@');
        const std::string verb = spec.substr(0, at);
        action = verb == "kill" ? Action::kill : verb == "stop" ? Action::stop : verb == "cut" ? Action::cut : Action::none;
        if (at != std::string::npos) name = spec.substr(at + 1);
        if (const size_t hash = name.find('#'); hash != std::string::npos) {
            pass = std::strtoul(name.c_str() + hash + 1, nullptr, 10);
            name.resize(hash);
        }
        if (!name.empty() && name.find_first_not_of("0123456789") == std::string::npos) number = std::stoul(name);
    }
};

Fault& fault() {
    static Fault instance;
    return instance;
}

std::atomic<unsigned long> counter{0};
std::atomic<unsigned long> passes{0};  // of the named point
std::atomic<bool> fired{false};
std::function<void()> cut_links;
std::mutex cut_lock;

}  // namespace

void on_link_cut(std::function<void()> cut) {
    const std::lock_guard lock(cut_lock);
    cut_links = std::move(cut);
}

void fault_point(const char* name) {
    Fault& f = fault();
    const unsigned long number = ++counter;
    if (f.trace) {
        const std::string line = fmt::format("{} {}\n", number, name);
        (void)::write(f.trace.get(), line.data(), line.size());
    }
    if (f.action == Action::none) return;
    if (f.number != 0 ? f.number != number : f.name != name || ++passes != f.pass) return;
    if (fired.exchange(true)) return;
    if (f.action == Action::kill) ::kill(::getpid(), SIGKILL);
    if (f.action == Action::stop) ::kill(::getpid(), SIGSTOP);
    const std::lock_guard lock(cut_lock);
    if (f.action == Action::cut && cut_links) cut_links();
}

}  // namespace godwit

#endif
