// SPDX-License-Identifier: MIT
#include "library.h"

#include <dlfcn.h>

#include "failure.h"

namespace s6::exercise {
namespace {

#if S6_HAS_PLUGIN_V3
using Listed = nvinfer1::IPluginCreatorInterface;
constexpr const char* kCreatorsEntry = "getCreators";
#else
using Listed = nvinfer1::IPluginCreator;
constexpr const char* kCreatorsEntry = "getPluginCreators";
#endif

class Finder final : public nvinfer1::ILoggerFinder {
 public:
  nvinfer1::ILogger* findLogger() override { return &log; }
  Log log;
};

//! The plugin keeps its address.
Finder& finder() {
  static Finder* const only = new Finder;
  return *only;
}

template <typename Function>
Function* entry(void* library, const std::string& path, const char* name) {
  void* found = dlsym(library, name);
  require(found != nullptr, path, " has no entry point ", name, ", which TensorRT ",
          NV_TENSORRT_MAJOR, " asks for: it was built for another TensorRT");
  return reinterpret_cast<Function*>(found);
}

Creator* creatorOf(Listed* listed) {
#if S6_HAS_PLUGIN_V3
  const std::string kind = listed->getInterfaceInfo().kind;
  require(kind == "PLUGIN CREATOR_V3ONE", "a creator is of the kind ", kind);
#endif
  return static_cast<Creator*>(listed);
}

}  // namespace

void Log::log(Severity severity, const char* line) noexcept {
  (severity <= Severity::kWARNING ? complaints : remarks).emplace_back(line);
}

Library::Library(const std::string& path) : log_(finder().log) {
  void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  require(library != nullptr, "cannot load ", path, ": ", library ? "" : dlerror());
  entry<void(nvinfer1::ILoggerFinder*)>(library, path, "setLoggerFinder")(&finder());
  std::int32_t count = 0;
  Listed* const* all = entry<Listed* const*(std::int32_t&)>(library, path, kCreatorsEntry)(count);
  for (std::int32_t i = 0; i < count; ++i) creators_.push_back(creatorOf(all[i]));
}

Creator& Library::creator(const std::string& op) const {
  for (Creator* creator : creators_) {
    if (op == creator->getPluginName()) return *creator;
  }
  throw Failure("the library has no creator of " + op);
}

}  // namespace s6::exercise
