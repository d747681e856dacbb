// SPDX-License-Identifier: MIT
/*!
 * \file int8_linear.cu
 * \brief int8 activations times int8 weights on the tensor cores, scales applied group by group.
 *
 * Equation and tensors: include/s6/int8_linear.h. A block computes kTileTokens x kTileRows outputs;
 * a round of its loop is one group of 128 columns, of which x and W each fill a tile of shared
 * memory. Four warps, two along each, own 32 x 32 outputs each. Tiles of 128 x 64 and 128 x 128
 * with larger shares of a warp were 5 and 17 % slower on an H200: fewer warps hide less latency.
 *
 * Shared memory: kStages stages, each refilled in the round after it was read; the one barrier of a
 * round separates the two. Rows of a tile are 128 bytes, their 16-byte chunks permuted so that the
 * eight rows that one ldmatrix reads lie in different banks.
 *
 * Numerics: within a group sums are exact, |sum| <= 128 * 128 * 127 < 2^21. The accumulators start
 * at the bits of 1.5 * 2^23, so that, read as float32, they are that plus the sum: no conversion is
 * needed, and since a float16 scale times 1.5 * 2^23 is exact too, one fused multiply-add gives
 * scale * sum rounded once. A second one applies the activations' scale and adds.
 *
 * Weights are codes with the zero point 128; flipping a code's top bit makes it an int8.
 *
 * Bytes: a block reads (kTileTokens + kTileRows) * columns; blocks that run together share
 * kTokenTiles tiles of tokens, which stay in the L2 cache while the weights pass once.
 * Limits: any sm_80 or later; the tensor cores are reached by mma.m16n8k32.
 */
#include <cuda_runtime_api.h>

#include "int8_codes.cuh"
#include "s6/int8_linear.h"
#include "scan_math.cuh"
#include "shared_memory.cuh"
#include "tensor_cores.cuh"

