// SPDX-License-Identifier: MIT
/*!
 * \file prefill.h
 * \brief What a prefill does around its matrix products, convolutions and scans.
 *
 * Embedding rows, norms of the residual stream and of the mixer, packed matrices back to float16,
 * and states between the float32 of a step and the float16 of a stretch. Same call rules as the
 * scan: see selective_scan.h. Rows of every half-precision tensor start at multiples of 16 bytes.
 *
 * Packed matrices are those of decode.h: int32 words [rows, columns * bits / 32] that hold codes in
 * ascending bit positions; a weight is (code - 2^(bits-1)) * scale, and scales lie groups first.
 */
#ifndef S6_PREFILL_H_
#define S6_PREFILL_H_

#include "s6/types.h"

#ifdef __cplusplus
extern "C" {
#endif

//! Widest residual stream that the norm accepts.
#define S6_NORM_MAX_WIDTH 16384

//! x[t] = table[token_ids[t]], widened to float32.
typedef struct S6EmbeddingRows {
  size_t struct_size;  //!< sizeof(S6EmbeddingRows).
  int32_t tokens;      //!< May be 0.
  int32_t m;           //!< Width of a row, a multiple of 8.
  int32_t vocab_rows;  //!< Rows of the table.
  int32_t bits;        //!< 16, 8 or 4.
  int32_t group_size;  //!< Columns that share a scale, a multiple of 8; 0 for 16 bits.

  const void* table;         //!< float16 [vocab_rows, m], or words.
  const void* scales;        //!< float16 [m / group_size, vocab_rows]; null for 16 bits.
  const int32_t* token_ids;  //!< [tokens]; an id outside the table gives a row of zeros.
  float* x;                  //!< [tokens, m]
} S6EmbeddingRows;

//! sum = x + delta (x alone without delta), then y = sum / rms(sum) * weight.
typedef struct S6AddRmsNorm {
  size_t struct_size;  //!< sizeof(S6AddRmsNorm).
  int32_t rows;        //!< May be 0.
  int32_t m;           //!< Width of a row, a multiple of 8, at most S6_NORM_MAX_WIDTH.
  float eps;           //!< Added to the mean square.

  const float* x;       //!< Residual.
  const void* delta;    //!< float16 [rows, m] or null.
  const float* weight;  //!< [m]
  float* sum;           //!< [rows, m]; needed with delta, else may be null. May be a dense x.
  void* y;              //!< float16 [rows, m], or int8 codes with y_scales.
  int64_t x_row;        //!< Elements from one row of x to the next; 0 means m.
  float* y_scales;      //!< [m / S6_INT8_GROUP, rows] as in int8_linear.h, or null.
} S6AddRmsNorm;

//! Weightless RMS norms of the slices dt [r], B [n] and C [n] of each row, in place (Falcon-Mamba).
typedef struct S6SliceNorms {
  size_t struct_size;  //!< sizeof(S6SliceNorms).
  int32_t rows;        //!< May be 0.
  int32_t r, n;
  float eps;

  void* x;        //!< float16 [rows, r + 2 n]
  int64_t x_row;  //!< Elements from one row to the next; 0 means r + 2 n.
} S6SliceNorms;

//! A packed matrix, or some rows of one, as float16.
typedef struct S6Dequantise {
  size_t struct_size;  //!< sizeof(S6Dequantise).
  int32_t rows;        //!< May be 0.
  int32_t columns;     //!< A multiple of group_size.
  int32_t bits;        //!< 8 or 4.
  int32_t group_size;  //!< Columns that share a scale, a multiple of 8.

  const void* words;    //!< int32 [rows, columns * bits / 32]
  const void* scales;   //!< float16 [columns / group_size, rows]
  void* y;              //!< float16 [rows, columns]
  int64_t scale_group;  //!< Elements from one group's scales to the next group's; 0 means rows.
} S6Dequantise;

//! y = x in another type: float32 to float16, or back.
typedef struct S6Convert {
  size_t struct_size;  //!< sizeof(S6Convert).
  S6DataType from_dtype, to_dtype;
  int64_t count;  //!< Elements; may be 0.

  const void* x;  //!< [count]
  void* y;        //!< [count]; must not overlap x.
} S6Convert;

//! Each check refuses on the host what its call would refuse; the calls begin with it.
S6_API S6Status s6_embedding_rows_check(const S6EmbeddingRows* problem);
S6_API S6Status s6_embedding_rows(const S6EmbeddingRows* problem, S6Stream stream);
S6_API S6Status s6_add_rms_norm_check(const S6AddRmsNorm* problem);
S6_API S6Status s6_add_rms_norm(const S6AddRmsNorm* problem, S6Stream stream);
S6_API S6Status s6_slice_norms_check(const S6SliceNorms* problem);
S6_API S6Status s6_slice_norms(const S6SliceNorms* problem, S6Stream stream);
S6_API S6Status s6_dequantise_check(const S6Dequantise* problem);
S6_API S6Status s6_dequantise(const S6Dequantise* problem, S6Stream stream);
S6_API S6Status s6_convert_check(const S6Convert* problem);
S6_API S6Status s6_convert(const S6Convert* problem, S6Stream stream);

#ifdef __cplusplus
}
#endif
#endif  // S6_PREFILL_H_
