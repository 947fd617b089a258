// Undo: runs an action when the scope ends, unless it was dismissed. One per change to a target or a
// host; a scope's destructors run them in reverse order.
#pragma once

#include <utility>

namespace godwit {

template <class Action>
class [[nodiscard]] Undo {
  public:
    explicit Undo(Action action) : action_(std::move(action)) {}
    Undo(Undo&& other) noexcept : action_(std::move(other.action_)), armed_(std::exchange(other.armed_, false)) {}
    Undo& operator=(Undo&&) = delete;
    ~Undo() {
        if (armed_) action_();
    }
    void dismiss() { armed_ = false; }

  private:
    Action action_;
    bool armed_ = true;
};

}  // namespace godwit
