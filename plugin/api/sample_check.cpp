// SPDX-License-Identifier: MIT
#include "s6/sample.h"

#include "problem_checks.h"

extern "C" S6Status s6_sample_check(const S6Sample* problem) {
  if (problem == nullptr) return S6_STATUS_NULL_POINTER;
  const S6Sample& p = *problem;
  if (p.struct_size != sizeof(S6Sample)) return S6_STATUS_BAD_ABI;
  s6::FirstFailure check;
  check.require(p.b >= 0 && p.vocab > 0, S6_STATUS_BAD_SIZE);
  check.require(p.logits_row == 0 || p.logits_row >= p.vocab, S6_STATUS_BAD_STRIDE);
  if (p.b > 0) {
    check.requirePointer(p.logits, 4);
    check.requirePointer(p.temperature, 4);
    check.requirePointer(p.top_k, 4);
    check.requirePointer(p.top_p, 4);
    check.requirePointer(p.seed, 8);
    check.requirePointer(p.draws, 8);
    check.requirePointer(p.next_ids, 4);
  }
  return check.status();
}
