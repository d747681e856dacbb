// SPDX-License-Identifier: MIT
/*!
 * \file int8_linear.h
 * \brief The product of many rows of activations with a matrix of 8 bits, both as int8 (W8A8).
 *
 *     y[t] = W x[t]   or   y[t] += W x[t]
 *
 * Activations are rounded at run time: each row is cut into groups of S6_INT8_GROUP columns, and a
 * group's largest magnitude gets the code 127. So an outlier costs precision within its group only.
 * Codes are multiplied exactly, in int32 within a group, and groups are summed in float32. Packed
 * matrices: see prefill.h. Call rules as in selective_scan.h.
 */
#ifndef S6_INT8_LINEAR_H_
#define S6_INT8_LINEAR_H_

#include "s6/types.h"

#ifdef __cplusplus
extern "C" {
#endif

//! Columns of activations that share a scale.
#define S6_INT8_GROUP 128

//! x[t, i] is about codes[t, i] * scales[i / S6_INT8_GROUP, t]; see also the norm of prefill.h.
typedef struct S6QuantiseRows {
  size_t struct_size;  //!< sizeof(S6QuantiseRows).
  int32_t tokens;      //!< May be 0.
  int32_t columns;     //!< A multiple of S6_INT8_GROUP.

  const void* x;  //!< float16 [tokens, columns]
  void* codes;    //!< int8 [tokens, columns], from -127 to 127; must not overlap x.
  float* scales;  //!< [columns / S6_INT8_GROUP, tokens]
  int64_t x_row;  //!< Elements from one row of x to the next; 0 means columns.
} S6QuantiseRows;

typedef struct S6Int8Linear {
  size_t struct_size;  //!< sizeof(S6Int8Linear).
  int32_t tokens;      //!< Rows of codes and y; may be 0.
  int32_t rows;        //!< Outputs, a multiple of 8.
  int32_t columns;     //!< Inputs, a multiple of group_size.
  int32_t group_size;  //!< Columns of the matrix that share a scale, a multiple of S6_INT8_GROUP.
  S6DataType y_dtype;  //!< S6_FLOAT16 or S6_FLOAT32.
  int32_t add;         //!< Non-zero: y is added to; needs S6_FLOAT32.

  const void* weight;         //!< Words of 8-bit codes [rows, columns / 4].
  const void* weight_scales;  //!< float16 [columns / group_size, rows]
  const void* codes;          //!< int8 [tokens, columns]
  const float* scales;        //!< [columns / S6_INT8_GROUP, tokens]
  void* y;                    //!< [tokens, rows]
  int64_t y_row;              //!< Elements from one row of y to the next; 0 means rows.
} S6Int8Linear;

//! Each check refuses on the host what its call would refuse; the calls begin with it.
S6_API S6Status s6_quantise_rows_check(const S6QuantiseRows* problem);
S6_API S6Status s6_quantise_rows(const S6QuantiseRows* problem, S6Stream stream);
S6_API S6Status s6_int8_linear_check(const S6Int8Linear* problem);
S6_API S6Status s6_int8_linear(const S6Int8Linear* problem, S6Stream stream);

#ifdef __cplusplus
}
#endif
#endif  // S6_INT8_LINEAR_H_
