// SPDX-License-Identifier: MIT
#include "s6/prefill.h"

#include "matrix_check.h"
#include "s6/int8_linear.h"

using s6::kVectorBytes;
using s6::kVectorHalves;

extern "C" S6Status s6_embedding_rows_check(const S6EmbeddingRows* problem) {
  if (problem == nullptr) return S6_STATUS_NULL_POINTER;
  const S6EmbeddingRows& p = *problem;
  if (p.struct_size != sizeof(S6EmbeddingRows)) return S6_STATUS_BAD_ABI;
  s6::FirstFailure check;
  check.require(p.tokens >= 0 && p.m > 0 && p.m % kVectorHalves == 0 && p.vocab_rows > 0,
                S6_STATUS_BAD_SIZE);
  s6::requireMatrix(check, p.table, p.scales, p.bits, p.group_size, p.m);
  if (p.tokens > 0) {
    check.requirePointer(p.token_ids, 4);
    check.requirePointer(p.x, kVectorBytes);
  }
  return check.status();
}

extern "C" S6Status s6_add_rms_norm_check(const S6AddRmsNorm* problem) {
  if (problem == nullptr) return S6_STATUS_NULL_POINTER;
  const S6AddRmsNorm& p = *problem;
  if (p.struct_size != sizeof(S6AddRmsNorm)) return S6_STATUS_BAD_ABI;
  s6::FirstFailure check;
  check.require(p.rows >= 0 && p.m > 0 && p.m % kVectorHalves == 0 && p.m <= S6_NORM_MAX_WIDTH,
                S6_STATUS_BAD_SIZE);
  check.require(p.eps >= 0.0f, S6_STATUS_BAD_SIZE);
  check.require(p.x_row == 0 || (p.x_row >= p.m && p.x_row % 4 == 0), S6_STATUS_BAD_STRIDE);
  check.requirePointer(p.weight, kVectorBytes);
  check.requireAligned(p.delta, kVectorBytes);
  check.requireAligned(p.sum, kVectorBytes);
  check.requireAligned(p.y_scales, 4);
  check.require(p.y_scales == nullptr || p.m % S6_INT8_GROUP == 0, S6_STATUS_BAD_SIZE);
  if (p.rows > 0) {
    check.requirePointer(p.x, kVectorBytes);
    check.requirePointer(p.y, kVectorBytes);
    check.require(p.delta == nullptr || p.sum != nullptr, S6_STATUS_NULL_POINTER);
    check.require(p.sum != p.x || p.x_row == 0 || p.x_row == p.m, S6_STATUS_BAD_STRIDE);
  }
  return check.status();
}

extern "C" S6Status s6_slice_norms_check(const S6SliceNorms* problem) {
  if (problem == nullptr) return S6_STATUS_NULL_POINTER;
  const S6SliceNorms& p = *problem;
  if (p.struct_size != sizeof(S6SliceNorms)) return S6_STATUS_BAD_ABI;
  s6::FirstFailure check;
  check.require(p.rows >= 0 && p.r > 0 && p.n > 0 && p.eps >= 0.0f, S6_STATUS_BAD_SIZE);
  check.require(p.x_row == 0 || p.x_row >= int64_t{p.r} + 2 * int64_t{p.n}, S6_STATUS_BAD_STRIDE);
  if (p.rows > 0) check.requirePointer(p.x, 2);
  return check.status();
}

extern "C" S6Status s6_dequantise_check(const S6Dequantise* problem) {
  if (problem == nullptr) return S6_STATUS_NULL_POINTER;
  const S6Dequantise& p = *problem;
  if (p.struct_size != sizeof(S6Dequantise)) return S6_STATUS_BAD_ABI;
  s6::FirstFailure check;
  check.require(p.rows >= 0 && p.columns > 0 && (p.bits == 8 || p.bits == 4), S6_STATUS_BAD_SIZE);
  check.require(p.scale_group == 0 || p.scale_group >= p.rows, S6_STATUS_BAD_STRIDE);
  if (p.rows > 0) check.requirePointer(p.y, kVectorBytes);
  s6::requireMatrix(check, p.words, p.scales, p.bits, p.group_size, p.columns);
  return check.status();
}

extern "C" S6Status s6_convert_check(const S6Convert* problem) {
  if (problem == nullptr) return S6_STATUS_NULL_POINTER;
  const S6Convert& p = *problem;
  if (p.struct_size != sizeof(S6Convert)) return S6_STATUS_BAD_ABI;
  const bool narrows = p.from_dtype == S6_FLOAT32 && p.to_dtype == S6_FLOAT16;
  const bool widens = p.from_dtype == S6_FLOAT16 && p.to_dtype == S6_FLOAT32;
  s6::FirstFailure check;
  check.require(narrows || widens, S6_STATUS_BAD_DTYPE);
  check.require(p.count >= 0, S6_STATUS_BAD_SIZE);
  if (p.count > 0) {
    check.requirePointer(p.x, s6::elementBytes(p.from_dtype));
    check.requirePointer(p.y, s6::elementBytes(p.to_dtype));
  }
  return check.status();
}
