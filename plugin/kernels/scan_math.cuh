// SPDX-License-Identifier: MIT
/*!
 * \file scan_math.cuh
 * \brief Device arithmetic shared by the kernels: conversions, exp, softplus, SiLU.
 *
 * Every approximate instruction is named at its use; the build has no global fast-math.
 */
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "scan_polynomials.h"

namespace s6 {

constexpr float kLog2E = 1.4426950408889634f;

//! 2^x by the special-function unit: 2 ulp, results below 2^-126 become zero.
__device__ __forceinline__ float exp2Unit(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

//! 1/x by the special-function unit: 1 ulp.
__device__ __forceinline__ float reciprocalUnit(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

/*!
 * log(1 + exp(v)) = max(v, 0) + log1p(exp(-|v|)): no overflow and no threshold, 1e-5 relative at
 * both ends, and one special-function result instead of two.
 */
__device__ __forceinline__ float softplusFast(float v) {
  const float e = exp2Unit(-kLog2E * fabsf(v));
  return fmaxf(v, 0.0f) + log1pPolynomial(e);
}

//! The same at fp32 accuracy.
__device__ __forceinline__ float softplusAccurate(float v) {
  return fmaxf(v, 0.0f) + log1pf(expf(-fabsf(v)));
}

__device__ __forceinline__ float siluFast(float v) {
  return v * reciprocalUnit(1.0f + exp2Unit(-kLog2E * v));
}

/*!
 * The same with one special-function result instead of two: the sigmoid is right to 2.5e-4
 * absolute, which the scan's tolerance for 16-bit tensors allows (docs/lab_note_scan.md).
 */
__device__ __forceinline__ float siluByTanh(float v) {
  const float half = 0.5f * v;
  float t;
  asm("tanh.approx.f32 %0, %1;" : "=f"(t) : "f"(half));
  return fmaf(half, t, half);
}

__device__ __forceinline__ float siluAccurate(float v) { return v / (1.0f + expf(-v)); }

template <typename T>
__device__ __forceinline__ float toFloat(T v);
template <>
__device__ __forceinline__ float toFloat(float v) {
  return v;
}
template <>
__device__ __forceinline__ float toFloat(__half v) {
  return __half2float(v);
}
template <>
__device__ __forceinline__ float toFloat(__nv_bfloat16 v) {
  return __bfloat162float(v);
}

template <typename T>
__device__ __forceinline__ T fromFloat(float v);
template <>
__device__ __forceinline__ float fromFloat(float v) {
  return v;
}
template <>
__device__ __forceinline__ __half fromFloat(float v) {
  return __float2half_rn(v);
}
template <>
__device__ __forceinline__ __nv_bfloat16 fromFloat(float v) {
  return __float2bfloat16_rn(v);
}

//! Two packed 16-bit values; T names their type.
template <typename T>
__device__ __forceinline__ float2 unpackPair(uint32_t bits);
template <>
__device__ __forceinline__ float2 unpackPair<__half>(uint32_t bits) {
  const __half2 pair = reinterpret_cast<const __half2&>(bits);
  return __half22float2(pair);
}
template <>
__device__ __forceinline__ float2 unpackPair<__nv_bfloat16>(uint32_t bits) {
  return {__uint_as_float(bits << 16), __uint_as_float(bits & 0xffff0000u)};
}

template <typename T>
__device__ __forceinline__ uint32_t packPair(float low, float high);
template <>
__device__ __forceinline__ uint32_t packPair<__half>(float low, float high) {
  const __half2 pair = __floats2half2_rn(low, high);
  return reinterpret_cast<const uint32_t&>(pair);
}
template <>
__device__ __forceinline__ uint32_t packPair<__nv_bfloat16>(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return reinterpret_cast<const uint32_t&>(pair);
}

}  // namespace s6
