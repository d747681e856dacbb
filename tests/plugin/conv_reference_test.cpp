// SPDX-License-Identifier: MIT
// The convolution oracle against hand-computed values and against itself in parts.
#include <cmath>
#include <vector>

#include "expect.h"
#include "s6_reference.h"

namespace {

//! k = 3: y[t] = bias + w0 x[t-2] + w1 x[t-1] + w2 x[t], the state standing in for t < 0.
void matchesTheFormulaByHand() {
  const double x[4] = {1, 2, 3, 4}, weight[3] = {0.5, -1, 2}, bias = 0.25, state[2] = {10, 20};
  double y[4], last[2];
  s6_reference_causal_conv1d(1, 4, 1, 3, 0, x, weight, &bias, state, nullptr, y, last);
  S6_EXPECT_NEAR(y[0], 0.25 + 5 - 20 + 2, 0.0);
  S6_EXPECT_NEAR(y[1], 0.25 + 10 - 1 + 4, 0.0);
  S6_EXPECT_NEAR(y[2], 0.25 + 0.5 - 2 + 6, 0.0);
  S6_EXPECT_NEAR(y[3], 0.25 + 1 - 3 + 8, 0.0);
  S6_EXPECT(last[0] == 3 && last[1] == 4);
  s6_reference_causal_conv1d(1, 4, 1, 3, 1, x, weight, &bias, state, nullptr, y, last);
  S6_EXPECT_NEAR(y[3], 6.25 / (1 + std::exp(-6.25)), 1e-15);
}

//! Parts of any length through the state, in place, also parts shorter than the window.
void splitsThroughTheStateInPlace() {
  const int l = 10, k = 4;
  const double weight[4] = {1, -2, 0.5, 3};
  double x[l], whole[l], parts[l], state_whole[3], state[3] = {0, 0, 0};
  for (int t = 0; t < l; ++t) x[t] = std::sin(t + 1.0);
  s6_reference_causal_conv1d(1, l, 1, k, 1, x, weight, nullptr, nullptr, nullptr, whole,
                             state_whole);
  int from = 0;
  for (const int tokens : {1, 2, 0, 5, 2}) {
    s6_reference_causal_conv1d(1, tokens, 1, k, 1, x + from, weight, nullptr, state, nullptr,
                               parts + from, state);
    from += tokens;
  }
  for (int t = 0; t < l; ++t) S6_EXPECT(whole[t] == parts[t]);
  for (int j = 0; j < k - 1; ++j) S6_EXPECT(state_whole[j] == state[j]);
}

//! A row of length 1 in a longer batch: state holds its token, y beyond is zero.
void raggedRowsStopEarly() {
  const double x[4] = {7, 8, 9, 10}, weight[2] = {1, 1};
  const int32_t lengths[2] = {1, 2};
  double y[4], state[2];
  s6_reference_causal_conv1d(2, 2, 1, 2, 0, x, weight, nullptr, nullptr, lengths, y, state);
  S6_EXPECT(y[0] == 7 && y[1] == 0 && y[2] == 9 && y[3] == 19);
  S6_EXPECT(state[0] == 7 && state[1] == 10);
}

}  // namespace

int main() {
  matchesTheFormulaByHand();
  splitsThroughTheStateInPlace();
  raggedRowsStopEarly();
  return s6::test::verdict();
}
