// SPDX-License-Identifier: MIT
//! \file decode_head.cuh
//! \brief After the last block of the model: the head and the greedy choice.
#pragma once

#include "decode_block.cuh"

namespace s6 {

template <int kBits, int kRows>
template <int kHeadBits>
__device__ void DecodeBlock<kBits, kRows>::headBatches() {
  forgetPlace();
  if constexpr (kRows == 1) {
    stageResidual<kHeadBits>(args_.layers, args_.final_norm, args_.head, args_.head_split);
  } else {
    normalise<kHeadBits>(args_.layers, args_.final_norm);
  }
  const int batch_units = batchUnits(kRows, args_.head_split.log_slices);
  for (int first = 0; 2 * first < share().heads; first += batch_units) {
    multiplyBatch<kHeadBits, true>(
        batchOf<kHeadBits>(args_.head, args_.head_split, args_.m, first, share().heads),
        args_.head_split);
    syncComputing();
    finishBatch(first, batch_units, share().heads, [&](const Item& item, int tile) {
      const float logit =
          sumOfSlices(item.tile, item.row, item.index, args_.head_split) * normOfText(item.row);
      const int32_t id = kTileRows * (share().head + tile) + item.index;
      if (id >= args_.vocab) return;
      if (args_.logits != nullptr) args_.logits[int64_t{item.row} * args_.vocab + id] = logit;
      const Candidate candidate = {logit, id};
      if (candidates()[thread_].isBehind(candidate)) candidates()[thread_] = candidate;
    });
    syncComputing();
  }
}

template <int kBits, int kRows>
__device__ void DecodeBlock<kBits, kRows>::finish() {
  forgetPlace();
  candidates()[thread_] = {-INFINITY, 0x7fffffff};
  if (args_.head.data != nullptr && share().heads > 0) {
    if (kBits == 16 || args_.head.bits == 16) {
      headBatches<16>();
    } else if constexpr (kBits != 16) {
      if (args_.head.bits == 8) {
        headBatches<8>();
      } else {
        headBatches<4>();
      }
    }
  }
  const int epochs = args_.layers + 1;  // Of this call.
  const auto bestOf = [&](int row, int block) {
    return args_.best + 2 * (row * kMaxDecodeBlocks + block);
  };
  syncComputing();
  // One candidate a thread; threads of one text differ in tile and index.
  constexpr int kRowStride = kTileRows * kRows;
  for (int row = warp_; row < args_.b; row += kDecodeWarps) {
    Candidate mine = {-INFINITY, 0x7fffffff};
    for (int i = lane_; i < kDecodeThreads / kRows; i += 32) {
      const int at = i / kTileRows * kRowStride + row * kTileRows + i % kTileRows;
      if (mine.isBehind(candidates()[at])) mine = candidates()[at];
    }
    mine = bestOfWarp(mine);
    if (lane_ == 0) {
      publishExact(bestOf(row, block_), __float_as_uint(mine.logit), lastEpoch(row) + epochs);
      publishExact(bestOf(row, block_) + 1, static_cast<uint32_t>(mine.id),
                   lastEpoch(row) + epochs);
    }
  }
  if (block_ != 0) return;
  // Every block has sent its last word: whatever they read at their start may change now.
  for (int row = warp_; row < args_.b; row += kDecodeWarps) {
    Candidate mine = {-INFINITY, 0x7fffffff};
    for (int block = lane_; block < args_.blocks; block += 32) {
      const uint2 words = awaitExactPair(bestOf(row, block), lastEpoch(row) + epochs);
      const Candidate candidate = {__uint_as_float(words.x), static_cast<int32_t>(words.y)};
      if (mine.isBehind(candidate)) mine = candidate;
    }
    mine = bestOfWarp(mine);
    // Logits that are no numbers choose the first token rather than a place outside the table.
    if (lane_ == 0 && args_.next_ids != nullptr) {
      args_.next_ids[row] = mine.id < args_.vocab ? mine.id : 0;
    }
  }
  syncComputing();
  for (int slot = thread_; slot < args_.b * mix(); slot += kDecodeThreads) {
    args_.totals[slot] = totals()[slot];
  }
  if (thread_ < args_.b) args_.epochs[thread_] = lastEpoch(thread_) + epochs;
}

template <int kBits, int kRows>
__device__ auto DecodeBlock<kBits, kRows>::bestOfWarp(Candidate mine) -> Candidate {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) {
    const Candidate other = {__shfl_xor_sync(0xffffffffu, mine.logit, step),
                             __shfl_xor_sync(0xffffffffu, mine.id, step)};
    if (mine.isBehind(other)) mine = other;
  }
  return mine;
}

}  // namespace s6
