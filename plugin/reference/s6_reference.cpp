// SPDX-License-Identifier: MIT
#include "s6_reference.h"

#include <algorithm>
#include <cmath>
#include <vector>

namespace {

double softplus(double v) { return std::max(v, 0.0) + std::log1p(std::exp(-std::fabs(v))); }

double silu(double v) { return v / (1.0 + std::exp(-v)); }

int32_t rowLength(const int32_t* lengths, int32_t row, int32_t l) {
  return lengths == nullptr ? l : std::min(l, std::max(0, lengths[row]));
}

}  // namespace

extern "C" void s6_reference_selective_scan(int32_t b, int32_t l, int32_t d, int32_t n,
                                            int32_t delta_softplus, const double* u,
                                            const double* delta, const double* A, const double* B,
                                            const double* C, const double* D, const double* z,
                                            const double* delta_bias, const double* state_in,
                                            const int32_t* lengths, double* y, double* state_out) {
  std::vector<double> h(static_cast<size_t>(n));
  for (int64_t row = 0; row < b; ++row) {
    const int32_t tokens = rowLength(lengths, static_cast<int32_t>(row), l);
    for (int64_t c = 0; c < d; ++c) {
      for (int64_t s = 0; s < n; ++s) {
        h[s] = state_in == nullptr ? 0.0 : state_in[(row * n + s) * d + c];
      }
      for (int64_t t = 0; t < l; ++t) {
        const int64_t at = (row * l + t) * d + c;
        if (t >= tokens) {
          y[at] = 0.0;
          continue;
        }
        const double raw = delta[at] + (delta_bias == nullptr ? 0.0 : delta_bias[c]);
        const double dt = delta_softplus != 0 ? softplus(raw) : raw;
        double sum = 0.0;
        for (int64_t s = 0; s < n; ++s) {
          h[s] = std::exp(dt * A[s * d + c]) * h[s] + dt * B[(row * l + t) * n + s] * u[at];
          sum += C[(row * l + t) * n + s] * h[s];
        }
        if (D != nullptr) sum += D[c] * u[at];
        y[at] = z == nullptr ? sum : sum * silu(z[at]);
      }
      if (state_out == nullptr) continue;
      for (int64_t s = 0; s < n; ++s) state_out[(row * n + s) * d + c] = h[s];
    }
  }
}

extern "C" void s6_reference_causal_conv1d(int32_t b, int32_t l, int32_t d, int32_t k,
                                           int32_t with_silu, const double* x, const double* weight,
                                           const double* bias, const double* state_in,
                                           const int32_t* lengths, double* y, double* state_out) {
  std::vector<double> past(static_cast<size_t>(k - 1));
  for (int64_t row = 0; row < b; ++row) {
    const int32_t tokens = rowLength(lengths, static_cast<int32_t>(row), l);
    for (int64_t c = 0; c < d; ++c) {
      // Token t of the padded sequence: the state for t < 0, else x.
      const auto input = [&](int64_t t) {
        if (t >= 0) return x[(row * l + t) * d + c];
        return state_in == nullptr ? 0.0 : state_in[(row * (k - 1) + t + k - 1) * d + c];
      };
      for (int64_t t = 0; t < l; ++t) {
        double sum = bias == nullptr ? 0.0 : bias[c];
        for (int64_t j = 0; j < k; ++j) {
          if (t < tokens) sum += weight[j * d + c] * input(t - k + 1 + j);
        }
        y[(row * l + t) * d + c] = t >= tokens ? 0.0 : (with_silu != 0 ? silu(sum) : sum);
      }
      if (state_out == nullptr) continue;
      // Gathered first: state_out may be state_in.
      for (int64_t j = 0; j < k - 1; ++j) past[j] = input(tokens - (k - 1) + j);
      for (int64_t j = 0; j < k - 1; ++j) state_out[(row * (k - 1) + j) * d + c] = past[j];
    }
  }
}
