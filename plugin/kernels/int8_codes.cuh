// SPDX-License-Identifier: MIT
/*!
 * \file int8_codes.cuh
 * \brief Float values to int8 codes with one scale for a group of them: see int8_linear.h.
 */
#pragma once

#include <cstdint>

namespace s6 {

constexpr float kLargestCode = 127.0f;

//! The largest magnitude among adjoining kLanes lanes that each bring their own, in all of them.
template <int kLanes>
__device__ __forceinline__ float largestOfLanes(float magnitude) {
#pragma unroll
  for (int step = kLanes / 2; step > 0; step /= 2) {
    magnitude = fmaxf(magnitude, __shfl_xor_sync(~0u, magnitude, step));
  }
  return magnitude;
}

//! What to multiply values by, given the largest magnitude of their group; 0 for a group of zeros.
__device__ __forceinline__ float codesPerUnit(float largest) {
  return largest > 0.0f ? kLargestCode / largest : 0.0f;
}

//! Four codes in one word, the first in its lowest byte.
__device__ __forceinline__ uint32_t fourCodes(float4 value, float factor) {
  const auto code = [factor](float v) {
    return static_cast<uint32_t>(__float2int_rn(v * factor)) & 0xffu;
  };
  return code(value.x) | code(value.y) << 8 | code(value.z) << 16 | code(value.w) << 24;
}

}  // namespace s6
