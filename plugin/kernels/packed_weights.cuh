// SPDX-License-Identifier: MIT
/*!
 * \file packed_weights.cuh
 * \brief Eight neighbouring weights of a row as float16: read as they lie, or unpacked and scaled.
 *
 * Format: prefill.h. A code becomes a float16 without a conversion: set below the exponent of 1024
 * it reads 1024 + code, and subtracting 1024 plus the zero point is exact. The product with the
 * scale is rounded once.
 */
#pragma once

#include <cuda_fp16.h>

#include <cstdint>

namespace s6 {

//! Eight float16 values.
struct alignas(16) EightHalves {
  __half2 at[4];
};

__device__ __forceinline__ __half2 scaledPair(uint32_t biased, uint32_t offset, __half2 scale) {
  const __half2 code = reinterpret_cast<const __half2&>(biased);
  const __half2 zero = reinterpret_cast<const __half2&>(offset);
  return __hmul2(__hsub2(code, zero), scale);
}

//! Eight 8-bit codes in two words.
__device__ __forceinline__ EightHalves unpack8(uint2 words, __half scale) {
  constexpr uint32_t kExponent = 0x64646464u;  // High byte of 1024 in float16.
  constexpr uint32_t kOffset = 0x64806480u;    // 1024 + 128.
  const __half2 both = __half2half2(scale);
  return {{scaledPair(__byte_perm(words.x, kExponent, 0x4140), kOffset, both),
           scaledPair(__byte_perm(words.x, kExponent, 0x4342), kOffset, both),
           scaledPair(__byte_perm(words.y, kExponent, 0x4140), kOffset, both),
           scaledPair(__byte_perm(words.y, kExponent, 0x4342), kOffset, both)}};
}

//! Eight 4-bit codes in one word.
__device__ __forceinline__ EightHalves unpack4(uint32_t word, __half scale) {
  constexpr uint32_t kCodes = 0x000f000fu;     // Codes i and i + 4 of the word shifted by 4 i.
  constexpr uint32_t kExponent = 0x64006400u;  // 1024 in float16.
  constexpr uint32_t kOffset = 0x64086408u;    // 1024 + 8.
  const __half2 both = __half2half2(scale);
  uint32_t apart[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) apart[i] = ((word >> (4 * i)) & kCodes) | kExponent;
  return {{scaledPair(__byte_perm(apart[0], apart[1], 0x5410), kOffset, both),
           scaledPair(__byte_perm(apart[2], apart[3], 0x5410), kOffset, both),
           scaledPair(__byte_perm(apart[0], apart[1], 0x7632), kOffset, both),
           scaledPair(__byte_perm(apart[2], apart[3], 0x7632), kOffset, both)}};
}

//! Weights 8 i to 8 i + 7 of a row that begins at `row`.
template <int kBits>
__device__ __forceinline__ EightHalves loadEight(const void* row, int64_t i, __half scale) {
  static_assert(kBits == 16 || kBits == 8 || kBits == 4, "the widths of a bundle");
  if constexpr (kBits == 16) {
    return static_cast<const EightHalves*>(row)[i];
  } else if constexpr (kBits == 8) {
    return unpack8(static_cast<const uint2*>(row)[i], scale);
  } else {
    return unpack4(static_cast<const uint32_t*>(row)[i], scale);
  }
}

}  // namespace s6
