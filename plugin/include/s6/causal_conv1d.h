// SPDX-License-Identifier: MIT
/*!
 * \file causal_conv1d.h
 * \brief Depthwise causal convolution, then SiLU: y[t] = silu(bias + sum_j weight[j] x[t-k+1+j]).
 *
 * Tokens before the first come from state_in (the last k-1 inputs of the previous part), oldest
 * first, or are zero. Same call rules as the scan: see selective_scan.h.
 */
#ifndef S6_CAUSAL_CONV1D_H_
#define S6_CAUSAL_CONV1D_H_

#include "s6/types.h"

#ifdef __cplusplus
extern "C" {
#endif

//! Largest convolution width k that the kernels accept; the smallest is 2.
#define S6_CONV_MAX_WIDTH 8

typedef struct S6CausalConv1d {
  size_t struct_size;       //!< sizeof(S6CausalConv1d).
  S6DataType dtype;         //!< Of x, state and y.
  S6DataType weight_dtype;  //!< Of weight and bias.
  int32_t b, l, d, k;
  int32_t silu;  //!< Non-zero: SiLU after the convolution.

  const void* x;           //!< [b, l, d]
  const void* weight;      //!< [k, d]; weight[k-1] meets the current token.
  const void* bias;        //!< [d] or null: zero.
  const void* state_in;    //!< [b, k-1, d] or null: zero.
  void* state_out;         //!< [b, k-1, d] or null: not wanted. May equal state_in.
  void* y;                 //!< [b, l, d]; must not overlap any input.
  const int32_t* lengths;  //!< As in S6SelectiveScan.

  int64_t x_row, y_row;      //!< Elements from token to token; 0 means d.
  int64_t x_batch, y_batch;  //!< Elements from batch row to batch row; 0 means l * row.
} S6CausalConv1d;

//! Checks a problem on the host, without a device.
S6_API S6Status s6_causal_conv1d_check(const S6CausalConv1d* problem);

//! Runs the convolution over the whole sequence.
S6_API S6Status s6_causal_conv1d(const S6CausalConv1d* problem, S6Stream stream);

//! Runs one token (l must be 1): the decode path.
S6_API S6Status s6_causal_conv1d_step(const S6CausalConv1d* problem, S6Stream stream);

#ifdef __cplusplus
}
#endif
#endif  // S6_CAUSAL_CONV1D_H_
