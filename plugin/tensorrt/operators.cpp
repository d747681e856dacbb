// SPDX-License-Identifier: MIT
#include "operators.h"

#include <cstring>

namespace s6::plugin {

const OpCode& codeOf(const OpRule& op) {
  static constexpr OpCode kCodes[] = {
      {"CausalConv1d", runCausalConv1d, causalConv1dWorkspace},
      {"SelectiveScan", runSelectiveScan, nullptr},
      {"QuantLinear", runQuantLinear, nullptr},
      {"QuantEmbedding", runQuantEmbedding, nullptr},
      {"QuantMatrix", runQuantMatrix, nullptr},
      {"AddRmsNorm", runAddRmsNorm, nullptr},
      {"SliceNorms", runSliceNorms, nullptr},
      {"Selection", runSelection, nullptr},
      {"MambaStep", runMambaStep, mambaStepWorkspace},
  };
  for (const OpCode& code : kCodes) {
    if (std::strcmp(code.name, op.name) == 0) return code;
  }
  refuse("the plugin has no code for the op ", op.name);
}

}  // namespace s6::plugin
