// SPDX-License-Identifier: MIT
/*!
 * \file quant_linear.h
 * \brief The product of a few rows of activations with a matrix of 16, 8 or 4 bits.
 *
 *     y[t] = W x[t]   or   y[t] += W x[t]
 *
 * Reads the weights once and as they are stored; for more rows than a few, unpack them (prefill.h)
 * and use a library for large products. A weight is rounded to float16 after scaling, as there; sums
 * are float32 and do not depend on the number of rows. Packed matrices: see prefill.h. Call rules as
 * in selective_scan.h.
 */
#ifndef S6_QUANT_LINEAR_H_
#define S6_QUANT_LINEAR_H_

#include "s6/types.h"

#ifdef __cplusplus
extern "C" {
#endif

//! Most rows of activations.
#define S6_QUANT_LINEAR_MAX_TOKENS 8

typedef struct S6QuantLinear {
  size_t struct_size;  //!< sizeof(S6QuantLinear).
  int32_t tokens;      //!< Rows of x and y, up to S6_QUANT_LINEAR_MAX_TOKENS; may be 0.
  int32_t rows;        //!< Outputs.
  int32_t columns;     //!< Inputs, a multiple of 8.
  int32_t bits;        //!< 16, 8 or 4.
  int32_t group_size;  //!< Columns that share a scale, a multiple of 8; 0 for 16 bits.
  S6DataType y_dtype;  //!< S6_FLOAT16 or S6_FLOAT32.
  int32_t add;         //!< Non-zero: y is added to; needs S6_FLOAT32.

  const void* weight;   //!< float16 [rows, columns], or words.
  const void* scales;   //!< float16 [columns / group_size, scale_group]; null for 16 bits.
  const void* x;        //!< float16 [tokens, columns]
  void* y;              //!< [tokens, rows]
  int64_t scale_group;  //!< Elements from one group's scales to the next group's; 0 means rows.
  int64_t x_row;        //!< Elements from one row of x to the next; 0 means columns.
  int64_t y_row;        //!< Elements from one row of y to the next; 0 means rows.
} S6QuantLinear;

//! Checks a problem on the host, without a device.
S6_API S6Status s6_quant_linear_check(const S6QuantLinear* problem);

//! Runs the product.
S6_API S6Status s6_quant_linear(const S6QuantLinear* problem, S6Stream stream);

#ifdef __cplusplus
}
#endif
#endif  // S6_QUANT_LINEAR_H_
