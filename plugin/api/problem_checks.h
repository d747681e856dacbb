// SPDX-License-Identifier: MIT
//! \file problem_checks.h
//! \brief Small host-side checks shared by the operators; the first failure wins.
#pragma once

#include <cstdint>

#include "s6/types.h"

namespace s6 {

//! Bytes of one element, 0 for a type outside the enum.
inline int64_t elementBytes(S6DataType dtype) {
  switch (dtype) {
    case S6_FLOAT32:
      return 4;
    case S6_FLOAT16:
    case S6_BFLOAT16:
      return 2;
  }
  return 0;
}

//! Collects the first failure of a chain of checks, so that a caller reads as a list of claims.
class FirstFailure {
 public:
  void require(bool holds, S6Status otherwise) {
    if (status_ == S6_STATUS_OK && !holds) status_ = otherwise;
  }
  //! A pointer that must be there and aligned to its element.
  void requirePointer(const void* pointer, int64_t element_bytes) {
    require(pointer != nullptr, S6_STATUS_NULL_POINTER);
    requireAligned(pointer, element_bytes);
  }
  //! A pointer that may be null.
  void requireAligned(const void* pointer, int64_t element_bytes) {
    require(
        reinterpret_cast<std::uintptr_t>(pointer) % static_cast<std::uintptr_t>(element_bytes) == 0,
        S6_STATUS_MISALIGNED);
  }
  //! Row and batch stride of a [b, l, width] tensor; 0 stands for dense.
  void requireStrides(int64_t row, int64_t batch, int64_t width, int64_t l) {
    require(row == 0 || row >= width, S6_STATUS_BAD_STRIDE);
    const int64_t actual_row = row == 0 ? width : row;
    const int64_t span = l > 0 ? (l - 1) * actual_row + width : 0;
    require(batch == 0 || batch >= span, S6_STATUS_BAD_STRIDE);
  }
  S6Status status() const { return status_; }

 private:
  S6Status status_ = S6_STATUS_OK;
};

//! Strides with 0 resolved to dense.
struct TensorStrides {
  int64_t row;
  int64_t batch;
};

inline TensorStrides resolveStrides(int64_t row, int64_t batch, int64_t width, int64_t l) {
  const int64_t actual_row = row == 0 ? width : row;
  return {actual_row, batch == 0 ? l * actual_row : batch};
}

}  // namespace s6
