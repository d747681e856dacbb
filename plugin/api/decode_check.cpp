// SPDX-License-Identifier: MIT
#include <algorithm>
#include <initializer_list>

#include "decode_args.cuh"
#include "problem_checks.h"
#include "s6/decode.h"

namespace s6 {
namespace {

constexpr int kWordBytes = 16;  // Of a copy.

bool isPowerOfTwo(int value) { return value > 0 && (value & (value - 1)) == 0; }

/*!
 * \param least_group Fewest columns that may share a scale.
 * \param row_multiple Bytes of which a row must be a multiple.
 */
void requireMatrix(FirstFailure& check, const S6Matrix& matrix, int rows, int columns,
                   int least_group, int row_multiple) {
  check.require(matrix.bits == 16 || matrix.bits == 8 || matrix.bits == 4, S6_STATUS_BAD_DTYPE);
  check.requirePointer(matrix.data, kWordBytes);
  if (check.status() != S6_STATUS_OK) return;
  check.require(columns * matrix.bits / 8 % row_multiple == 0, S6_STATUS_BAD_SIZE);
  check.require(matrix.layer_bytes % kWordBytes == 0, S6_STATUS_MISALIGNED);
  if (matrix.bits == 16) return;
  check.requirePointer(matrix.scales, kWordBytes);
  check.require(matrix.scales_layer_bytes % kWordBytes == 0, S6_STATUS_MISALIGNED);
  check.require(rows % 2 == 0 && isPowerOfTwo(matrix.group_size) &&
                    matrix.group_size >= least_group && columns % matrix.group_size == 0,
                S6_STATUS_BAD_SIZE);
}

void requireVector(FirstFailure& check, const S6Vector& vector) {
  check.requirePointer(vector.data, kWordBytes);
  check.require(vector.layer_bytes % kWordBytes == 0, S6_STATUS_MISALIGNED);
}

}  // namespace
}  // namespace s6

extern "C" S6Status s6_decode_check(const S6Decode* problem) {
  if (problem == nullptr) return S6_STATUS_NULL_POINTER;
  const S6Decode& p = *problem;
  if (p.struct_size != sizeof(S6Decode)) return S6_STATUS_BAD_ABI;
  s6::FirstFailure check;
  check.require(p.b >= 1 && p.b <= S6_DECODE_MAX_BATCH && p.layers >= 1 && p.sm_count >= 0,
                S6_STATUS_BAD_SIZE);
  check.require(p.n == s6::kDecodeState && p.k >= 2 && p.k <= s6::kMaxConvPast + 1,
                S6_STATUS_BAD_SIZE);
  // Registers, thread counts and shared memory of the kernel: see kPairsPerThread, kWordPairs,
  // chunk_scale, ColumnShare and stageStepDigits.
  check.require(p.m > 0 && p.m % s6::kTileRows == 0 && p.m <= 4096, S6_STATUS_BAD_SIZE);
  check.require(p.d > 0 && p.d % s6::kTileRows == 0 && p.d <= 8192, S6_STATUS_BAD_SIZE);
  check.require(p.r > 0 && p.r % 8 == 0 && p.r <= std::min(256, p.d), S6_STATUS_BAD_SIZE);
  if (check.status() != S6_STATUS_OK) return check.status();

  s6::requireMatrix(check, p.in_proj, 2 * p.d, p.m, 64, 64);
  s6::requireMatrix(check, p.x_proj, p.r + 2 * p.n, p.d, 64, 16);
  s6::requireMatrix(check, p.dt_proj, p.d, p.r, 16, p.dt_proj.bits == 4 ? 8 : 16);
  s6::requireMatrix(check, p.out_proj, p.m, p.d, 64, 64);
  const int32_t bits = p.in_proj.bits;
  check.require(p.x_proj.bits == bits && p.dt_proj.bits == bits && p.out_proj.bits == bits,
                S6_STATUS_BAD_DTYPE);
  check.require(bits == 16 || p.r % 16 == 0, S6_STATUS_BAD_SIZE);
  for (const S6Vector* vector : {&p.norm, &p.conv_weight, &p.conv_bias, &p.dt_bias, &p.A, &p.D}) {
    s6::requireVector(check, *vector);
  }
  if (p.embedding.data != nullptr || p.head.data != nullptr) {
    check.require(p.vocab_rows > 0 && p.vocab_rows % s6::kTileRows == 0, S6_STATUS_BAD_SIZE);
    check.require(p.vocab > 0 && p.vocab <= p.vocab_rows, S6_STATUS_BAD_SIZE);
  }
  if (p.embedding.data != nullptr) {
    s6::requireMatrix(check, p.embedding, p.vocab_rows, p.m, 2, 16);
    check.requirePointer(p.token_ids, 4);
  } else {
    check.requirePointer(p.x, 4);
  }
  if (p.head.data != nullptr) {
    s6::requireMatrix(check, p.head, p.vocab_rows, p.m, 64, 64);
    // The ring of float16 blocks has no room for scales.
    check.require(bits != 16 || p.head.bits == 16, S6_STATUS_BAD_DTYPE);
    check.requirePointer(p.final_norm, 16);
  } else {
    check.requirePointer(p.y, 4);
  }
  check.requireAligned(p.y, 4);
  check.requirePointer(p.conv_state, 4);
  check.requirePointer(p.ssm_state, 16);
  check.requireAligned(p.logits, 4);
  check.requireAligned(p.next_ids, 4);
  check.requirePointer(p.workspace, 128);
  return check.status();
}
