// SPDX-License-Identifier: MIT
//! \file decode_batches.cuh
//! \brief The products of a block, batch after batch: who multiplies what, and the sums of slices.
#pragma once

#include "decode_block.cuh"

namespace s6 {

template <int kBits, int kRows>
template <int kMatrixBits>
__device__ int DecodeBlock<kBits, kRows>::laneActivations(int columns, int first_block,
                                                          int log_slices, int slice) const {
  const int column = 512 / kMatrixBits * first_block;
  const int group = lane_ >> 2, place = lane_ & 3;
  // Columns of the product beyond the digits or texts are never looked at.
  if constexpr (isInDigits(kMatrixBits, kRows)) {
    return args_.activations_at + digitOffset(columns, log_slices, slice, min(group, kDigits - 1)) +
           column + 16 * place;
  } else {
    const int text = kRows == 1 ? 0 : min(group, args_.b - 1);
    // Of a single text: see multiplyHalves.
    const int half = kRows == 1 ? 8 * (group & 1) + halvesStride(columns) * (group >> 1 & 1) : 0;
    return args_.activations_at + 2 * (text * activationStride(columns, kMatrixBits) + column) +
           (kMatrixBits == 16 ? 16 : 32) * place + half;
  }
}

template <int kBits, int kRows>
template <int kMatrixBits>
__device__ auto DecodeBlock<kBits, kRows>::batchOf(const DecodeMatrix& matrix, DecodeSplit split,
                                                   int columns, int first_unit, int tiles,
                                                   ColumnPart part) -> Batch {
  forgetPlace();
  const ProductShare share(matrix, split, warp_, part);
  const int stride = partialAt(1, 0, 0, split);
  const int units = batchUnits(kRows, split.log_slices);
  const int twins = min(units, tiles / 2 - first_unit);
  const int log_step = kLogDecodeWarps - split.log_slices;
  const int here = partialAt(0, share.slice, 2 * (lane_ & 3), split) + (lane_ >> 2);
  const bool has_odd =
      tiles % 2 != 0 && twins < units && (twins & (share.unit_step - 1)) == share.unit;
  Batch batch = {max(0, (twins - share.unit + share.unit_step - 1) >> log_step),
                 2 * share.unit_step * stride,
                 share.blocks.size(),
                 laneActivations<kMatrixBits>(columns, share.blocks.begin - share.part_begin,
                                              split.log_slices, share.slice),
                 here + 2 * share.unit * stride,
                 has_odd ? here + 2 * twins * stride : -1};
  // Now, and not where it is used.
  asm volatile(""
               : "+r"(batch.units), "+r"(batch.tile_step), "+r"(batch.blocks), "+r"(batch.from),
                 "+r"(batch.to), "+r"(batch.odd));
  return batch;
}

template <int kBits, int kRows>
template <int kMatrixBits, bool kMayBeOdd>
__device__ void DecodeBlock<kBits, kRows>::multiplyBatch(const Batch& batch, DecodeSplit split) {
  forgetPlace();
  float unit_of_sums = 1.0f;
  if constexpr (isInDigits(kMatrixBits, kRows)) {
    unit_of_sums = unitOfWarp() * kCodeUnit<kMatrixBits>;
  } else if constexpr (kRows == 1) {
    unit_of_sums = unitOfWarp();
  }
  const int tile_stride = partialAt(1, 0, 0, split);
  const auto store = [&](int place, TileSums sums) {
    if constexpr (isInDigits(kMatrixBits, kRows)) {
      sums.first[0] = joinDigits(sums.first, unit_of_sums);
      sums.twin[0] = joinDigits(sums.twin, unit_of_sums);
    } else if constexpr (kRows == 1) {
      sums.first[0] *= unit_of_sums, sums.twin[0] *= unit_of_sums;
    }
#pragma unroll
    for (int i = 0; i < (kRows > 1 ? 2 : 1); ++i) {
      if (kRows > 1 || (lane_ & 3) == 0) {
        float* at = partials() + place + i * kTileRows;
        at[0] = sums.first[i], at[tile_stride] = sums.twin[i];
      }
    }
  };
  int to = batch.to;
  multiplyUnits<kMatrixBits, kRows, true>(queue_, batch.units, batch.blocks, batch.from, lane_,
                                          args_.signs, [&](int, const TileSums& sums) {
                                            store(to, sums);
                                            to += batch.tile_step;
                                          });
  if constexpr (kMayBeOdd) {
    if (batch.odd >= 0) {
      multiplyUnits<kMatrixBits, kRows, false>(
          queue_, 1, batch.blocks, batch.from, lane_, args_.signs,
          [&](int, const TileSums& sums) { store(batch.odd, sums); });
    }
  }
}

template <int kBits, int kRows>
__device__ float DecodeBlock<kBits, kRows>::sumOfSlices(int tile, int row, int index,
                                                        DecodeSplit split) const {
  const float* from = partials() + partialAt(tile, 0, row, split) + index;
  const auto of = [&](int slice) { return from[slice * kRows * kTileRows]; };
  const int slices = 1 << split.log_slices;
  if constexpr (kRows > 1) {
    static_assert(kLogDecodeWarps == 3, "up to eight slices");
    float sum = of(0);
    if (slices > 1) sum += of(1);
    if (slices > 2) sum += of(2) + of(3);
    if (slices > 4) sum += (of(4) + of(5)) + (of(6) + of(7));
    return sum;
  } else {
    // Always as many addends as there are warps: fewer slices count several times, which is
    // exact.
    float part[kDecodeWarps];
#pragma unroll
    for (int slice = 0; slice < kDecodeWarps; ++slice) {
      part[slice] = of(slice & (slices - 1));
    }
#pragma unroll
    for (int width = kDecodeWarps / 2; width > 0; width /= 2) {
#pragma unroll
      for (int slice = 0; slice < width; ++slice) part[slice] += part[slice + width];
    }
    return part[0] * (static_cast<float>(slices) / kDecodeWarps);
  }
}

template <int kBits, int kRows>
template <typename Finish>
__device__ __forceinline__ void DecodeBlock<kBits, kRows>::finishBatch(int first_unit,
                                                                       int batch_units,
                                                                       int block_tiles,
                                                                       const Finish& finish) const {
  const int tiles = min(2 * batch_units, block_tiles - 2 * first_unit), rounds = roundsOf(tiles);
  for (int round = 0; round < rounds; ++round) {
    const Item item(thread_, round);
    if (item.tile < tiles && item.row < args_.b) finish(item, 2 * first_unit + item.tile);
  }
}

}  // namespace s6