namespace s6 {
namespace {

constexpr int kWarp = 32;
constexpr int kGroup = S6_INT8_GROUP;
constexpr int kChunk = 16;  // Bytes of one copy, and of a row of an ldmatrix.

// --- float16 rows to codes ---

constexpr int kQuantiseTokens = 16;
constexpr int kQuantiseLanes = kGroup / 8;  // Eight halves a lane.

// A block is one group of some tokens, so that their scales adjoin.
__global__ void __launch_bounds__(kQuantiseTokens* kQuantiseLanes)
    quantiseKernel(const S6QuantiseRows p, int64_t x_row) {
  const int64_t token = int64_t{blockIdx.x} * kQuantiseTokens + threadIdx.y;
  const int column = blockIdx.y * kGroup + threadIdx.x * 8;
  uint4 halves{};
  if (token < p.tokens) {
    halves =
        *reinterpret_cast<const uint4*>(static_cast<const __half*>(p.x) + token * x_row + column);
  }
  const float2 pair[4] = {unpackPair<__half>(halves.x), unpackPair<__half>(halves.y),
                          unpackPair<__half>(halves.z), unpackPair<__half>(halves.w)};
  float largest = 0.0f;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    largest = fmaxf(largest, fmaxf(fabsf(pair[i].x), fabsf(pair[i].y)));
  }
  largest = largestOfLanes<kQuantiseLanes>(largest);
  if (token >= p.tokens) return;
  const float factor = codesPerUnit(largest);
  *reinterpret_cast<uint2*>(static_cast<int8_t*>(p.codes) + token * p.columns + column) =
      make_uint2(fourCodes(make_float4(pair[0].x, pair[0].y, pair[1].x, pair[1].y), factor),
                 fourCodes(make_float4(pair[2].x, pair[2].y, pair[3].x, pair[3].y), factor));
  if (threadIdx.x == 0) {
    p.scales[int64_t{blockIdx.y} * p.tokens + token] = largest / kLargestCode;
  }
}

// --- the product ---

constexpr int kTileTokens = 64;
constexpr int kTileRows = 64;
constexpr int kStages = 3;
constexpr int kWarpTokens = 32;
constexpr int kWarpRows = 32;
constexpr int kWarpsAlongRows = kTileRows / kWarpRows;
constexpr int kBlocksPerSm = 4;  // On sm_87 three fit its shared memory.
constexpr int kThreads = kWarp * (kTileTokens / kWarpTokens) * kWarpsAlongRows;
constexpr int kTokenTiles = 4;  // That blocks running together share.

constexpr int kTall = kWarpTokens / 16;  // Tiles of one mma along the tokens,
constexpr int kPairs = kWarpRows / 16;   // and pairs of them along the rows.
constexpr int kSteps = kGroup / 32;      // Of 32 columns.

constexpr uint32_t kMagicBits = 0x4b400000u;  // 1.5 * 2^23
constexpr float kMagic = 12582912.0f;
constexpr uint32_t kTopBits = 0x80808080u;

struct Stage {
  uint8_t x[kTileTokens * kGroup];
  uint8_t weight[kTileRows * kGroup];
  float x_scales[kTileTokens];
  __half weight_scales[kTileRows];
};
constexpr int kSharedBytes = kStages * sizeof(Stage);
static_assert(kSharedBytes <= 99 * 1024, "fits the smallest of sm_80 to sm_90");

//! Which 16-byte chunk of a row of x lies at place 0; rows r to r + 7 all differ.
__device__ __forceinline__ int turnOfToken(int row) { return row & 7; }

//! The same for the weights, whose rows are read as `dealtRow` deals them.
__device__ __forceinline__ int turnOfWeight(int row) { return (row & 1) | ((row >> 1) & 6); }

/*!
 * What a thread copies, group after group: one chunk of every kRowStep-th row of both tiles, and a
 * word of scales. Rows past the end repeat the last one: their results are not stored.
 */
class TileCopies {
 public:
  __device__ TileCopies(const S6Int8Linear& p, int first_token, int first_row)
      : rows_(p.rows), groups_of_scale_(p.group_size / kGroup) {
    const int row = threadIdx.x / kChunks, chunk = threadIdx.x % kChunks;
    x_place_ = row * kGroup + (chunk ^ turnOfToken(row)) * kChunk;
    weight_place_ = row * kGroup + (chunk ^ turnOfWeight(row)) * kChunk;
    const auto chunkOf = [&](const void* data, int64_t at) {
      return static_cast<const uint8_t*>(data) + at * p.columns + chunk * kChunk;
    };
#pragma unroll
    for (int i = 0; i < kXCopies; ++i) {
      x_[i] = chunkOf(p.codes, min(first_token + row + i * kRowStep, p.tokens - 1));
    }
#pragma unroll
    for (int i = 0; i < kWeightCopies; ++i) {
      weight_[i] = chunkOf(p.weight, min(first_row + row + i * kRowStep, p.rows - 1));
    }
    tokens_ = p.tokens;
    x_scale_ = p.scales + min(first_token + static_cast<int>(threadIdx.x), p.tokens - 1);
    scale_row_ = (kThreads - 1 - static_cast<int>(threadIdx.x)) * 2;
    weight_scale_ =
        static_cast<const __half*>(p.weight_scales) + min(first_row + scale_row_, p.rows - 2);
  }

  //! Starts those of the next group.
  __device__ void start(Stage& stage) {
#pragma unroll
    for (int i = 0; i < kXCopies; ++i) {
      copyAsync<16>(sharedAddress(stage.x + x_place_ + i * kRowStep * kGroup), x_[i]);
      x_[i] += kGroup;
    }
#pragma unroll
    for (int i = 0; i < kWeightCopies; ++i) {
      copyAsync<16>(sharedAddress(stage.weight + weight_place_ + i * kRowStep * kGroup),
                    weight_[i]);
      weight_[i] += kGroup;
    }
    if (threadIdx.x < kTileTokens)
      copyAsync<4>(sharedAddress(stage.x_scales + threadIdx.x), x_scale_);
    if (scale_row_ < kTileRows)
      copyAsync<4>(sharedAddress(stage.weight_scales + scale_row_), weight_scale_);
    x_scale_ += tokens_;
    if (++groups_done_ == groups_of_scale_) {
      groups_done_ = 0;
      weight_scale_ += rows_;
    }
  }

 private:
  static constexpr int kChunks = kGroup / kChunk;
  static constexpr int kRowStep = kThreads / kChunks;
  static constexpr int kXCopies = kTileTokens / kRowStep;
  static constexpr int kWeightCopies = kTileRows / kRowStep;
  static_assert(kRowStep % 16 == 0, "all rows of a thread are permuted alike");
  static_assert(kTileTokens <= kThreads && kTileRows <= 2 * kThreads, "a thread copies one word");

