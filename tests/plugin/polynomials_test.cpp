// SPDX-License-Identifier: MIT
// The stated error of scan_polynomials.h, over its whole range.
#include "scan_polynomials.h"

#include <algorithm>
#include <cmath>

#include "expect.h"

int main() {
  double worst = 0.0;
  for (int i = 0; i <= 100000; ++i) {
    const float e = i < 50000 ? std::exp2(-static_cast<float>(i) / 500.0f)
                              : static_cast<float>(i - 50000) / 50000.0f;
    if (e == 0.0f) continue;
    const double exact = std::log1p(static_cast<double>(e));
    worst = std::max(worst, std::fabs(s6::log1pPolynomial(e) / exact - 1.0));
  }
  S6_EXPECT(worst < 1e-5);
  S6_EXPECT(s6::log1pPolynomial(0.0f) == 0.0f);
  std::printf("log1p %.2e\n", worst);
  return s6::test::verdict();
}
