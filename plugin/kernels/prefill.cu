// SPDX-License-Identifier: MIT
/*!
 * \file prefill.cu
 * \brief Embedding rows, dequantised matrices, and states between float32 and float16.
 *
 * Equations and tensors: include/s6/prefill.h. All three are bound by bytes: each element is read
 * once and written once, in vectors of 16 bytes where it is written.
 */
#include "s6/prefill.h"

#include <cuda_runtime_api.h>

#include "packed_weights.cuh"

namespace s6 {
namespace {

constexpr int kHalves = 8;  // Weights of one vector.

S6Status statusOfLaunch() {
  return cudaGetLastError() == cudaSuccess ? S6_STATUS_OK : S6_STATUS_LAUNCH_FAILED;
}

constexpr int kEmbeddingThreads = 128;

// A block is a token; its threads deal the row's vectors among them.
template <int kBits>
__global__ void __launch_bounds__(kEmbeddingThreads) embeddingKernel(const S6EmbeddingRows p) {
  const int64_t token = blockIdx.x;
  const int32_t id = p.token_ids[token];
  const bool exists = id >= 0 && id < p.vocab_rows;
  const char* row = static_cast<const char*>(p.table) + int64_t{id} * p.m * kBits / 8;
  const __half* scales = static_cast<const __half*>(p.scales);
  for (int i = threadIdx.x; i < p.m / kHalves; i += kEmbeddingThreads) {
    float2 wide[4] = {};
    if (exists) {
      __half scale{};
      if constexpr (kBits != 16) {
        scale = scales[int64_t{i * kHalves / p.group_size} * p.vocab_rows + id];
      }
      const EightHalves narrow = loadEight<kBits>(row, i, scale);
#pragma unroll
      for (int j = 0; j < 4; ++j) wide[j] = __half22float2(narrow.at[j]);
    }
    float4* to = reinterpret_cast<float4*>(p.x + token * p.m) + 2 * i;
    to[0] = make_float4(wide[0].x, wide[0].y, wide[1].x, wide[1].y);
    to[1] = make_float4(wide[2].x, wide[2].y, wide[3].x, wide[3].y);
  }
}

// A block is 16 rows, so that one sector of scales serves all of them, by 16 vectors of columns,
// several times: the loads of all turns are independent.
constexpr int kDequantiseRows = 16;
constexpr int kDequantiseVectors = 16;
constexpr int kDequantiseTurns = 4;

template <int kBits>
__global__ void __launch_bounds__(kDequantiseRows* kDequantiseVectors)
    dequantiseKernel(const S6Dequantise p, int64_t scale_group) {
  const int64_t row = int64_t{blockIdx.y} * kDequantiseRows + threadIdx.y;
  if (row >= p.rows) return;
  const char* words = static_cast<const char*>(p.words) + row * p.columns * kBits / 8;
  const __half* scales = static_cast<const __half*>(p.scales) + row;
  EightHalves* y = reinterpret_cast<EightHalves*>(static_cast<__half*>(p.y) + row * p.columns);
  const int first = blockIdx.x * kDequantiseVectors * kDequantiseTurns + threadIdx.x;
#pragma unroll
  for (int turn = 0; turn < kDequantiseTurns; ++turn) {
    const int i = first + turn * kDequantiseVectors;
    if (i >= p.columns / kHalves) return;
    const __half scale = scales[(i * kHalves / p.group_size) * scale_group];
    y[i] = loadEight<kBits>(words, i, scale);
  }
}

constexpr int kConvertThreads = 256;

template <typename From, typename To>
__global__ void __launch_bounds__(kConvertThreads)
    convertKernel(const From* __restrict__ x, To* __restrict__ y, int64_t count) {
  const int64_t i = int64_t{blockIdx.x} * kConvertThreads + threadIdx.x;
  if (i < count) y[i] = static_cast<To>(x[i]);
}

}  // namespace
}  // namespace s6

extern "C" S6Status s6_embedding_rows(const S6EmbeddingRows* problem, S6Stream stream) {
  const S6Status status = s6_embedding_rows_check(problem);
  if (status != S6_STATUS_OK || problem->tokens == 0) return status;
  const dim3 grid(problem->tokens), block(s6::kEmbeddingThreads);
  switch (problem->bits) {
    case 16:
      s6::embeddingKernel<16><<<grid, block, 0, stream>>>(*problem);
      break;
    case 8:
      s6::embeddingKernel<8><<<grid, block, 0, stream>>>(*problem);
      break;
    default:
      s6::embeddingKernel<4><<<grid, block, 0, stream>>>(*problem);
  }
  return s6::statusOfLaunch();
}

extern "C" S6Status s6_dequantise(const S6Dequantise* problem, S6Stream stream) {
  const S6Status status = s6_dequantise_check(problem);
  if (status != S6_STATUS_OK || problem->rows == 0) return status;
  const S6Dequantise& p = *problem;
  constexpr int kColumns = s6::kHalves * s6::kDequantiseVectors * s6::kDequantiseTurns;
  const int64_t row_blocks = (int64_t{p.rows} + s6::kDequantiseRows - 1) / s6::kDequantiseRows;
  if (row_blocks > 65535) return S6_STATUS_BAD_SIZE;  // A grid dimension of 16 bits.
  const dim3 grid((p.columns + kColumns - 1) / kColumns, static_cast<unsigned>(row_blocks));
  const dim3 block(s6::kDequantiseVectors, s6::kDequantiseRows);
  const int64_t scale_group = p.scale_group == 0 ? p.rows : p.scale_group;
  if (p.bits == 8) {
    s6::dequantiseKernel<8><<<grid, block, 0, stream>>>(p, scale_group);
  } else {
    s6::dequantiseKernel<4><<<grid, block, 0, stream>>>(p, scale_group);
  }
  return s6::statusOfLaunch();
}

extern "C" S6Status s6_convert(const S6Convert* problem, S6Stream stream) {
  const S6Status status = s6_convert_check(problem);
  if (status != S6_STATUS_OK || problem->count == 0) return status;
  const S6Convert& p = *problem;
  const int64_t blocks = (p.count + s6::kConvertThreads - 1) / s6::kConvertThreads;
  if (blocks > INT32_MAX) return S6_STATUS_BAD_SIZE;
  const dim3 grid(static_cast<unsigned>(blocks));
  if (p.from_dtype == S6_FLOAT32) {
    s6::convertKernel<<<grid, s6::kConvertThreads, 0, stream>>>(
        static_cast<const float*>(p.x), static_cast<__half*>(p.y), p.count);
  } else {
    s6::convertKernel<<<grid, s6::kConvertThreads, 0, stream>>>(
        static_cast<const __half*>(p.x), static_cast<float*>(p.y), p.count);
  }
  return s6::statusOfLaunch();
}