  const uint8_t *x_[kXCopies], *weight_[kWeightCopies];
  const float* x_scale_;
  const __half* weight_scale_;
  int x_place_, weight_place_, scale_row_, rows_, tokens_, groups_of_scale_, groups_done_ = 0;
};

struct Sums {
  float at[kTall][2 * kPairs][4];
};

//! Adds one group's products to a warp's sums.
__device__ __forceinline__ void addGroup(Sums& sums, const Stage& stage, int warp_token,
                                         int warp_row) {
  const int lane = threadIdx.x % kWarp;
  const int x_row = warp_token + lane % 16;
  const int tile = lane / 16, weight_row = warp_row + dealtRow(tile, lane % 8);
  const uint32_t x =
      sharedAddress(stage.x) + x_row * kGroup + ((lane / 16) ^ turnOfToken(x_row)) * kChunk;
  const uint32_t weight = sharedAddress(stage.weight) + weight_row * kGroup +
                          ((lane / 8 % 2) ^ turnOfWeight(weight_row)) * kChunk;
  const uint32_t magic[4] = {kMagicBits, kMagicBits, kMagicBits, kMagicBits};
  uint32_t products[kTall][2 * kPairs][4];
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
    // Chunk 2 * step of a row, or the next: the permutation is by exclusive or, so is the step.
    const int turn = 2 * step * kChunk;
    uint32_t a[kTall][4], b[kPairs][4];
#pragma unroll
    for (int i = 0; i < kTall; ++i) loadMatrices(a[i], (x ^ turn) + i * 16 * kGroup);
#pragma unroll
    for (int j = 0; j < kPairs; ++j) {
      loadMatrices(b[j], (weight ^ turn) + j * 16 * kGroup);
#pragma unroll
      for (uint32_t& codes : b[j]) codes ^= kTopBits;
    }
#pragma unroll
    for (int i = 0; i < kTall; ++i) {
#pragma unroll
      for (int j = 0; j < 2 * kPairs; ++j) {
        const uint32_t* of_tile = b[j / 2] + j % 2 * 2;
        if (step == 0) {
          multiplyAdd(products[i][j], a[i], of_tile, magic);
        } else {
          multiplyAdd(products[i][j], a[i], of_tile, products[i][j]);
        }
      }
    }
  }
  float scale[2 * kPairs][2], offset[2 * kPairs][2];
#pragma unroll
  for (int pair = 0; pair < kPairs; ++pair) {
    const uint2 four =
        *reinterpret_cast<const uint2*>(stage.weight_scales + warp_row + pair * 16 + lane % 4 * 4);
    const float2 two[2] = {unpackPair<__half>(four.x), unpackPair<__half>(four.y)};
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      scale[2 * pair + j][0] = two[j].x, scale[2 * pair + j][1] = two[j].y;
      offset[2 * pair + j][0] = -kMagic * two[j].x, offset[2 * pair + j][1] = -kMagic * two[j].y;
    }
  }
#pragma unroll
  for (int i = 0; i < kTall; ++i) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float x_scale = stage.x_scales[warp_token + i * 16 + half * 8 + lane / 4];
#pragma unroll
      for (int j = 0; j < 2 * kPairs; ++j) {
#pragma unroll
        for (int k = 0; k < 2; ++k) {
          const float biased = __uint_as_float(products[i][j][half * 2 + k]);
          float& sum = sums.at[i][j][half * 2 + k];
          sum = fmaf(fmaf(biased, scale[j][k], offset[j][k]), x_scale, sum);
        }
      }
    }
  }
}

//! Writes a warp's outputs, four adjoining rows of the matrix at a time.
template <bool kWide>
__device__ __forceinline__ void storeSums(const Sums& sums, const S6Int8Linear& p, int64_t y_row,
                                          int first_token, int first_row) {
  const int lane = threadIdx.x % kWarp;
#pragma unroll
  for (int i = 0; i < kTall; ++i) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int token = first_token + i * 16 + half * 8 + lane / 4;
      if (token >= p.tokens) continue;
#pragma unroll
      for (int pair = 0; pair < kPairs; ++pair) {
        const int row = first_row + pair * 16 + lane % 4 * 4;
        if (row >= p.rows) continue;
        const float* low = sums.at[i][2 * pair] + half * 2;
        const float* high = sums.at[i][2 * pair + 1] + half * 2;
        const int64_t at = token * y_row + row;
        if constexpr (kWide) {
          float4* y = reinterpret_cast<float4*>(static_cast<float*>(p.y) + at);
          float4 value = make_float4(low[0], low[1], high[0], high[1]);
          if (p.add != 0) {
            const float4 before = *y;
            value.x += before.x, value.y += before.y, value.z += before.z, value.w += before.w;
          }
          *y = value;
        } else {
          *reinterpret_cast<uint2*>(static_cast<__half*>(p.y) + at) =
              make_uint2(packPair<__half>(low[0], low[1]), packPair<__half>(high[0], high[1]));
        }
      }
    }
  }
}

