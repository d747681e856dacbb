// SPDX-License-Identifier: MIT
#include "shell_entry.h"

#include <sstream>

#include "s6/types.h"
#include "shell_version.h"

namespace s6::plugin {

void logVersions() noexcept {
  guarded("", "setLoggerFinder", 0, [] {
    std::ostringstream line;
    line << " " << s6_version() << ": version " << contractVersion() << " of the operators' "
         << "contract, built against TensorRT " << NV_TENSORRT_MAJOR << "." << NV_TENSORRT_MINOR
         << "." << NV_TENSORRT_PATCH;
    log(Severity::kINFO, line.str());
    return 0;
  });
}

}  // namespace s6::plugin

#if S6_HAS_PLUGIN_LIBRARIES
S6_ENTRY_POINT void setLoggerFinder(nvinfer1::ILoggerFinder* finder) {
  s6::plugin::useLoggerFinder(finder);
  s6::plugin::logVersions();
}
#endif
