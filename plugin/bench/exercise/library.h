// SPDX-License-Identifier: MIT
//! \file library.h
//! \brief libs6_plugin.so by its entry points, as IPluginRegistry::loadLibrary uses them, and its
//! log.
#pragma once

#include <string>
#include <vector>

#include "shell_version.h"

namespace s6::exercise {

#if S6_HAS_PLUGIN_V3
using Creator = nvinfer1::IPluginCreatorV3One;
constexpr const char* kInterface = "IPluginV3";
#else
using Creator = nvinfer1::IPluginCreator;
constexpr const char* kInterface = "IPluginV2DynamicExt";
#endif

//! Keeps what the plugin says.
class Log final : public nvinfer1::ILogger {
 public:
  void log(Severity severity, const char* line) noexcept override;

  //! Errors and warnings since somebody cleared them.
  std::vector<std::string> complaints;
  //! All else, from the beginning.
  std::vector<std::string> remarks;
};

//! Stays loaded until the process ends, as with TensorRT.
class Library {
 public:
  //! \throws Failure It cannot be loaded, or lacks an entry point of the interface.
  explicit Library(const std::string& path);

  const std::vector<Creator*>& creators() const { return creators_; }
  //! \throws Failure It has none of that name.
  Creator& creator(const std::string& op) const;
  Log& log() const { return log_; }

 private:
  std::vector<Creator*> creators_;
  Log& log_;
};

}  // namespace s6::exercise
