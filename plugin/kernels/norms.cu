// SPDX-License-Identifier: MIT
/*!
 * \file norms.cu
 * \brief The norm before each block, with the residual's addition, and the mixer's slice norms.
 *
 * Equations and tensors: include/s6/prefill.h. Sums and the residual are float32; int8 codes are
 * made of what they give, without float16 in between.
 */
#include "s6/prefill.h"

#include <cuda_runtime_api.h>

#include "int8_codes.cuh"
#include "s6/int8_linear.h"
#include "scan_math.cuh"

namespace s6 {
namespace {

constexpr int kWarp = 32;
constexpr int kNormThreads = 256;
constexpr int kFloats = 4;  // Of one 16-byte vector.

__device__ __forceinline__ float sumOfWarp(float value) {
#pragma unroll
  for (int step = kWarp / 2; step > 0; step /= 2) value += __shfl_xor_sync(~0u, value, step);
  return value;
}

//! The sum over a block of kNormThreads, the same bits in every thread.
__device__ __forceinline__ float sumOfBlock(float value) {
  __shared__ float of_warp[kNormThreads / kWarp];
  value = sumOfWarp(value);
  if (threadIdx.x % kWarp == 0) of_warp[threadIdx.x / kWarp] = value;
  __syncthreads();
  float sum = 0.0f;
#pragma unroll
  for (int warp = 0; warp < kNormThreads / kWarp; ++warp) sum += of_warp[warp];
  return sum;
}

static_assert(kWarp * kFloats == S6_INT8_GROUP, "what a warp holds at once is one group");

// A block is a row; a thread keeps kVectors vectors of it in registers, so x is read once.
template <int kVectors, bool kCodes>
__global__ void __launch_bounds__(kNormThreads) normKernel(const S6AddRmsNorm p, int64_t x_row) {
  const int64_t row = blockIdx.x;
  const int count = p.m / kFloats;
  // No __restrict__: the sum may be written over x.
  const float4* x = reinterpret_cast<const float4*>(p.x + row * x_row);
  float4* sum = p.sum == nullptr ? nullptr : reinterpret_cast<float4*>(p.sum) + row * count;
  const uint2* delta =
      p.delta == nullptr ? nullptr : static_cast<const uint2*>(p.delta) + row * count;
  float4 value[kVectors];
  float squares = 0.0f;
#pragma unroll
  for (int j = 0; j < kVectors; ++j) {
    const int i = threadIdx.x + j * kNormThreads;
    value[j] = i < count ? x[i] : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
  }
#pragma unroll
  for (int j = 0; j < kVectors; ++j) {
    const int i = threadIdx.x + j * kNormThreads;
    if (delta != nullptr && i < count) {
      const uint2 packed = delta[i];
      const float2 low = unpackPair<__half>(packed.x), high = unpackPair<__half>(packed.y);
      value[j].x += low.x, value[j].y += low.y, value[j].z += high.x, value[j].w += high.y;
    }
    if (sum != nullptr && i < count) sum[i] = value[j];
    squares = fmaf(value[j].x, value[j].x, squares);
    squares = fmaf(value[j].y, value[j].y, squares);
    squares = fmaf(value[j].z, value[j].z, squares);
    squares = fmaf(value[j].w, value[j].w, squares);
  }
  const float factor = rsqrtf(sumOfBlock(squares) / static_cast<float>(p.m) + p.eps);
#pragma unroll
  for (int j = 0; j < kVectors; ++j) {
    const int i = threadIdx.x + j * kNormThreads;
    if (i >= count) break;
    const float4 weight = reinterpret_cast<const float4*>(p.weight)[i];
    const float4 y = make_float4(value[j].x * factor * weight.x, value[j].y * factor * weight.y,
                                 value[j].z * factor * weight.z, value[j].w * factor * weight.w);
    if constexpr (kCodes) {
      const float largest = largestOfLanes<kWarp>(
          fmaxf(fmaxf(fabsf(y.x), fabsf(y.y)), fmaxf(fabsf(y.z), fabsf(y.w))));
      static_cast<uint32_t*>(p.y)[row * count + i] = fourCodes(y, codesPerUnit(largest));
      if (threadIdx.x % kWarp == 0) {
        p.y_scales[int64_t{i / kWarp} * p.rows + row] = largest / kLargestCode;
      }
    } else {
      static_cast<uint2*>(p.y)[row * count + i] =
          make_uint2(packPair<__half>(y.x, y.y), packPair<__half>(y.z, y.w));
    }
  }
}

template <int kVectors>
void launchNorm(const S6AddRmsNorm& p, int64_t x_row, cudaStream_t stream) {
  if (p.y_scales == nullptr) {
    normKernel<kVectors, false><<<p.rows, kNormThreads, 0, stream>>>(p, x_row);
  } else {
    normKernel<kVectors, true><<<p.rows, kNormThreads, 0, stream>>>(p, x_row);
  }
}

constexpr int kSliceRows = 8;  // Rows of a block, a warp each.

__device__ __forceinline__ void normSlice(__half* slice, int width, float eps) {
  float squares = 0.0f;
  for (int i = threadIdx.x; i < width; i += kWarp) {
    const float value = __half2float(slice[i]);
    squares = fmaf(value, value, squares);
  }
  const float factor = rsqrtf(sumOfWarp(squares) / static_cast<float>(width) + eps);
  for (int i = threadIdx.x; i < width; i += kWarp) {
    slice[i] = __float2half_rn(__half2float(slice[i]) * factor);
  }
}

__global__ void __launch_bounds__(kWarp* kSliceRows)
    sliceNormsKernel(const S6SliceNorms p, int64_t x_row) {
  const int64_t row = int64_t{blockIdx.x} * kSliceRows + threadIdx.y;
  if (row >= p.rows) return;
  __half* x = static_cast<__half*>(p.x) + row * x_row;
  normSlice(x, p.r, p.eps);
  normSlice(x + p.r, p.n, p.eps);
  normSlice(x + p.r + p.n, p.n, p.eps);
}

}  // namespace
}  // namespace s6

