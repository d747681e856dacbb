// SPDX-License-Identifier: MIT
/*!
 * \file s6_reference.h
 * \brief The oracle: both operators in plain double-precision host C++, dense tensors only.
 *
 * It is slow and obvious on purpose; every kernel is judged against it. Pointers follow
 * s6/selective_scan.h and s6/causal_conv1d.h, every optional one may be null, and all values are
 * doubles so that a test upcasts its half-precision inputs exactly. Plain C linkage, so that the
 * Python tests load it as a shared library. Source: Mamba (Gu and Dao 2023), algorithm 2 and
 * section 3.3; discretisation as in the published code, ZOH on A and Euler on B.
 */
#pragma once

#include <cstdint>

extern "C" {

//! y [b, l, d] and state_out [b, n, d] from u, delta, z [b, l, d]; A [n, d]; B, C [b, l, n].
void s6_reference_selective_scan(int32_t b, int32_t l, int32_t d, int32_t n, int32_t delta_softplus,
                                 const double* u, const double* delta, const double* A,
                                 const double* B, const double* C, const double* D, const double* z,
                                 const double* delta_bias, const double* state_in,
                                 const int32_t* lengths, double* y, double* state_out);

//! y [b, l, d] and state_out [b, k-1, d] from x [b, l, d] and weight [k, d].
void s6_reference_causal_conv1d(int32_t b, int32_t l, int32_t d, int32_t k, int32_t silu,
                                const double* x, const double* weight, const double* bias,
                                const double* state_in, const int32_t* lengths, double* y,
                                double* state_out);
}
