#include "common/base/log.h"

#include <spdlog/sinks/base_sink.h>
#include <spdlog/sinks/basic_file_sink.h>

#include <cstdio>
#include <memory>
#include <mutex>
#include <utility>

namespace godwit {
namespace {

class StandardError final : public spdlog::sinks::base_sink<std::mutex> {
  public:
    void set(LogWriter writer) {
        const std::lock_guard lock(mutex_);
        writer_ = std::move(writer);
    }

  private:
    void sink_it_(const spdlog::details::log_msg& message) override {
        spdlog::memory_buf_t text;
        formatter_->format(message, text);
        if (writer_)
            writer_({text.data(), text.size()});
        else
            std::fwrite(text.data(), 1, text.size(), stderr);
    }
    void flush_() override { std::fflush(stderr); }

    LogWriter writer_;
};

}  // namespace

void start_log(int verbosity, const std::string& file) {
    auto logger = file.empty() ? std::make_shared<spdlog::logger>("godwit", std::make_shared<StandardError>())
                               : spdlog::basic_logger_mt("godwit", file);
    logger->set_pattern("%Y-%m-%d %H:%M:%S.%e %l: %v");
    logger->set_level(verbosity >= 2 ? spdlog::level::debug : verbosity == 1 ? spdlog::level::info : spdlog::level::warn);
    logger->flush_on(spdlog::level::debug);
    spdlog::set_default_logger(std::move(logger));
}

void set_log_writer(const LogWriter& writer) {
    for (const auto& sink : spdlog::default_logger()->sinks())
        if (const auto standard_error = std::dynamic_pointer_cast<StandardError>(sink)) standard_error->set(writer);
}

}  // namespace godwit
