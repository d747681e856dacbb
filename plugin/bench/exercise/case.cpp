// SPDX-License-Identifier: MIT
#include "case.h"

#include "contract.h"

namespace s6::exercise {

std::int64_t elementCount(const Shape& shape) {
  std::int64_t count = 1;
  for (const Extent& extent : shape) count *= extent.size;
  return count;
}

Fields fieldsOfContract() {
  return Fields().integer("contract_version", plugin::contractVersion());
}

}  // namespace s6::exercise
