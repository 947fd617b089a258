// Figures as people read them: decimal MB and GB, no exponents, "-" for what is not known (absent, NaN, infinite, negative).
#pragma once

#include <cstdint>
#include <optional>
#include <string>

namespace godwit::units {

std::string megabytes(double bytes);                                // "4.9 MB", "346 MB", "12.3 GB"
std::string rate(std::optional<double> bytes_per_second);           // "4.9 MB/s", "812 MB/s", "1.23 GB/s", "- MB/s"
std::string duration(std::optional<double> milliseconds);           // "0.4 ms", "85 ms", "12.3 s"
// Two durations beside each other, the unit said once if it is the same: "85/100 ms", "12.3 s/100 ms", "-/100 ms".
std::string duration_of(std::optional<double> milliseconds, double limit_ms);
std::string count(uint64_t number);                                 // "9999", "262k", "1.2M", "16M": four characters, rounded down

}  // namespace godwit::units
