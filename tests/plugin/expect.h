// SPDX-License-Identifier: MIT
//! \file expect.h
//! \brief Two checks and a verdict: enough for host tests, so that they depend on nothing.
#pragma once

#include <cmath>
#include <cstdio>

namespace s6::test {

inline int failures = 0;

inline void expect(bool holds, const char* claim, const char* file, int line) {
  if (holds) return;
  ++failures;
  std::fprintf(stderr, "%s:%d: does not hold: %s\n", file, line, claim);
}

inline void expectNear(double value, double wanted, double tolerance, const char* claim,
                       const char* file, int line) {
  // Written so that NaN fails.
  if (std::fabs(value - wanted) <= tolerance) return;
  ++failures;
  std::fprintf(stderr, "%s:%d: %s is %.17g, wanted %.17g within %g\n", file, line, claim, value,
               wanted, tolerance);
}

//! The exit status of a test program.
inline int verdict() {
  if (failures == 0) return 0;
  std::fprintf(stderr, "%d check(s) failed\n", failures);
  return 1;
}

}  // namespace s6::test

#define S6_EXPECT(claim) s6::test::expect((claim), #claim, __FILE__, __LINE__)
#define S6_EXPECT_NEAR(value, wanted, tolerance) \
  s6::test::expectNear((value), (wanted), (tolerance), #value, __FILE__, __LINE__)
