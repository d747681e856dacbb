// SPDX-License-Identifier: MIT
//! \file decode_columns.cuh
//! \brief The end of the first phase: this block's part of x_proj, added to the sums of all blocks.
#pragma once

#include "decode_block.cuh"

namespace s6 {

template <int kBits, int kRows>
__device__ void DecodeBlock<kBits, kRows>::addColumnTiles() {
  forgetPlace();
  const ProductShare mine(args_, share(), warp_);
  constexpr int kColumns = 512 / kBits;
  const int before = kTileRows * share().pair - kColumns * mine.blocks.begin;
  const int channels = kTileRows * share().pairs;
  const int columns = kColumns * mine.blocks.size();
  float unit = 1.0f;
  if constexpr (kRows == 1) {
    const float most = largestNoted(0, 0), inverse = kLargestFixed * reciprocalUnit(most);
    unit = most * (kCodeUnit<kBits> / kLargestFixed);
    for (int i = thread_; i < columns / 4; i += kDecodeThreads) {
      const int channel = 4 * i - before;
      const bool is_own = channel >= 0 && channel < channels;
      const float4 none = {};
      storeDigits<kBits>(args_.d, i,
                         is_own ? *reinterpret_cast<const float4*>(u() + channel) : none, inverse);
    }
  } else {
    for (int i = thread_; i < kRows * columns / 8; i += kDecodeThreads) {
      const int pair = i / kRows - before / 8, text = i % kRows;
      if (text >= args_.b) continue;
      const bool is_own = pair >= 0 && pair < share().pairs;
      const uint4 none = {};
      storeEight(text, columns, i / kRows,
                 is_own ? loadShared(args_.channels_at + 2 * placeOf(pair, text, pair)) : none);
    }
  }
  syncComputing();
  const int units = args_.x_proj.rows / (2 * kTileRows);
  multiplyUnits<kBits, kRows, true>(
      queue_, (units - warp_ + kDecodeWarps - 1) / kDecodeWarps, mine.blocks.size(),
      laneActivations<kBits>(kRows == 1 ? args_.d : columns, 0), lane_, args_.signs,
      [&](int i, const TileSums& sums) {
        const int row = 2 * kTileRows * (warp_ + kDecodeWarps * i) + (lane_ >> 2);
        unsigned long long* to = args_.sums + args_.sum_stride * row;
        if constexpr (kRows == 1) {
          const float first = joinDigits(sums.first, unit), twin = joinDigits(sums.twin, unit);
          if ((lane_ & 3) == 0) {
            addToSum(to, first);
            addToSum(to + args_.sum_stride * kTileRows, twin);
          }
        } else {
#pragma unroll
          for (int j = 0; j < 2; ++j) {
            const int text = 2 * (lane_ & 3) + j;
            if (text >= args_.b) break;
            addToSum(to + args_.sum_stride * text * mix(), sums.first[j]);
            addToSum(to + args_.sum_stride * (text * mix() + kTileRows), sums.twin[j]);
          }
        }
      });
}

template <int kBits, int kRows>
__device__ uint4 DecodeBlock<kBits, kRows>::loadColumns(int at) const {
  if constexpr (kBits == 16) return loadShared(at);
  if constexpr (kBits == 8) {
    const uint2 words = loadSharedHalf(at);
    return {words.x, words.y, 0, 0};
  }
  return {*sharedAt<const uint32_t>(at), 0, 0, 0};
}

template <int kBits, int kRows>
__device__ void DecodeBlock<kBits, kRows>::addColumns() {
  using Share = ColumnShare<kBits>;
  constexpr int kTiles = Share::kTiles;
  const Share mine(args_, share(), warp_);
  const int pairs = share().pairs, quarter = lane_ & 3, row = lane_ >> 2;
  const int channel = kTileRows * share().pair, group_shift = args_.x_proj.group_shift;
  syncComputing();
  Slot slot = {};
  int half = 0;
#pragma unroll 1
  for (int tile = mine.tile; tile < mine.tiles; tile += kTiles * kDecodeWarps) {
    const int tiles = (mine.tiles - tile + kDecodeWarps - 1) / kDecodeWarps;  // Of this warp.
    // Of several texts those of 2 quarter and 2 quarter + 1, as mma does.
    float sums[kTiles][kRows == 1 ? 1 : 4] = {};
#pragma unroll 1
    for (int step = 0; step < mine.steps; ++step) {
      const int part = step % Share::kStepsOfWindow;
      if (half == 0 && part == 0) slot = queue_.take();
      const int at = slot.at + half * halfSlotBytes(kBits) - 16 * lane_;
      const int pair = 4 * step + quarter - mine.lead;
      // Weights of other blocks' pairs, or none at all, do not count; their scales are zero.
      const bool is_own = pair >= 0 && pair < pairs;
      const int own_pair = is_own ? pair : 0;
      uint4 words[kTiles] = {};
      __half scales[kTiles] = {};
#pragma unroll
      for (int i = 0; i < kTiles; ++i) {
        const int from = at + 512 * i + 64 * row + kBits * (4 * part + quarter);
        if (kBits != 16 || kRows == 1 || is_own) words[i] = loadColumns(from);
        if (kBits != 16 && is_own) {
          const int group =
              ((channel + kTileRows * pair) >> group_shift) - (channel >> group_shift);
          scales[i] = loadScale(at + Share::scalesAt(i, group) + 2 * row);
        }
      }
      if (part + 1 == Share::kStepsOfWindow || step + 1 == mine.steps) {
        if (half == 1 || (step + 1 == mine.steps && tiles <= kTiles)) {
          queue_.lookAhead();
          queue_.giveBack(slot, lane_);
        }
        half ^= 1;
      }
      if constexpr (kRows == 1) {
        float input[kTileRows];
        loadEight(input, args_.channels_at + 4 * kTileRows * own_pair);
#pragma unroll
        for (int i = 0; i < kTiles; ++i) {
          if (i >= tiles) break;
          float w[kTileRows], even = 0.0f, odd = 0.0f;
          unpackColumns(words[i], w);
#pragma unroll
          for (int k = 0; k < kTileRows; k += 2) {
            even = fmaf(w[k], input[k], even), odd = fmaf(w[k + 1], input[k + 1], odd);
          }
          const float factor = kBits == 16 ? 1.0f : __half2float(scales[i]);
          if (is_own) sums[i][0] = fmaf(factor, even + odd, sums[i][0]);
        }
      } else {
        const uint4 inputs = loadShared(args_.channels_at + 2 * placeOf(own_pair, row, own_pair));
#pragma unroll
        for (int i = 0; i < kTiles; ++i) {
          if (i >= tiles) break;
          multiplyRows<kBits>(sums[i], words[i], scales[i], inputs);
        }
      }
    }
    addToSums(sums, tile, tiles, quarter, row);
  }
}

template <int kBits, int kRows>
template <int kTiles, int kSums>
__device__ void DecodeBlock<kBits, kRows>::addToSums(const float (&sums)[kTiles][kSums], int tile,
                                                     int tiles, int quarter, int row) {
  unsigned long long* to = args_.sums + args_.sum_stride * (kTileRows * tile + row);
  const int to_next = args_.sum_stride * kTileRows * kDecodeWarps;
  if constexpr (kRows == 1) {
    static_assert(kTiles == 4, "one for each of a row's lanes");
    // Halving exchanges, so that each lane of a row ends with one tile's sum.
    const bool upper = (quarter & 2) != 0, odd = (quarter & 1) != 0;
    const float sum0 = sums[0][0], sum1 = sums[1][0], sum2 = sums[2][0], sum3 = sums[3][0];
    const float even_sum =
        (upper ? sum2 : sum0) + __shfl_xor_sync(0xffffffffu, upper ? sum0 : sum2, 2);
    const float odd_sum =
        (upper ? sum3 : sum1) + __shfl_xor_sync(0xffffffffu, upper ? sum1 : sum3, 2);
    const float sum =
        (odd ? odd_sum : even_sum) + __shfl_xor_sync(0xffffffffu, odd ? even_sum : odd_sum, 1);
    if (quarter < tiles) addToSum(to + to_next * quarter, sum);
  } else {
#pragma unroll
    for (int i = 0; i < kTiles; ++i) {
      if (i >= tiles) break;
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const int text = 2 * quarter + j;
        if (text < args_.b) {
          addToSum(to + to_next * i + args_.sum_stride * text * mix(), sums[i][j]);
        }
      }
    }
  }
}

template <int kBits, int kRows>
__device__ void DecodeBlock<kBits, kRows>::unpackColumns(const uint4& words,
                                                         float (&w)[kTileRows]) {
  const uint32_t bits[4] = {words.x, words.y, words.z, words.w};
  if constexpr (kBits == 16) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float2 pair = unpackPair<__half>(bits[i]);
      w[2 * i] = pair.x, w[2 * i + 1] = pair.y;
    }
  } else {
#pragma unroll
    for (int i = 0; i < kTileRows; ++i) {
      w[i] = weightOf(bits[i * kBits / 32], i % (32 / kBits));
    }
  }
}

}  // namespace s6
