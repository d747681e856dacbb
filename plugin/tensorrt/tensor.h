// SPDX-License-Identifier: MIT
//! \file tensor.h
//! \brief A tensor of a node: type, shape and, when it runs, address.
#pragma once

#include <array>
#include <cstdint>
#include <string>

namespace s6::plugin {

enum class ElementType { kFloat32, kFloat16, kBfloat16, kInt32, kOther };

constexpr int kMaxRank = 8;

struct Tensor {
  ElementType type = ElementType::kOther;
  bool is_linear = true;  //!< Row-major, not one of TensorRT's blocked formats.
  int rank = 0;
  std::array<std::int64_t, kMaxRank> dimensions = {};
  void* address = nullptr;  //!< On the GPU; of inputs it is only read.
};

//! Bytes of one element, 0 for kOther.
int elementBytes(ElementType type);

const char* nameOf(ElementType type);

//! As in "float16 (2, 64, 1536)".
std::string describe(const Tensor& tensor);

//! Bytes of all elements.
std::int64_t byteCount(const Tensor& tensor);

}  // namespace s6::plugin
