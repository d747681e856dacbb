// SPDX-License-Identifier: MIT
// The stated errors of scan_polynomials.h, over their whole range.
#include <algorithm>
#include <cmath>

#include "expect.h"
#include "scan_polynomials.h"

int main() {
  double worst_value = 0.0, worst_rate = 0.0, worst_log = 0.0;
  for (int i = -200000; i <= 200000; ++i) {
    const float x = s6::kExp2Range * static_cast<float>(i) / 200000.0f;
    const double exact = std::exp2(static_cast<double>(x));
    worst_value = std::max(worst_value, std::fabs(s6::exp2Polynomial(x, 1.0f) / exact - 1.0));
  }
  S6_EXPECT(worst_value < 8e-6);
  // Slow states: what counts is the distance from 1, that is, the decay rate.
  for (int i = 1; i <= 100000; ++i) {
    const float x = -0.5f * static_cast<float>(i) / 100000.0f;
    const double exact = std::expm1(static_cast<double>(x) * std::log(2.0));
    // A float next to 1 has steps of 6e-8: that much is the format's, not the polynomial's.
    const double error = std::fabs(s6::exp2Polynomial(x, 1.0f) - 1.0 - exact) - 1.2e-7;
    worst_rate = std::max(worst_rate, error / std::fabs(exact));
  }
  S6_EXPECT(worst_rate < 1.8e-5);
  S6_EXPECT(s6::exp2Polynomial(0.0f, -3.0f) == 1.0f);
  S6_EXPECT(s6::exp2Polynomial(-4.0f, 2.0f) == 1.0f / 256.0f);
  for (int i = 0; i <= 100000; ++i) {
    const float e = i < 50000 ? std::exp2(-static_cast<float>(i) / 500.0f)
                              : static_cast<float>(i - 50000) / 50000.0f;
    if (e == 0.0f) continue;
    const double exact = std::log1p(static_cast<double>(e));
    worst_log = std::max(worst_log, std::fabs(s6::log1pPolynomial(e) / exact - 1.0));
  }
  S6_EXPECT(worst_log < 1e-5);
  S6_EXPECT(s6::log1pPolynomial(0.0f) == 0.0f);
  std::printf("exp2 %.2e, its rate %.2e, log1p %.2e\n", worst_value, worst_rate, worst_log);
  return s6::test::verdict();
}
