// SPDX-License-Identifier: MIT
//! \file decode_outputs.cuh
//! \brief The third phase: out_proj adds to the residual.
#pragma once

#include "decode_block.cuh"

namespace s6 {

template <int kBits, int kRows>
__device__ void DecodeBlock<kBits, kRows>::stageOutputs(int layer) {
  forgetPlace();
  const Slice<kBits> slice(ProductShare(args_.out_proj, args_.out_split, warp_), args_.out_split,
                           lane_);
  // Others may still read the digits of dt; those of the same slice are awaited anyway.
  if (mixesInDigits() && slice.log_slices > 0) syncComputing();
  const uint32_t epoch = lastEpoch(0) + layer + 1;
  const int rounds = slice.rounds();
  constexpr int kKept = isInDigits(kBits, kRows) ? kOutputQuads : 1;
  float4 values[kKept] = {};
  uint32_t largest = 0;
#pragma unroll
  for (int first = 0; first < kOutputQuads; first += kQuadsAtOnce) {
    if (first >= rounds) break;
    uint4 word[kQuadsAtOnce] = {};
    awaitQuads(word, rounds - first, epoch,
               [&](int i) { return args_.outputs + 4 * slice.quad(first + i); });
#pragma unroll
    for (int i = 0; i < kQuadsAtOnce && first + i < kOutputQuads; ++i) {
      if (first + i >= rounds) break;
      const float4 value = valuesOf(word[i]);
      if constexpr (isInDigits(kBits, kRows)) {
        values[first + i] = value;
        largest = max(largest, largestBits(value));
      } else if (slice.has(first + i)) {
        storeActivations<kBits>(0, args_.d, slice.quad(first + i), value);
      }
    }
  }
  float unit = 1.0f;
  if constexpr (isInDigits(kBits, kRows)) {
    const float most = largestOf(slice, largest), inverse = kLargestFixed * reciprocalUnit(most);
    unit = most * (1.0f / kLargestFixed);
#pragma unroll
    for (int i = 0; i < kOutputQuads; ++i) {
      if (!slice.has(i)) break;
      storeDigits<kBits>(args_.d, slice.quad(i), values[i], inverse, slice.log_slices, slice.index);
    }
  }
  if (lane_ == 0) unitOfWarp() = unit;
  slice.sync();
}

template <int kBits, int kRows>
__device__ void DecodeBlock<kBits, kRows>::receiveOutputs(int layer, ColumnPart part) {
  forgetPlace();
  const int row = thread_ / kRowThreads, thread = thread_ % kRowThreads;
  const int columns = args_.d / part.count, eights = columns / 8;
  const uint32_t* from = args_.output_pairs + (args_.d * row + part.index * columns) / 2;
  if (row < args_.b) {
    const uint32_t epoch = lastEpoch(row) + layer + 1;
    for (int first = thread; first < eights; first += kQuadsAtOnce * kRowThreads) {
      const int count = (eights - first + kRowThreads - 1) / kRowThreads;
      const auto eightOf = [&](int i) { return first + i * kRowThreads; };
      uint4 words[kQuadsAtOnce] = {};
      awaitPairs(words, count, epoch, [&](int i) { return from + 4 * eightOf(i); });
#pragma unroll
      for (int i = 0; i < kQuadsAtOnce; ++i) {
        if (i >= count) break;
        storeEight(row, columns, eightOf(i), words[i]);
      }
    }
  }
  syncComputing();
}

template <int kBits, int kRows>
__device__ void DecodeBlock<kBits, kRows>::outputs(int layer) {
  if (share().outs == 0) return;
  const bool is_last = layer + 1 == args_.layers;
  const int batch_units = batchUnits(kRows, args_.out_split.log_slices);
  const int parts = kRows > 1 ? args_.out_parts : 1;
#pragma unroll 1
  for (int part = 0; part < parts; ++part) {
    for (int first = 0; 2 * first < share().outs; first += batch_units) {
      const Batch batch = batchOf<kBits>(args_.out_proj, args_.out_split, args_.d / parts, first,
                                         share().outs, {parts, part});
      if (first == 0) {
        if constexpr (kRows == 1) {
          stageOutputs(layer);
        } else {
          receiveOutputs(layer, {parts, part});
        }
      }
      multiplyBatch<kBits, true>(batch, args_.out_split);
      syncComputing();
      finishBatch(first, batch_units, share().outs, [&](const Item& item, int tile) {
        float& residual = own()[(tile * kRows + item.row) * kTileRows + item.index];
        residual += sumOfSlices(item.tile, item.row, item.index, args_.out_split);
        if (part + 1 < parts) return;
        const int column = kTileRows * (share().out + tile) + item.index;
        publish(args_.residuals + int64_t{item.row} * args_.m + column, residual,
                lastEpoch(item.row) + layer + 2);
        if (is_last && args_.y != nullptr) args_.y[item.row * args_.m + column] = residual;
      });
      syncComputing();
    }
  }
}

}  // namespace s6
