// SPDX-License-Identifier: MIT
/*!
 * \file selective_scan.h
 * \brief The S6 recurrence over a sequence, or over one token.
 *
 *     dt = softplus(delta + delta_bias)          (softplus only if delta_softplus)
 *     h  = exp(dt A) h + dt B u                  (zero-order hold on A, Euler on B)
 *     y  = (sum_n C h + D u) * z * sigmoid(z)    (the gate only if z is given)
 *
 * Calls check their arguments, enqueue on the stream and return. They never throw, allocate or
 * synchronise, and on any status but S6_STATUS_OK nothing was launched.
 */
#ifndef S6_SELECTIVE_SCAN_H_
#define S6_SELECTIVE_SCAN_H_

#include "s6/types.h"

#ifdef __cplusplus
extern "C" {
#endif

//! Largest state size n that the kernels accept.
#define S6_SCAN_MAX_STATE 256

//! Which kernel computes the scan. Auto is right for users; the others are for tests and benches.
typedef enum S6ScanVariant {
  S6_SCAN_AUTO = 0,
  S6_SCAN_GENERIC = 1,  //!< Any type, any n; compensated fp32 arithmetic for S6_FLOAT32.
  S6_SCAN_LANE = 2,     //!< n = 16, fp16/bf16: a lane is a channel; many channels an SM.
  S6_SCAN_RELAY = 3     //!< n = 16, fp16/bf16: warps take turns in time; few channels an SM.
} S6ScanVariant;

typedef struct S6SelectiveScan {
  size_t struct_size;      //!< sizeof(S6SelectiveScan), guards against a stale caller.
  S6DataType dtype;        //!< Of u, delta, z, B, C and y.
  int32_t b, l, d, n;      //!< Batch, length, channels, state size. b or l may be 0.
  int32_t delta_softplus;  //!< Non-zero: dt = softplus(delta + delta_bias).
  int32_t sm_count;        //!< Multiprocessors this stream may use; 0 asks the device.
  S6ScanVariant variant;

  const void* u;            //!< [b, l, d]
  const void* delta;        //!< [b, l, d]
  const float* A;           //!< [n, d], already -exp(A_log); must be <= 0.
  const void* B;            //!< [b, l, n]
  const void* C;            //!< [b, l, n]
  const float* D;           //!< [d] or null: no skip.
  const void* z;            //!< [b, l, d] or null: no gate.
  const float* delta_bias;  //!< [d] or null: zero.
  const float* state_in;    //!< [b, n, d] or null: zero.
  float* state_out;         //!< [b, n, d] or null: not wanted. May equal state_in.
  void* y;                  //!< [b, l, d]; must not overlap any input.
  //! [b] or null: row i has min(l, max(0, lengths[i])) tokens. Its state is the one after those
  //! tokens, and y beyond them is written as zero.
  const int32_t* lengths;

  //! Elements from one token to the next; 0 means dense (d, or n for B and C). Lets u and z be
  //! halves of one in_proj output, and B and C slices of one x_proj output.
  int64_t u_row, delta_row, z_row, B_row, C_row, y_row;
  //! Elements from one batch row to the next; 0 means l times the row stride.
  int64_t u_batch, delta_batch, z_batch, B_batch, C_batch, y_batch;
} S6SelectiveScan;

//! Checks a problem on the host, without a device. The launchers begin with the same check.
S6_API S6Status s6_selective_scan_check(const S6SelectiveScan* problem);

//! Runs the scan over the whole sequence.
S6_API S6Status s6_selective_scan(const S6SelectiveScan* problem, S6Stream stream);

//! Runs one token (l must be 1), reading and writing each state once; the decode path.
S6_API S6Status s6_selective_scan_step(const S6SelectiveScan* problem, S6Stream stream);

//! The variant that S6_SCAN_AUTO stands for; sm_count must be set (no device is asked).
S6_API S6ScanVariant s6_selective_scan_choose(const S6SelectiveScan* problem);

#ifdef __cplusplus
}
#endif
#endif  // S6_SELECTIVE_SCAN_H_
