// SPDX-License-Identifier: MIT
#include "problem_checks.h"
#include "s6/selective_scan.h"

extern "C" S6Status s6_selective_scan_check(const S6SelectiveScan* problem) {
  if (problem == nullptr) return S6_STATUS_NULL_POINTER;
  const S6SelectiveScan& p = *problem;
  if (p.struct_size != sizeof(S6SelectiveScan)) return S6_STATUS_BAD_ABI;
  const int64_t bytes = s6::elementBytes(p.dtype);
  if (bytes == 0) return S6_STATUS_BAD_DTYPE;

  s6::FirstFailure check;
  check.require(p.b >= 0 && p.l >= 0 && p.d > 0 && p.n > 0, S6_STATUS_BAD_SIZE);
  check.require(p.n <= S6_SCAN_MAX_STATE && p.sm_count >= 0, S6_STATUS_BAD_SIZE);
  check.require(p.b <= 65535, S6_STATUS_BAD_SIZE);  // The batch is a grid dimension.
  check.require(p.variant >= S6_SCAN_AUTO && p.variant <= S6_SCAN_RELAY, S6_STATUS_BAD_VARIANT);
  if (check.status() != S6_STATUS_OK) return check.status();

  if (p.b > 0 && p.l > 0) {
    check.requirePointer(p.u, bytes);
    check.requirePointer(p.delta, bytes);
    check.requirePointer(p.B, bytes);
    check.requirePointer(p.C, bytes);
    check.requirePointer(p.y, bytes);
  }
  check.requirePointer(p.A, 4);
  check.requireAligned(p.D, 4);
  check.requireAligned(p.z, bytes);
  check.requireAligned(p.delta_bias, 4);
  check.requireAligned(p.state_in, 4);
  check.requireAligned(p.state_out, 4);
  check.requireAligned(p.lengths, 4);
  check.requireStrides(p.u_row, p.u_batch, p.d, p.l);
  check.requireStrides(p.delta_row, p.delta_batch, p.d, p.l);
  check.requireStrides(p.z_row, p.z_batch, p.d, p.l);
  check.requireStrides(p.B_row, p.B_batch, p.n, p.l);
  check.requireStrides(p.C_row, p.C_batch, p.n, p.l);
  check.requireStrides(p.y_row, p.y_batch, p.d, p.l);
  return check.status();
}
