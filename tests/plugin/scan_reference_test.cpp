// SPDX-License-Identifier: MIT
// The oracle against closed forms and against itself in parts: it judges every kernel, so it is
// judged here by mathematics alone.
#include <cmath>
#include <limits>
#include <vector>

#include "expect.h"
#include "s6_reference.h"

namespace {

//! A seeded stream of doubles in [-1, 1).
class Stream {
 public:
  explicit Stream(uint64_t seed) : state_(seed) {}
  double next() {
    state_ = state_ * 6364136223846793005ULL + 1442695040888963407ULL;
    return static_cast<double>(state_ >> 11) / 4503599627370496.0 - 1.0;
  }
  std::vector<double> vector(size_t count, double scale, double shift = 0.0) {
    std::vector<double> values(count);
    for (double& value : values) value = shift + scale * next();
    return values;
  }

 private:
  uint64_t state_;
};

//! With constant inputs h is a geometric series: h_t = dt B u (1 - q^t) / (1 - q), q = exp(dt A).
void constantInputsGiveAGeometricSeries() {
  const int l = 50;
  const double dt = 0.125, a = -0.75, b_value = 1.5, c_value = -2.0, u_value = 0.5, skip = 0.25;
  const std::vector<double> u(l, u_value), delta(l, dt), B(l, b_value), C(l, c_value);
  std::vector<double> y(l), state(1);
  s6_reference_selective_scan(1, l, 1, 1, 0, u.data(), delta.data(), &a, B.data(), C.data(), &skip,
                              nullptr, nullptr, nullptr, nullptr, y.data(), state.data());
  const double q = std::exp(dt * a);
  for (int t = 0; t < l; ++t) {
    const double h = dt * b_value * u_value * (1.0 - std::pow(q, t + 1)) / (1.0 - q);
    S6_EXPECT_NEAR(y[t], c_value * h + skip * u_value, 1e-14);
    if (t == l - 1) S6_EXPECT_NEAR(state[0], h, 1e-14);
  }
}

//! softplus and the gate at both far ends, where naive formulas overflow or vanish.
void extremesStayFinite() {
  const double a = -1.0, one = 1.0;
  for (const double raw : {-800.0, -30.0, 0.0, 30.0, 800.0}) {
    double y = 0.0;
    s6_reference_selective_scan(1, 1, 1, 1, 1, &one, &raw, &a, &one, &one, nullptr, nullptr,
                                nullptr, nullptr, nullptr, &y, nullptr);
    const double wanted = raw > 0 ? raw + std::log1p(std::exp(-raw)) : std::log1p(std::exp(raw));
    S6_EXPECT_NEAR(y, wanted, 1e-15 * std::fabs(wanted));
  }
  for (const double z : {-800.0, 0.0, 800.0}) {
    double y = 0.0;
    s6_reference_selective_scan(1, 1, 1, 1, 0, &one, &one, &a, &one, &one, nullptr, &z, nullptr,
                                nullptr, nullptr, &y, nullptr);
    S6_EXPECT_NEAR(y, z > 0 ? z : 0.0, 1e-12);
  }
}

//! One call equals the same sequence in parts through the state, bit for bit.
void splitsThroughTheState() {
  const int l = 37, d = 3, n = 4, first = 11;
  Stream stream(7);
  const auto u = stream.vector(l * d, 1.0), delta = stream.vector(l * d, 2.0, -1.0);
  const auto B = stream.vector(l * n, 1.0), C = stream.vector(l * n, 1.0);
  const auto z = stream.vector(l * d, 2.0), A = stream.vector(n * d, 1.0, -1.5);
  const auto D = stream.vector(d, 1.0), bias = stream.vector(d, 0.5);
  std::vector<double> whole(l * d), parts(l * d), state_whole(n * d), state(n * d, 0.0);
  s6_reference_selective_scan(1, l, d, n, 1, u.data(), delta.data(), A.data(), B.data(), C.data(),
                              D.data(), z.data(), bias.data(), nullptr, nullptr, whole.data(),
                              state_whole.data());
  const auto part = [&](int from, int tokens) {
    s6_reference_selective_scan(1, tokens, d, n, 1, &u[from * d], &delta[from * d], A.data(),
                                &B[from * n], &C[from * n], D.data(), &z[from * d], bias.data(),
                                state.data(), nullptr, &parts[from * d], state.data());
  };
  part(0, first);
  part(first, l - first);
  S6_EXPECT(whole == parts);
  S6_EXPECT(state_whole == state);
}

//! A short row ends with the state after its own tokens and writes zero beyond them.
void raggedRowsStopEarly() {
  const int b = 3, l = 9, d = 2, n = 3;
  Stream stream(11);
  const auto u = stream.vector(b * l * d, 1.0), delta = stream.vector(b * l * d, 1.0);
  const auto B = stream.vector(b * l * n, 1.0), C = stream.vector(b * l * n, 1.0);
  const auto A = stream.vector(n * d, 1.0, -1.5);
  const int32_t lengths[b] = {9, 4, 0};
  std::vector<double> y(b * l * d, 5.0), state(b * n * d, 5.0);
  s6_reference_selective_scan(b, l, d, n, 1, u.data(), delta.data(), A.data(), B.data(), C.data(),
                              nullptr, nullptr, nullptr, nullptr, lengths, y.data(), state.data());
  for (int t = 4; t < l; ++t) S6_EXPECT(y[(l + t) * d] == 0.0 && y[(2 * l + t) * d + 1] == 0.0);
  for (int s = 0; s < n * d; ++s) S6_EXPECT(state[2 * n * d + s] == 0.0);
  std::vector<double> y_short(4 * d), state_short(n * d);
  s6_reference_selective_scan(1, 4, d, n, 1, &u[l * d], &delta[l * d], A.data(), &B[l * n],
                              &C[l * n], nullptr, nullptr, nullptr, nullptr, nullptr,
                              y_short.data(), state_short.data());
  for (int s = 0; s < n * d; ++s) S6_EXPECT(state[n * d + s] == state_short[s]);
  for (int i = 0; i < 4 * d; ++i) S6_EXPECT(y[l * d + i] == y_short[i]);
}

}  // namespace

int main() {
  constantInputsGiveAGeometricSeries();
  extremesStayFinite();
  splitsThroughTheState();
  raggedRowsStopEarly();
  return s6::test::verdict();
}
