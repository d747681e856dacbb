// SPDX-License-Identifier: MIT
#include "problem_checks.h"
#include "s6/causal_conv1d.h"

extern "C" S6Status s6_causal_conv1d_check(const S6CausalConv1d* problem) {
  if (problem == nullptr) return S6_STATUS_NULL_POINTER;
  const S6CausalConv1d& p = *problem;
  if (p.struct_size != sizeof(S6CausalConv1d)) return S6_STATUS_BAD_ABI;
  const int64_t bytes = s6::elementBytes(p.dtype);
  const int64_t weight_bytes = s6::elementBytes(p.weight_dtype);
  if (bytes == 0 || weight_bytes == 0) return S6_STATUS_BAD_DTYPE;

  s6::FirstFailure check;
  check.require(p.b >= 0 && p.l >= 0 && p.d > 0, S6_STATUS_BAD_SIZE);
  check.require(p.k >= 2 && p.k <= S6_CONV_MAX_WIDTH, S6_STATUS_BAD_SIZE);
  check.require(p.b <= 65535, S6_STATUS_BAD_SIZE);  // The batch is a grid dimension.
  if (check.status() != S6_STATUS_OK) return check.status();

  if (p.b > 0 && p.l > 0) {
    check.requirePointer(p.x, bytes);
    check.requirePointer(p.y, bytes);
  }
  check.requirePointer(p.weight, weight_bytes);
  check.requireAligned(p.bias, weight_bytes);
  check.requireAligned(p.state_in, bytes);
  check.requireAligned(p.state_out, bytes);
  check.requireAligned(p.lengths, 4);
  check.requireStrides(p.x_row, p.x_batch, p.d, p.l);
  check.requireStrides(p.y_row, p.y_batch, p.d, p.l);
  return check.status();
}
