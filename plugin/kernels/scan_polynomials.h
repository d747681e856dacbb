// SPDX-License-Identifier: MIT
/*!
 * \file scan_polynomials.h
 * \brief The polynomial of the half-precision scan, usable on host and device.
 *
 * The special-function unit gives 16 results a clock and SM, the FMA pipe 128: the logarithm of
 * softplus is therefore a polynomial (the idea of FlashAttention-4's softmax). Coefficients are a
 * minimax fit by iteratively reweighted least squares; tests/plugin/polynomials_test.cpp holds the
 * stated error.
 */
#pragma once

#if !defined(__CUDACC__)
#include <cmath>
#endif

#include "host_device.h"

namespace s6 {

S6_HOST_DEVICE float fusedMultiplyAdd(float a, float b, float c) {
#if defined(__CUDA_ARCH__)
  return __fmaf_rn(a, b, c);
#else
  return std::fmaf(a, b, c);
#endif
}

//! log(1 + e) for e in [0, 1], relative error below 1e-5, also for e towards 0.
S6_HOST_DEVICE float log1pPolynomial(float e) {
  float p = fusedMultiplyAdd(e, -0.023869136641174425f, 0.10122226656576983f);
  p = fusedMultiplyAdd(e, p, -0.2100486967217988f);
  p = fusedMultiplyAdd(e, p, 0.32520669530951213f);
  p = fusedMultiplyAdd(e, p, -0.4993613698784717f);
  p = fusedMultiplyAdd(e, p, 0.9999915985756663f);
  return e * p;
}

}  // namespace s6