extern "C" S6Status s6_add_rms_norm(const S6AddRmsNorm* problem, S6Stream stream) {
  const S6Status status = s6_add_rms_norm_check(problem);
  if (status != S6_STATUS_OK || problem->rows == 0) return status;
  const S6AddRmsNorm& p = *problem;
  const int64_t x_row = p.x_row == 0 ? p.m : p.x_row;
  constexpr int kOneVector = s6::kNormThreads * s6::kFloats;
  if (p.m <= kOneVector) {
    s6::launchNorm<1>(p, x_row, stream);
  } else if (p.m <= 2 * kOneVector) {
    s6::launchNorm<2>(p, x_row, stream);
  } else if (p.m <= 4 * kOneVector) {
    s6::launchNorm<4>(p, x_row, stream);
  } else {
    static_assert(S6_NORM_MAX_WIDTH <= 16 * kOneVector, "the widest row fits the registers");
    s6::launchNorm<16>(p, x_row, stream);
  }
  return cudaGetLastError() == cudaSuccess ? S6_STATUS_OK : S6_STATUS_LAUNCH_FAILED;
}

extern "C" S6Status s6_slice_norms(const S6SliceNorms* problem, S6Stream stream) {
  const S6Status status = s6_slice_norms_check(problem);
  if (status != S6_STATUS_OK || problem->rows == 0) return status;
  const S6SliceNorms& p = *problem;
  const int64_t x_row = p.x_row == 0 ? int64_t{p.r} + 2 * int64_t{p.n} : p.x_row;
  const dim3 grid((p.rows + s6::kSliceRows - 1) / s6::kSliceRows);
  const dim3 block(s6::kWarp, s6::kSliceRows);
  s6::sliceNormsKernel<<<grid, block, 0, stream>>>(p, x_row);
  return cudaGetLastError() == cudaSuccess ? S6_STATUS_OK : S6_STATUS_LAUNCH_FAILED;
}
