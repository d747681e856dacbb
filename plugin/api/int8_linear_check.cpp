// SPDX-License-Identifier: MIT
#include "s6/int8_linear.h"

#include "matrix_check.h"

using s6::kVectorBytes;
using s6::kVectorHalves;

extern "C" S6Status s6_quantise_rows_check(const S6QuantiseRows* problem) {
  if (problem == nullptr) return S6_STATUS_NULL_POINTER;
  const S6QuantiseRows& p = *problem;
  if (p.struct_size != sizeof(S6QuantiseRows)) return S6_STATUS_BAD_ABI;
  s6::FirstFailure check;
  check.require(p.tokens >= 0 && p.columns > 0 && p.columns % S6_INT8_GROUP == 0,
                S6_STATUS_BAD_SIZE);
  check.require(p.x_row == 0 || (p.x_row >= p.columns && p.x_row % kVectorHalves == 0),
                S6_STATUS_BAD_STRIDE);
  if (p.tokens > 0) {
    check.requirePointer(p.x, kVectorBytes);
    check.requirePointer(p.codes, kVectorBytes);
    check.requirePointer(p.scales, 4);
  }
  return check.status();
}

extern "C" S6Status s6_int8_linear_check(const S6Int8Linear* problem) {
  if (problem == nullptr) return S6_STATUS_NULL_POINTER;
  const S6Int8Linear& p = *problem;
  if (p.struct_size != sizeof(S6Int8Linear)) return S6_STATUS_BAD_ABI;
  s6::FirstFailure check;
  check.require(p.tokens >= 0 && p.rows > 0 && p.rows % kVectorHalves == 0, S6_STATUS_BAD_SIZE);
  check.require(p.group_size > 0 && p.group_size % S6_INT8_GROUP == 0, S6_STATUS_BAD_SIZE);
  check.require(p.group_size > 0 && p.columns > 0 && p.columns % p.group_size == 0,
                S6_STATUS_BAD_SIZE);
  check.require(p.y_dtype == S6_FLOAT32 || (p.y_dtype == S6_FLOAT16 && p.add == 0),
                S6_STATUS_BAD_DTYPE);
  check.require(p.y_row == 0 || (p.y_row >= p.rows && p.y_row % kVectorHalves == 0),
                S6_STATUS_BAD_STRIDE);
  check.requirePointer(p.weight, kVectorBytes);
  check.requirePointer(p.weight_scales, kVectorBytes);
  if (p.tokens > 0) {
    check.requirePointer(p.codes, kVectorBytes);
    check.requirePointer(p.scales, 4);
    check.requirePointer(p.y, kVectorBytes);
  }
  return check.status();
}
