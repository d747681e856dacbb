// SPDX-License-Identifier: MIT
#include "shell_log.h"

#include <atomic>
#include <cstdio>

namespace s6::plugin {
namespace {

#if S6_HAS_PLUGIN_LIBRARIES
std::atomic<nvinfer1::ILoggerFinder*> logger_finder{nullptr};

#endif

//! Asked anew for each line: the answer belongs to the calling thread.
nvinfer1::ILogger* findLogger() {
#if S6_HAS_PLUGIN_LIBRARIES
  if (nvinfer1::ILoggerFinder* finder = logger_finder) return finder->findLogger();
#endif
#if S6_REGISTER_ON_LOAD
  return getLogger();
#else
  return nullptr;
#endif
}

}  // namespace

#if S6_HAS_PLUGIN_LIBRARIES
void useLoggerFinder(nvinfer1::ILoggerFinder* finder) noexcept { logger_finder = finder; }
#endif

void log(Severity severity, const std::string& line) noexcept {
  try {
    const std::string whole = "s6 plugin" + line;
    if (nvinfer1::ILogger* logger = findLogger()) {
      logger->log(severity, whole.c_str());
    } else if (severity <= Severity::kWARNING) {
      std::fprintf(stderr, "%s\n", whole.c_str());
    }
  } catch (...) {
    // No memory for the line.
    std::fputs("s6 plugin: out of memory\n", stderr);
  }
}

void logFailure(const char* node, const char* callback, const char* text) noexcept {
  try {
    std::string line;
    if (node != nullptr && *node != '\0') line += std::string(", node ") + node;
    log(Severity::kERROR, line + " (" + callback + "): " + text);
  } catch (...) {
    log(Severity::kERROR, ": out of memory");
  }
}

}  // namespace s6::plugin
