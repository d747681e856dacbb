// SPDX-License-Identifier: MIT
//! \file decode_channels.cuh
//! \brief The first phase: in_proj and the convolution make u and the gates.
#pragma once

#include "decode_block.cuh"

namespace s6 {

template <int kBits, int kRows>
struct DecodeBlock<kBits, kRows>::ChannelItem : Item {
  int pair, channel;
  bool is_gate, is_mine;
  float* state;
  //! first: the first unit of the batch, of a block that has so many pairs.
  __device__ ChannelItem(const DecodeBlock& block, int layer, int first, int round = 0)
      : Item(block.thread_, round), pair(first + this->tile / 2), is_gate(this->tile % 2 != 0) {
    const DecodeArgs& args = block.args_;
    const BlockShare share = block.share();
    const int gates = firstGates<kBits>(args, share.pairs);
    is_mine = this->tile < 2 * batchUnits(kRows, args.in_split.log_slices) && this->row < args.b &&
              pair < (first < gates ? gates : share.pairs);
    if (gates < share.pairs) {
      const int tile = 2 * first + this->tile;
      is_gate = tile >= share.pairs;
      pair = !is_gate ? tile : first < gates ? share.pairs - 1 : tile - 2 * gates;
    }
    channel = kTileRows * (share.pair + pair) + this->index;
    state =
        args.conv_state + (int64_t{layer} * args.b + this->row) * (args.k - 1) * args.d + channel;
  }
};

template <int kBits, int kRows>
struct DecodeBlock<kBits, kRows>::Convolution {
  float weights[kMaxConvPast + 1] = {}, before[kMaxConvPast] = {}, bias = 0.0f;

  __device__ void load(const DecodeBlock& block, int layer, const ChannelItem& item) {
    if (!item.is_mine || item.is_gate) return;
    const DecodeArgs& args = block.args_;
    const int past = args.k - 1;
    bias = args.conv_bias.of(layer)[item.channel];
    const float* from = args.conv_weight.of(layer) + item.channel;
#pragma unroll
    for (int i = 0; i <= kMaxConvPast; ++i) {
      weights[i] = i <= past ? from[i * args.d] : 0.0f;
      if (i < kMaxConvPast) before[i] = i < past ? item.state[i * args.d] : 0.0f;
    }
  }

  //! Puts the value into the state; the sum.
  __device__ float take(const DecodeArgs& args, float* state, float value) const {
    const int past = args.k - 1;
    float total = bias;
#pragma unroll
    for (int i = 0; i < kMaxConvPast; ++i) {
      if (i < past) {
        total = fmaf(weights[i], before[i], total);
        state[i * args.d] = i + 1 < past ? before[i + 1 < kMaxConvPast ? i + 1 : i] : value;
      }
    }
#pragma unroll
    for (int i = 0; i <= kMaxConvPast; ++i) {
      if (i == past) total = fmaf(weights[i], value, total);
    }
    return total;
  }
};

template <int kBits, int kRows>
__device__ uint32_t DecodeBlock<kBits, kRows>::finishChannel(const ChannelItem& item,
                                                             const Convolution& convolution) {
  if (!item.is_mine) return 0;
  const float value =
      sumOfSlices(item.tile, item.row, item.index, args_.in_split) * normOfText(item.row);
  const int to = placeOf(item.pair, item.row, item.pair) + item.index;
  if (item.is_gate) {
    gate()[to] = fromFloat<Channel>(siluFast(value));
    return 0;
  }
  const float input = siluFast(convolution.take(args_, item.state, value));
  u()[to] = fromFloat<Channel>(input);
  return magnitudeBits(input);
}

template <int kBits, int kRows>
__device__ void DecodeBlock<kBits, kRows>::channels(int layer) {
  forgetPlace();
  int first = 0;
#pragma unroll 1
  while (first < share().pairs) {
    // Of several texts first, because it takes most registers; of one text after all that can be
    // worked out or asked for before the residual is there.
    if constexpr (kRows > 1) {
      if (first == 0) normalise<kBits>(layer, args_.norm.of(layer));
      asm volatile("" : "+r"(layer));  // As forgetPlace.
    }
    const int gates = firstGates<kBits>(args_, share().pairs);
    const Batch batch = batchOf<kBits>(args_.in_proj, args_.in_split, args_.m, first,
                                       2 * (first < gates ? gates : share().pairs));
    Convolution convolution;
    convolution.load(*this, layer, ChannelItem(*this, layer, first));
    if constexpr (kRows == 1) {
      if (first == 0) {
        stageResidual<kBits>(layer, args_.norm.of(layer), args_.in_proj, args_.in_split);
      }
    }
    multiplyBatch<kBits, false>(batch, args_.in_split);
    // Made anew, so that it takes no registers during the products.
    const int channels_end = firstGates<kBits>(args_, share().pairs);
    const int batch_units = batchUnits(kRows, args_.in_split.log_slices);
    if constexpr (kRows == 1) {
      syncComputing();
      const uint32_t magnitude = finishChannel(ChannelItem(*this, layer, first), convolution);
      if (mixesInDigits()) noteMagnitude(magnitude, first > 0);
    } else {
      const int end = first < channels_end ? channels_end : share().pairs;
      const int rounds = roundsOf(2 * (min(first + batch_units, end) - first));
      constexpr int kAtOnce = 2;  // Whose loads are on their way together.
      for (int round = 1; round == 1 || round < rounds; round += kAtOnce) {
        Convolution later[kAtOnce];
#pragma unroll
        for (int i = 0; i < kAtOnce; ++i) {
          if (round + i >= rounds) break;
          later[i].load(*this, layer, ChannelItem(*this, layer, first, round + i));
        }
        if (round == 1) {
          syncComputing();
          finishChannel(ChannelItem(*this, layer, first), convolution);
        }
#pragma unroll
        for (int i = 0; i < kAtOnce; ++i) {
          if (round + i >= rounds) break;
          finishChannel(ChannelItem(*this, layer, first, round + i), later[i]);
        }
      }
    }
    const bool ends_channels = first < channels_end && first + batch_units >= channels_end;
    first = ends_channels ? channels_end : first + batch_units;
    if (ends_channels && !mixesInTiles()) {
      addColumns();
    } else {
      syncComputing();
      if constexpr (mayMixInTiles(kBits)) {
        if (ends_channels) addColumnTiles();
      }
    }
  }
}

}  // namespace s6