template <bool kWide>
__global__ void __launch_bounds__(kThreads, kBlocksPerSm)
    int8LinearKernel(const S6Int8Linear p, int64_t y_row) {
  extern __shared__ __align__(128) unsigned char shared_bytes[];
  Stage* stages = reinterpret_cast<Stage*>(shared_bytes);
  const int first_token = (blockIdx.z * kTokenTiles + blockIdx.x) * kTileTokens;
  const int first_row = blockIdx.y * kTileRows;
  if (first_token >= p.tokens) return;
  const int warp = threadIdx.x / kWarp;
  const int warp_token = warp / kWarpsAlongRows * kWarpTokens;
  const int warp_row = warp % kWarpsAlongRows * kWarpRows;
  const int groups = p.columns / kGroup;
  TileCopies copies(p, first_token, first_row);
#pragma unroll
  for (int group = 0; group < kStages - 1; ++group) {
    if (group < groups) copies.start(stages[group]);
    commitCopies();
  }
  Sums sums{};
  int stage = 0;
  for (int group = 0; group < groups; ++group) {
    waitCopies<kStages - 2>();
    __syncthreads();
    if (group + kStages - 1 < groups) copies.start(stages[stage == 0 ? kStages - 1 : stage - 1]);
    commitCopies();
    addGroup(sums, stages[stage], warp_token, warp_row);
    stage = stage + 1 == kStages ? 0 : stage + 1;
  }
  storeSums<kWide>(sums, p, y_row, first_token + warp_token, first_row + warp_row);
}

template <bool kWide>
cudaError_t launchInt8Linear(const S6Int8Linear& p, cudaStream_t stream) {
  const cudaError_t error = cudaFuncSetAttribute(
      int8LinearKernel<kWide>, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes);
  if (error != cudaSuccess) return error;
  const int token_tiles = (p.tokens + kTileTokens - 1) / kTileTokens;
  const dim3 grid(kTokenTiles, (p.rows + kTileRows - 1) / kTileRows,
                  (token_tiles + kTokenTiles - 1) / kTokenTiles);
  const int64_t y_row = p.y_row == 0 ? p.rows : p.y_row;
  int8LinearKernel<kWide><<<grid, kThreads, kSharedBytes, stream>>>(p, y_row);
  return cudaGetLastError();
}

}  // namespace
}  // namespace s6

extern "C" S6Status s6_quantise_rows(const S6QuantiseRows* problem, S6Stream stream) {
  const S6Status status = s6_quantise_rows_check(problem);
  if (status != S6_STATUS_OK || problem->tokens == 0) return status;
  const S6QuantiseRows& p = *problem;
  const dim3 grid((p.tokens + s6::kQuantiseTokens - 1) / s6::kQuantiseTokens,
                  p.columns / s6::kGroup);
  const dim3 block(s6::kQuantiseLanes, s6::kQuantiseTokens);
  const int64_t x_row = p.x_row == 0 ? p.columns : p.x_row;
  s6::quantiseKernel<<<grid, block, 0, stream>>>(p, x_row);
  return cudaGetLastError() == cudaSuccess ? S6_STATUS_OK : S6_STATUS_LAUNCH_FAILED;
}

extern "C" S6Status s6_int8_linear(const S6Int8Linear* problem, S6Stream stream) {
  const S6Status status = s6_int8_linear_check(problem);
  if (status != S6_STATUS_OK || problem->tokens == 0) return status;
  const S6Int8Linear& p = *problem;
  const cudaError_t error = p.y_dtype == S6_FLOAT32 ? s6::launchInt8Linear<true>(p, stream)
                                                    : s6::launchInt8Linear<false>(p, stream);
  return error == cudaSuccess ? S6_STATUS_OK : S6_STATUS_LAUNCH_FAILED;
}
