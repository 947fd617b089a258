// What a migration to a certain host takes besides memory, learned from the ones before.
//
// One small text file for each destination in the state directory, by its state id. It is a guess for the prediction, nothing
// depends on it: what cannot be read counts as unknown, what cannot be written is logged.
#pragma once

#include <cstdint>
#include <string>

namespace godwit {

class Calibration {
  public:
    static Calibration load(const std::string& state_dir, const std::string& peer_state_id);

    // Milliseconds for a tree of so many items (tasks, descriptors, mappings), all phases of the downtime but the transfer of
    // pages.
    double fixed_ms(uint64_t items) const;
    // What it was; written at once.
    void learn(uint64_t items, double fixed_ms);

  private:
    std::string path_;
    uint64_t items_ = 0;  // 0: nothing is known
    double ms_ = 0;
};

}  // namespace godwit
