// SPDX-License-Identifier: MIT
#include "tensor.h"

#include <sstream>

namespace s6::plugin {

int elementBytes(ElementType type) {
  switch (type) {
    case ElementType::kFloat32:
    case ElementType::kInt32:
      return 4;
    case ElementType::kFloat16:
    case ElementType::kBfloat16:
      return 2;
    default:
      return 0;
  }
}

const char* nameOf(ElementType type) {
  switch (type) {
    case ElementType::kFloat32:
      return "float32";
    case ElementType::kFloat16:
      return "float16";
    case ElementType::kBfloat16:
      return "bfloat16";
    case ElementType::kInt32:
      return "int32";
    default:
      return "another type";
  }
}

std::string describe(const Tensor& tensor) {
  std::ostringstream text;
  text << nameOf(tensor.type) << " (";
  for (int i = 0; i < tensor.rank; ++i) text << (i == 0 ? "" : ", ") << tensor.dimensions[i];
  text << ")";
  return text.str();
}

std::int64_t byteCount(const Tensor& tensor) {
  std::int64_t bytes = elementBytes(tensor.type);
  for (int i = 0; i < tensor.rank; ++i) bytes *= tensor.dimensions[i];
  return bytes;
}

}  // namespace s6::plugin
