// SPDX-License-Identifier: MIT
/*!
 * \file selection.h
 * \brief What makes the scan selective: delta, B and C of every token from its own activations.
 *
 *     dt, B, C = W_x u        delta = W_dt dt
 *
 * (Gu and Dao 2023, section 3.2: s_B, s_C and s_delta.) Both products in one call, for the smallest
 * models, where each alone is too small to fill a GPU and dt would pass through memory between
 * them. Sums are float32; dt is rounded to float16 between the products, as all outputs are. The
 * bias and softplus of delta are the scan's. Call rules as in selective_scan.h.
 */
#ifndef S6_SELECTION_H_
#define S6_SELECTION_H_

#include "s6/types.h"

#ifdef __cplusplus
extern "C" {
#endif

#define S6_SELECTION_STATE 16          //!< The n it takes.
#define S6_SELECTION_RANK_MULTIPLE 16  //!< r must be a multiple of this,
#define S6_SELECTION_MAX_RANK 48       //!< and at most this;
#define S6_SELECTION_CHANNELS 128      //!< d a multiple of this.

typedef struct S6Selection {
  size_t struct_size;  //!< sizeof(S6Selection).
  int32_t tokens;      //!< May be 0.
  int32_t d;           //!< Channels.
  int32_t r;           //!< Rank of delta.
  int32_t n;           //!< State of a channel.

  const void* u;        //!< float16 [tokens, d]
  const void* x_proj;   //!< float16 [r + 2 n, d]: W_x, rows of dt, then B, then C.
  const void* dt_proj;  //!< float16 [d, r]: W_dt.
  void* delta;          //!< float16 [tokens, d]
  void *B, *C;          //!< float16 [tokens, n]
} S6Selection;

//! Refuses on the host what the call would refuse; the call begins with it.
S6_API S6Status s6_selection_check(const S6Selection* problem);
S6_API S6Status s6_selection(const S6Selection* problem, S6Stream stream);

#ifdef __cplusplus
}
#endif
#endif  // S6_SELECTION_H_
