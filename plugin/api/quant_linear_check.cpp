// SPDX-License-Identifier: MIT
#include "s6/quant_linear.h"

#include "matrix_check.h"

extern "C" S6Status s6_quant_linear_check(const S6QuantLinear* problem) {
  if (problem == nullptr) return S6_STATUS_NULL_POINTER;
  const S6QuantLinear& p = *problem;
  if (p.struct_size != sizeof(S6QuantLinear)) return S6_STATUS_BAD_ABI;
  s6::FirstFailure check;
  check.require(p.tokens >= 0 && p.tokens <= S6_QUANT_LINEAR_MAX_TOKENS && p.rows > 0,
                S6_STATUS_BAD_SIZE);
  check.require(p.columns > 0 && p.columns % s6::kVectorHalves == 0, S6_STATUS_BAD_SIZE);
  check.require(p.y_dtype == S6_FLOAT32 || (p.y_dtype == S6_FLOAT16 && p.add == 0),
                S6_STATUS_BAD_DTYPE);
  check.require(p.scale_group == 0 || p.scale_group >= p.rows, S6_STATUS_BAD_STRIDE);
  check.require(p.x_row == 0 || (p.x_row >= p.columns && p.x_row % s6::kVectorHalves == 0),
                S6_STATUS_BAD_STRIDE);
  check.require(p.y_row == 0 || p.y_row >= p.rows, S6_STATUS_BAD_STRIDE);
  s6::requireMatrix(check, p.weight, p.scales, p.bits, p.group_size, p.columns);
  if (p.tokens > 0) {
    check.requirePointer(p.x, s6::kVectorBytes);
    check.requirePointer(p.y, s6::elementBytes(p.y_dtype));
  }
  return check.status();
}
