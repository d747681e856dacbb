// SPDX-License-Identifier: MIT
/*!
 * \file scan_polynomials.h
 * \brief The two polynomials of the half-precision scan, usable on host and device.
 *
 * The special-function unit gives 16 results a clock and SM, the FMA pipe 128: a share of the
 * exponentials and the logarithm of softplus are therefore polynomials (the idea of
 * FlashAttention-4's softmax). Coefficients are minimax fits by iteratively reweighted least
 * squares; tests/plugin/polynomials_test.cpp holds the stated errors.
 */
#pragma once

#include <cstdint>
#include <cstring>

#if !defined(__CUDACC__)
#include <cmath>
#endif

#include "host_device.h"

namespace s6 {

//! 1.5 * 2^23: adding it rounds a float to an integer held in the low mantissa bits.
constexpr float kRoundMagic = 12582912.0f;
//! exp2Polynomial is exact in range for arguments in [-kExp2Range, kExp2Range]; beyond it the
//! exponent field would wrap, so callers must take another path.
constexpr float kExp2Range = 125.0f;

S6_HOST_DEVICE float bitsToFloat(uint32_t bits) {
#if defined(__CUDA_ARCH__)
  return __uint_as_float(bits);
#else
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
#endif
}

S6_HOST_DEVICE uint32_t floatToBits(float value) {
#if defined(__CUDA_ARCH__)
  return __float_as_uint(value);
#else
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
#endif
}

S6_HOST_DEVICE float fusedMultiplyAdd(float a, float b, float c) {
#if defined(__CUDA_ARCH__)
  return __fmaf_rn(a, b, c);
#else
  return std::fmaf(a, b, c);
#endif
}

/*!
 * 2^(a*b) on the FMA pipe: 8 issue slots against 2 for multiply and ex2.approx.
 * The fit is of (2^f - 1) / f, so that 2^0 = 1 exactly and the decay rate of slow states, not only
 * the value, is right to 1.8e-5 relative; the value is right to 8e-6.
 */
S6_HOST_DEVICE float exp2Polynomial(float a, float b) {
  const float rounded = fusedMultiplyAdd(a, b, kRoundMagic);
  const float whole = rounded - kRoundMagic;
  const float f = fusedMultiplyAdd(a, b, -whole);  // In [-0.5, 0.5].
  float p = fusedMultiplyAdd(f, 0.009676042581866932f, 0.05583833459540721f);
  p = fusedMultiplyAdd(f, p, 0.24022167645675857f);
  p = fusedMultiplyAdd(f, p, 0.6931367275447329f);
  p = fusedMultiplyAdd(f, p, 1.0f);
  // Unsigned wrap-around is meant: the low bits of `rounded` are the whole part, its upper bits
  // leave through the shift.
  return bitsToFloat(floatToBits(p) + (floatToBits(rounded) << 23));
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
