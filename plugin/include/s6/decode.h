// SPDX-License-Identifier: MIT
/*!
 * \file decode.h
 * \brief One token through a whole Mamba: blocks, final norm, head, greedy choice, in one launch.
 *
 *     x    = embedding[token]                              (or x as given)
 *     per block:
 *       u, z = in_proj(rms_norm(x) w);   u = silu(conv(u))
 *       dt, B, C = x_proj(u);            step = softplus(dt_proj(dt) + bias)
 *       h    = exp(step A) h + step u B; y = (C h + D u) silu(z)
 *       x   += out_proj(y)
 *     logits = head(rms_norm(x) w);      next = argmax(logits)
 *
 * Sizes: b texts, m model width, d inner channels, n state (16), k convolution width (2 to 4),
 * r rank of the step size. Residual, state, convolution and every sum are float32; what goes into a
 * large product is rounded to float16 first, or, of one text, to two float16 that add up to it or,
 * where it meets codes, to 22 bits of the largest value. Residuals and gated outputs travel with 22
 * bits. Call rules as in selective_scan.h; in addition the
 * call needs every multiprocessor of its stream to itself while it runs, because its blocks wait
 * for each other.
 */
#ifndef S6_DECODE_H_
#define S6_DECODE_H_

#include "s6/types.h"

#ifdef __cplusplus
extern "C" {
#endif

//! Most texts one call decodes.
#define S6_DECODE_MAX_BATCH 8

//! A weight matrix [rows, columns] of every block; or the one of embedding or head.
typedef struct S6Matrix {
  //! 16: float16 [rows, columns]. 8, 4: int32 words [rows, columns * bits / 32], codes in ascending
  //! bit positions; a weight is (code - 2^(bits-1)) * scale.
  int32_t bits;
  int32_t group_size;   //!< Columns that share a scale; 0 for 16 bits.
  const void* data;     //!< Of the first block, 16-byte aligned.
  const void* scales;   //!< float16 [columns / group_size, rows] (groups first); null for 16 bits.
  int64_t layer_bytes;  //!< From a block's data to the next block's.
  int64_t scales_layer_bytes;
} S6Matrix;

//! A float32 vector or small table of every block.
typedef struct S6Vector {
  const float* data;    //!< Of the first block, 16-byte aligned.
  int64_t layer_bytes;  //!< From a block's to the next block's.
} S6Vector;

typedef struct S6Decode {
  size_t struct_size;  //!< sizeof(S6Decode).
  int32_t b;           //!< 1 to S6_DECODE_MAX_BATCH.
  int32_t m, d, n, k, r;
  int32_t layers;
  int32_t vocab;       //!< Tokens that may be chosen, the first rows of the head.
  int32_t vocab_rows;  //!< Rows of embedding and head, a multiple of 8.
  int32_t sm_count;    //!< Multiprocessors of the stream; 0 asks the device.
  float norm_eps;
  float mixer_norm_eps;  //!< Above 0: weightless RMS norms on dt, B and C (Falcon-Mamba).

  S6Matrix embedding;       //!< [vocab_rows, m]; data null: x is given.
  S6Matrix in_proj;         //!< [2 d, m], the u half first.
  S6Matrix x_proj;          //!< [r + 2 n, d]
  S6Matrix dt_proj;         //!< [d, r]
  S6Matrix out_proj;        //!< [m, d]
  S6Matrix head;            //!< [vocab_rows, m]; data null: no head, y is wanted.
  S6Vector norm;            //!< [m]
  S6Vector conv_weight;     //!< [k, d]
  S6Vector conv_bias;       //!< [d]
  S6Vector dt_bias;         //!< [d]
  S6Vector A;               //!< [n, d], -exp(A_log)
  S6Vector D;               //!< [d]
  const float* final_norm;  //!< [m]; needed with a head.

  //! [b]; needed with an embedding. May be next_ids. An id outside the table is a row of zeros.
  const int32_t* token_ids;
  const float* x;     //!< [b, m]; needed without an embedding.
  float* y;           //!< [b, m] the residual after the last block, or null.
  float* conv_state;  //!< [layers, b, k-1, d], read and written in place.
  float* ssm_state;   //!< [layers, b, n, d], read and written in place.
  float* logits;      //!< [b, vocab] or null: not wanted.
  int32_t* next_ids;  //!< [b] the greedy choice, or null.
  //! s6_decode_workspace_bytes, zeroed once before its first call and never written by others.
  void* workspace;
} S6Decode;

//! Checks a problem on the host, without a device.
S6_API S6Status s6_decode_check(const S6Decode* problem);

//! Bytes of the workspace: depends on sizes alone. 0 for a problem that the check refuses.
S6_API size_t s6_decode_workspace_bytes(const S6Decode* problem);

/*!
 * Most texts, up to S6_DECODE_MAX_BATCH, that a call takes where a block may have so many bytes of
 * shared memory and the problem's sm_count, above 0, is the device's: the more texts, the more it
 * needs. 0: none, or no problem of these. Depends on sizes and precisions alone; whether it is one
 * that s6_decode takes, s6_decode_check says.
 */
S6_API int32_t s6_decode_most_texts(const S6Decode* problem, int32_t shared_bytes);

//! Runs one token of each text.
S6_API S6Status s6_decode(const S6Decode* problem, S6Stream stream);

#ifdef __cplusplus
}
#endif
#endif  // S6_DECODE_H_
