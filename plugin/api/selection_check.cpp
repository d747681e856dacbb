// SPDX-License-Identifier: MIT
#include "matrix_check.h"
#include "s6/selection.h"

using s6::kVectorBytes;

extern "C" S6Status s6_selection_check(const S6Selection* problem) {
  if (problem == nullptr) return S6_STATUS_NULL_POINTER;
  const S6Selection& p = *problem;
  if (p.struct_size != sizeof(S6Selection)) return S6_STATUS_BAD_ABI;
  s6::FirstFailure check;
  check.require(p.tokens >= 0, S6_STATUS_BAD_SIZE);
  check.require(p.d > 0 && p.d % S6_SELECTION_CHANNELS == 0, S6_STATUS_BAD_SIZE);
  check.require(p.r > 0 && p.r % S6_SELECTION_RANK_MULTIPLE == 0 && p.r <= S6_SELECTION_MAX_RANK,
                S6_STATUS_BAD_SIZE);
  check.require(p.n == S6_SELECTION_STATE, S6_STATUS_BAD_SIZE);
  check.requirePointer(p.x_proj, kVectorBytes);
  check.requirePointer(p.dt_proj, kVectorBytes);
  if (p.tokens > 0) {
    check.requirePointer(p.u, kVectorBytes);
    check.requirePointer(p.delta, kVectorBytes);
    check.requirePointer(p.B, kVectorBytes);
    check.requirePointer(p.C, kVectorBytes);
  }
  return check.status();
}
