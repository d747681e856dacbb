// SPDX-License-Identifier: MIT
//! \file matrix_check.h
//! \brief What every call asks of a matrix of 16, 8 or 4 bits.
#pragma once

#include "problem_checks.h"

namespace s6 {

constexpr int64_t kVectorBytes = 16;  // Rows are read and written in vectors of this size.
constexpr int32_t kVectorHalves = 8;

//! A matrix of float16 or packed weights whose rows have `columns` elements.
inline void requireMatrix(FirstFailure& check, const void* data, const void* scales, int32_t bits,
                          int32_t group_size, int32_t columns) {
  check.require(bits == 16 || bits == 8 || bits == 4, S6_STATUS_BAD_SIZE);
  check.requirePointer(data, kVectorBytes);
  if (bits == 16) return;
  check.requirePointer(scales, 2);
  check.require(group_size > 0 && group_size % kVectorHalves == 0, S6_STATUS_BAD_SIZE);
  check.require(group_size > 0 && columns % group_size == 0, S6_STATUS_BAD_SIZE);
}

}  // namespace s6
