// SPDX-License-Identifier: MIT
/*!
 * \file scan_elements.cuh
 * \brief The elementwise phases of the tiled scan: prepare before it, finish after it.
 *
 * Equations, tiles and the order of the phases: scan_tile.cuh. Threads are dealt channels and
 * tokens by ElementMap; shared memory and barriers belong to the caller.
 */
#pragma once

#include "scan_tile.cuh"

namespace s6 {

//! Two or four consecutive 16-bit values.
template <typename T, int kCount>
__device__ __forceinline__ void loadHalves(float (&out)[kCount], const uint16_t* from) {
  static_assert(kCount == 2 || kCount == 4, "4 or 8 bytes");
  uint32_t bits[kCount / 2];
  if constexpr (kCount == 4) {
    const uint2 v = *reinterpret_cast<const uint2*>(from);
    bits[0] = v.x, bits[1] = v.y;
  } else {
    bits[0] = *reinterpret_cast<const uint32_t*>(from);
  }
#pragma unroll
  for (int i = 0; i < kCount / 2; ++i) {
    const float2 pair = unpackPair<T>(bits[i]);
    out[2 * i] = pair.x, out[2 * i + 1] = pair.y;
  }
}

//! How the elementwise phases deal a tile to kThreads threads: kSpan neighbouring channels of one
//! token at a time, the same channels in every step.
template <typename Shape, int kThreads>
struct ElementMap {
  static constexpr int kElements = Shape::kChannels * Shape::kTokens;
  static constexpr int kSpan = kElements >= 4 * kThreads ? 4 : 2;
  static constexpr int kSpansPerRow = Shape::kChannels / kSpan;
  static constexpr int kTokenStep = kThreads / kSpansPerRow;
  static constexpr int kSteps = Shape::kTokens / kTokenStep;
  static_assert(kThreads % kSpansPerRow == 0 && Shape::kTokens % kTokenStep == 0, "even deal");
};

/*!
 * dt and dt u of a tile, and B and C in fp32. Returns whether some |dt| of this thread leaves the
 * range of the polynomial.
 */
template <typename T, typename Shape, int kThreads>
__device__ __forceinline__ bool prepareTile(const RawTile<Shape>& raw, PreparedTile<Shape>& out,
                                            const ChannelConstants<Shape>& constants,
                                            bool with_softplus, int tokens, int thread) {
  using Map = ElementMap<Shape, kThreads>;
  constexpr int kSpan = Map::kSpan;
  const int column = kSpan * (thread % Map::kSpansPerRow);
  const int first = thread / Map::kSpansPerRow;
  float bias[kSpan], limit[kSpan];
  loadFloats(bias, &constants.bias[column]);
  loadFloats(limit, &constants.limit[column]);
  // B and C: pairs of states, dealt over the threads; a thread's pair is the same in every step.
  constexpr int kPairs = Shape::kTokens * kTileState;  // Of B and of C together.
  constexpr int kPairSteps = (kPairs + kThreads - 1) / kThreads;
  static_assert(kThreads % kTileState == 0, "one pair of columns a thread");
  const int state = 2 * (thread % (kTileState / 2));
  const bool is_c = thread % kTileState >= kTileState / 2;
  const int narrow_token = thread / kTileState;
  const uint16_t* from = is_c ? &raw.C[narrow_token][state] : &raw.B[narrow_token][state];
  float* to = &out.BC[narrow_token][state / Shape::kLaneStates]
                     [state % Shape::kLaneStates + (is_c ? Shape::kLaneStates : 0)];

  // All loads before the first store, so that none waits behind another element's arithmetic.
  float dt[Map::kSteps][kSpan], u[Map::kSteps][kSpan], pairs[kPairSteps][2];
#pragma unroll
  for (int step = 0; step < Map::kSteps; ++step) {
    loadHalves<T>(dt[step], &raw.delta[step * Map::kTokenStep + first][column]);
    loadHalves<T>(u[step], &raw.u[step * Map::kTokenStep + first][column]);
  }
#pragma unroll
  for (int i = 0; i < kPairSteps; ++i) {
    if (kPairs % kThreads == 0 || thread + i * kThreads < kPairs) {
      loadHalves<T>(pairs[i], from + i * kThreads);
    }
  }
  bool beyond = false;
#pragma unroll
  for (int step = 0; step < Map::kSteps; ++step) {
#pragma unroll
    for (int i = 0; i < kSpan; ++i) dt[step][i] += bias[i];
  }
  if (with_softplus) {
#pragma unroll
    for (int step = 0; step < Map::kSteps; ++step) {
#pragma unroll
      for (int i = 0; i < kSpan; ++i) dt[step][i] = softplusFast(dt[step][i]);
    }
  }
  // Tokens past the end must leave the state alone: dt = 0 decays by 2^0 = 1 and adds 0.
  if (tokens < Shape::kTokens) {
#pragma unroll
    for (int step = 0; step < Map::kSteps; ++step) {
#pragma unroll
      for (int i = 0; i < kSpan; ++i) {
        if (step * Map::kTokenStep + first >= tokens) dt[step][i] = 0.0f;
      }
    }
  }
#pragma unroll
  for (int step = 0; step < Map::kSteps; ++step) {
    const int token = step * Map::kTokenStep + first;
#pragma unroll
    for (int i = 0; i < kSpan; ++i) beyond |= fabsf(dt[step][i]) > limit[i];
#pragma unroll
    for (int i = 0; i < kSpan; i += 2) {
      *reinterpret_cast<float4*>(&out.dt[token][column + i]) = make_float4(
          dt[step][i], dt[step][i] * u[step][i], dt[step][i + 1], dt[step][i + 1] * u[step][i + 1]);
    }
  }
#pragma unroll
  for (int i = 0; i < kPairSteps; ++i) {
    if (kPairs % kThreads == 0 || thread + i * kThreads < kPairs) {
      *reinterpret_cast<float2*>(to + 2 * i * kThreads) = make_float2(pairs[i][0], pairs[i][1]);
    }
  }
  return beyond;
}

//! Skip, gate and store of one tile, of which `tokens` exist.
template <typename T, typename Shape, int kThreads>
__device__ __forceinline__ void finishTile(const SumTile<Shape>& sums, const RawTile<Shape>& raw,
                                           const ChannelConstants<Shape>& constants,
                                           const ScanArgs& args, int64_t row, int first_channel,
                                           int first_token, int tokens, int thread) {
  using Map = ElementMap<Shape, kThreads>;
  constexpr int kSpan = Map::kSpan;
  const int column = kSpan * (thread % Map::kSpansPerRow);
  const int first = thread / Map::kSpansPerRow;
  float skip[kSpan];
  loadFloats(skip, &constants.skip[column]);
  const bool exists = first_channel + column < args.d;
  uint16_t* y = static_cast<uint16_t*>(args.y) + row * args.y_stride.batch +
                (first_token + first) * args.y_stride.row + first_channel + column;
  float u[Map::kSteps][kSpan], z[Map::kSteps][kSpan], out[Map::kSteps][kSpan];
#pragma unroll
  for (int step = 0; step < Map::kSteps; ++step) {
    const int token = step * Map::kTokenStep + first;
    loadHalves<T>(u[step], &raw.u[token][column]);
    loadHalves<T>(z[step], &raw.z[token][column]);  // Not used without a gate.
    float parts[Shape::kPartials][kSpan];
#pragma unroll
    for (int j = 0; j < Shape::kPartials; ++j) loadFloats(parts[j], &sums.sum[token][j][column]);
    // As a tree, so that the additions are not one chain.
#pragma unroll
    for (int width = Shape::kPartials / 2; width > 0; width /= 2) {
#pragma unroll
      for (int j = 0; j < width; ++j) {
#pragma unroll
        for (int i = 0; i < kSpan; ++i) parts[j][i] += parts[j + width][i];
      }
    }
#pragma unroll
    for (int i = 0; i < kSpan; ++i) out[step][i] = parts[0][i];
  }
#pragma unroll
  for (int step = 0; step < Map::kSteps; ++step) {
#pragma unroll
    for (int i = 0; i < kSpan; ++i) out[step][i] = fmaf(skip[i], u[step][i], out[step][i]);
  }
  if (args.z != nullptr) {
#pragma unroll
    for (int step = 0; step < Map::kSteps; ++step) {
#pragma unroll
      for (int i = 0; i < kSpan; ++i) out[step][i] *= siluFast(z[step][i]);
    }
  }
#pragma unroll
  for (int step = 0; step < Map::kSteps; ++step) {
    if (exists && step * Map::kTokenStep + first < tokens) {
      if constexpr (kSpan == 4) {
        *reinterpret_cast<uint2*>(y) = make_uint2(packPair<T>(out[step][0], out[step][1]),
                                                  packPair<T>(out[step][2], out[step][3]));
      } else {
        *reinterpret_cast<uint32_t*>(y) = packPair<T>(out[step][0], out[step][1]);
      }
    }
    y += Map::kTokenStep * args.y_stride.row;
  }
}

//! Tokens past a short row's end are written as zero.
template <typename Shape, int kThreads>
__device__ __forceinline__ void clearRest(const ScanArgs& args, int64_t row, int first_channel,
                                          int length, int thread) {
  constexpr int kPairs = Shape::kChannels / 2;
  static_assert(kThreads % kPairs == 0, "whole rows a step");
  const int channel = first_channel + 2 * (thread % kPairs);
  if (channel >= args.d) return;
  uint16_t* y = static_cast<uint16_t*>(args.y) + row * args.y_stride.batch + channel;
  for (int64_t t = length + thread / kPairs; t < args.l; t += kThreads / kPairs) {
    *reinterpret_cast<uint32_t*>(y + t * args.y_stride.row) = 0u;
  }
}

}  // namespace s6
