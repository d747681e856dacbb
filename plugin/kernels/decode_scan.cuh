// SPDX-License-Identifier: MIT
//! \file decode_scan.cuh
//! \brief The second phase: dt_proj and the recurrence make gated outputs.
#pragma once

#include "decode_block.cuh"

namespace s6 {

template <int kBits, int kRows>
__device__ void DecodeBlock<kBits, kRows>::keepMixed(int slot, float value) const {
  mixed()[slot] = value;
  if constexpr (kRows > 1) {
    const int text = slot / mix(), column = slot % mix();
    if (column >= args_.r) return;
    const int chunk = column / kStepChunk<kBits>, within = column % kStepChunk<kBits>;
    steps()[stepPlace(chunk, within / kTileRows, text) + within % kTileRows] =
        __float2half_rn(value);
  }
}

template <int kBits, int kRows>
__device__ void DecodeBlock<kBits, kRows>::receiveSums() {
  forgetPlace();
  const int sums = args_.b * mix();
  for (int first = thread_; first < sums; first += kSumsAtOnce * kDecodeThreads) {
    const int count = (sums - first + kDecodeThreads - 1) / kDecodeThreads;
    unsigned long long before[kSumsAtOnce] = {}, now[kSumsAtOnce] = {};
#pragma unroll
    for (int i = 0; i < kSumsAtOnce; ++i) {
      if (i < count) before[i] = totals()[first + i * kDecodeThreads];
    }
    awaitSums(now, before, count, args_.addends,
              [&](int i) { return args_.sums + args_.sum_stride * (first + i * kDecodeThreads); });
#pragma unroll
    for (int i = 0; i < kSumsAtOnce; ++i) {
      if (i >= count) break;
      const int slot = first + i * kDecodeThreads;
      keepMixed(slot, sumBetween(before[i], now[i], args_.addends));
      totals()[slot] = now[i];
    }
  }
  syncComputing();
  if (args_.mixer_norm_eps > 0.0f) {
    for (int job = warp_; job < 3 * args_.b; job += kDecodeWarps) {
      const int row = job / 3, part = job % 3;
      float* values = mixed() + row * mix() + (part == 0 ? 0 : args_.r + (part - 1) * kDecodeState);
      const int count = part == 0 ? args_.r : kDecodeState;
      float squares = 0.0f;
      for (int i = lane_; i < count; i += 32) squares = fmaf(values[i], values[i], squares);
      const float norm =
          rsqrtf(sumOfWarp(squares) / static_cast<float>(count) + args_.mixer_norm_eps);
      for (int i = lane_; i < count; i += 32) {
        keepMixed(static_cast<int>(values - mixed()) + i, values[i] * norm);
      }
    }
    syncComputing();
  }
}

template <int kBits, int kRows>
__device__ void DecodeBlock<kBits, kRows>::scan(int layer) {
  forgetPlace();
  const int entries = stepEntries<kBits>(args_.r);
  const int chunks = args_.r / kStepChunk<kBits>;
  const int channel_lane = lane_ >> 2, quarter = lane_ & 3;
  const DecodeMatrix& matrix = args_.dt_proj;
  const __half* scales =
      reinterpret_cast<const __half*>(matrix.scales + layer * matrix.scales_layer_bytes);
  const int out_index = outputIndex();
  float my_bias = 0.0f, my_skip = 0.0f;
  // Not converted before they are used, so that nothing waits for them sooner.
  __half chunk_scale[4] = {};
  const auto load = [&](int pair) {
    if (pair >= share().pairs) return;
    const int channel = kTileRows * (share().pair + pair);
    my_bias = args_.dt_bias.of(layer)[channel + channel_lane];
    my_skip = args_.D.of(layer)[channel + out_index];
    if constexpr (kBits != 16) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int chunk = quarter + 4 * i;
        const int group = (chunk * kStepChunk<kBits>) >> matrix.group_shift;
        chunk_scale[i] =
            chunk < chunks ? scales[group * matrix.rows + channel + channel_lane] : __half{};
      }
    }
  };
  ScanItem<kRows> item(args_, warp_);
  load(item.pair());  // While the sums are on their way.
  receiveSums();
  while (item.pair() < share().pairs) {
    const int pair = item.pair(), first_text = item.firstText();
    const int channel = kTileRows * (share().pair + pair);
    // dt_proj, then the rates, then the state of a single text: see WeightFetcher.
    Slot slot = queue_.take();
    int taken = 0;
    const auto next = [&] {
      // Of codes all are in one slot.
      if (kBits == 16 && taken == kSlotEntries) {
        queue_.giveBack(slot, lane_);
        slot = queue_.take(), taken = 0;
      }
      return loadShared(slot.at + entryAt<kBits>(taken++));
    };
    float step[4] = {};  // As the sums in addColumns.
    uint4 words = next();
    // Unrolled it would be too long for the instruction cache with codes.
#pragma unroll(kBits == 16 ? 2 : 1)
    for (int entry = 0; entry < entries; ++entry) {
      const uint4 ahead = next();
      const int chunk = quarter + 4 * entry;
      if constexpr (kRows > 1) {
        multiplySteps(step, words, chunk_scale[0], chunk, chunks);
      } else {
        float w[kStepChunk<kBits>];
        unpackSteps(words, w);
        addSteps(step[0], w, kBits == 16 ? 1.0f : __half2float(chunk_scale[0]), chunk, chunks);
      }
      moveUp(chunk_scale);
      words = ahead;
    }
    const uint4 rates = words, states = kRows == 1 ? next() : uint4{};
    queue_.lookAhead();
    queue_.giveBack(slot, lane_);
    const float rates_of[4] = {__uint_as_float(rates.x) * kLog2E, __uint_as_float(rates.y) * kLog2E,
                               __uint_as_float(rates.z) * kLog2E,
                               __uint_as_float(rates.w) * kLog2E};
    const float bias_kept = my_bias, skip_kept = my_skip;
    item.step();
    load(item.pair());
    if constexpr (kRows == 1) {
      step[0] += __shfl_xor_sync(0xffffffffu, step[0], 1);
      step[0] += __shfl_xor_sync(0xffffffffu, step[0], 2);
    }
    const float dt[2] = {softplusFast(step[0] + bias_kept),
                         kRows > 1 ? softplusFast(step[1] + bias_kept) : 0.0f};
    if constexpr (kRows == 1) {
      const uint4 only[1] = {states};
      advanceStates(layer, pair, 0, dt, rates_of, skip_kept, only);
    } else {
      const Slot slot_of_states = queue_.take();
      const auto statesOf = [&](int i) {
        return loadShared(slot_of_states.at + entryAt<kBits>(i));
      };
      const int texts = min(item.texts(), args_.b - first_text);
      if (item.texts() == 2) {
        const uint4 two[2] = {statesOf(0), statesOf(1)};
        advanceStates(layer, pair, first_text, dt, rates_of, skip_kept, two);
      } else {
#pragma unroll 1
        for (int i = 0; i < texts; i += 4) {
          const uint4 four[4] = {statesOf(i), statesOf(i + 1), statesOf(i + 2), statesOf(i + 3)};
          advanceStates(layer, pair, first_text + i, dt, rates_of, skip_kept, four);
        }
      }
      queue_.lookAhead();
      queue_.giveBack(slot_of_states, lane_);
    }
  }
}

template <int kBits, int kRows>
__device__ float4 DecodeBlock<kBits, kRows>::inputsOf(int pair, int text, int half) const {
  const int place = placeOf(pair, text, pair) + 4 * half;
  if constexpr (kRows == 1) return floatsOf(loadShared(args_.channels_at + 4 * place));
  const uint2 words = loadSharedHalf(args_.channels_at + 2 * place);
  const float2 low = unpackPair<__half>(words.x), high = unpackPair<__half>(words.y);
  return {low.x, low.y, high.x, high.y};
}

template <int kBits, int kRows>
template <int kCount>
__device__ void DecodeBlock<kBits, kRows>::advanceStates(int layer, int pair, int first_text,
                                                         const float (&dt)[2],
                                                         const float (&rates)[4], float skip,
                                                         const uint4 (&states)[kCount]) {
  const int state = lane_ >> 1, half = lane_ & 1;
  float4 h[kCount];
  float y[kCount][4];
#pragma unroll
  for (int j = 0; j < kCount; ++j) {
    const float* projected = mixed() + (first_text + j) * mix() + args_.r + state;
    const float B = projected[0], C = projected[kDecodeState];
    const float4 input = inputsOf(pair, first_text + j, half);
    const int lane_of_dt = 16 * half + (first_text >> 1) + (j >> 1);
    const auto advance = [&](int i, float before, float in) {
      const float mine = __shfl_sync(0xffffffffu, dt[j & 1], lane_of_dt + 4 * i);
      const float after = fmaf(exp2Unit(mine * rates[i]), before, mine * in * B);
      y[j][i] = C * after;
      return after;
    };
    const float4 before = floatsOf(states[j]);
    h[j] = {advance(0, before.x, input.x), advance(1, before.y, input.y),
            advance(2, before.z, input.z), advance(3, before.w, input.w)};
  }
  publishOutput<kCount>(layer, pair, first_text, sumOverStates(y), skip);
  const int channel = kTileRows * (share().pair + pair) + 4 * half;
  float* to = args_.ssm_state +
              ((int64_t{layer} * args_.b + first_text) * kDecodeState + state) * args_.d + channel;
#pragma unroll
  for (int j = 0; j < kCount; ++j) {
    if (kRows > 1 && first_text + j >= args_.b) break;
    *reinterpret_cast<float4*>(to) = h[j];
    to += kDecodeState * args_.d;
  }
}

template <int kBits, int kRows>
__device__ void DecodeBlock<kBits, kRows>::scanInDigits(int layer) {
  forgetPlace();
  // So many pairs at a time that a warp has something to do while one waits for its products.
  constexpr int kTogether = 2;
  const int entries = stepEntries<kBits>(args_.r), chunks = args_.r / kStepChunk<kBits>;
  const int group = lane_ >> 2, quarter = lane_ & 3, state = lane_ >> 1, half = lane_ & 1;
  const int out_index = outputIndex();
  const DecodeMatrix& matrix = args_.dt_proj;
  const __half* scales =
      reinterpret_cast<const __half*>(matrix.scales + layer * matrix.scales_layer_bytes);
  float bias[kTogether] = {}, skip[kTogether] = {};
  __half chunk_scale[kTogether][4] = {};
  const auto load = [&](int first) {
#pragma unroll
    for (int j = 0; j < kTogether; ++j) {
      const int pair = first + j * kDecodeWarps;
      if (pair >= share().pairs) continue;
      const int channel = kTileRows * (share().pair + pair);
      bias[j] = args_.dt_bias.of(layer)[channel + group];
      skip[j] = args_.D.of(layer)[channel + out_index];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int chunk = quarter + 4 * i;
        const int scale_group = (chunk * kStepChunk<kBits>) >> matrix.group_shift;
        chunk_scale[j][i] =
            chunk < chunks ? scales[scale_group * matrix.rows + channel + group] : __half{};
      }
    }
  };
  load(warp_);  // While the sums are on their way.
  receiveSums();
  const float unit = stageStepDigits();
  const float B = mixed()[args_.r + state], C = mixed()[args_.r + kDecodeState + state];
  for (int first = warp_; first < share().pairs; first += kTogether * kDecodeWarps) {
    // Where there is no second pair the first is worked out twice, and kept once.
    const int count = first + kDecodeWarps < share().pairs ? 2 : 1;
    Slot slot[kTogether] = {queue_.take(), {}};
    slot[1] = slot[0];
    if (count > 1) slot[1] = queue_.take();
    float4 rates[kTogether], h[kTogether];
    float digits[kTogether][2] = {};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (i >= entries) break;
#pragma unroll
      for (int part = 0; part < 2; ++part) {
#pragma unroll
        for (int j = 0; j < kTogether; ++j) {
          addStepDigits(digits[j], slot[j], 2 * i + part, chunks, matrix.group_shift == 4,
                        __half2float(chunk_scale[j][i]));
        }
      }
    }
#pragma unroll
    for (int j = 0; j < kTogether; ++j) {
      rates[j] = floatsOf(loadShared(slot[j].at + entryAt<kBits>(entries)));
      h[j] = floatsOf(loadShared(slot[j].at + entryAt<kBits>(entries + 1)));
    }
    queue_.lookAhead();
    queue_.giveBack(slot[0], lane_);
    if (count > 1) queue_.giveBack(slot[1], lane_);
    float dt[kTogether], skip_kept[kTogether], out[kTogether];
#pragma unroll
    for (int j = 0; j < kTogether; ++j) {
      dt[j] = softplusFast(joinDigits(digits[j], unit) + bias[j]);
      skip_kept[j] = skip[j];
    }
    load(first + kTogether * kDecodeWarps);
#pragma unroll
    for (int j = 0; j < kTogether; ++j) {
      const int pair = first + min(j, count - 1) * kDecodeWarps;
      const float4 input = *reinterpret_cast<const float4*>(u() + pair * kTileRows + 4 * half);
      const auto advance = [&](int i, float& value, float rate, float in) {
        const float mine = __shfl_sync(0xffffffffu, dt[j], 4 * (4 * half + i));
        value = fmaf(exp2Unit(mine * (rate * kLog2E)), value, mine * in * B);
        return C * value;
      };
      const float y[1][4] = {
          {advance(0, h[j].x, rates[j].x, input.x), advance(1, h[j].y, rates[j].y, input.y),
           advance(2, h[j].z, rates[j].z, input.z), advance(3, h[j].w, rates[j].w, input.w)}};
      out[j] = sumOverStates(y);
    }
#pragma unroll
    for (int j = 0; j < kTogether; ++j) {
      if (j >= count) break;
      const int pair = first + j * kDecodeWarps;
      publishOutput<1>(layer, pair, 0, out[j], skip_kept[j]);
      const int channel = kTileRows * (share().pair + pair) + 4 * half;
      *reinterpret_cast<float4*>(
          args_.ssm_state + (int64_t{layer} * kDecodeState + state) * args_.d + channel) = h[j];
    }
  }
}

template <int kBits, int kRows>
__device__ float DecodeBlock<kBits, kRows>::stageStepDigits() {
  uint32_t bits = __float_as_uint(kLeastMagnitude);
  for (int i = lane_; i < args_.r; i += 32) bits = max(bits, magnitudeBits(mixed()[i]));
  const float most = __uint_as_float(__reduce_max_sync(0xffffffffu, bits));
  if (thread_ < args_.r / 4) {
    storeDigits<kBits>(args_.d, thread_, reinterpret_cast<const float4*>(mixed())[thread_],
                       kLargestFixed * reciprocalUnit(most));
  }
  syncComputing();
  return most * (kCodeUnit<kBits> / kLargestFixed);
}

template <int kBits, int kRows>
__device__ __forceinline__ void DecodeBlock<kBits, kRows>::addStepDigits(float (&digits)[2],
                                                                         const Slot& slot, int i,
                                                                         int chunks, bool is_split,
                                                                         float scale) const {
  const int group = lane_ >> 2, quarter = lane_ & 3;
  const int chunk = 2 * i + (quarter >> 1);
  // Half of a chunk has kBits bytes.
  const int at =
      slot.at + entryAt<kBits>(i / 2) + 16 * ((chunk & 3) - quarter) + kBits * (quarter & 1);
  uint2 words;
  if constexpr (kBits == 8) {
    words = loadSharedHalf(at);
  } else {
    words.x = *sharedAt<const uint32_t>(at), words.y = words.x;
  }
  const uint2 x =
      loadSharedHalf(args_.activations_at + digitOffset(args_.d, 0, 0, min(group, kDigits - 1)) +
                     32 * i + 8 * quarter);
  const SignedBytes<kBits> a(words.x, words.y, args_.signs);
  for (int part = 0; part < (is_split ? 2 : 1); ++part) {
    const bool counts = chunk < chunks && (!is_split || (quarter >> 1) == part);
    SignedBytes<kBits> mine = a;
    if (!counts) mine.low = mine.high = 0;
    const float2 product = multiplyNarrow<kBits>(mine, x);
    const float scale_of_row = __shfl_sync(0xffffffffu, scale, (lane_ & ~3) + (2 * i & 3) + part);
    digits[0] = fmaf(scale_of_row, product.x, digits[0]);
    digits[1] = fmaf(scale_of_row, product.y, digits[1]);
  }
}

template <int kBits, int kRows>
__device__ void DecodeBlock<kBits, kRows>::addSteps(float& step,
                                                    const float (&w)[kStepChunk<kBits>],
                                                    float scale, int chunk, int chunks) const {
  const bool exists = chunk < chunks;
  const int from = exists ? chunk : 0;
  const float4* dt = reinterpret_cast<const float4*>(mixed() + from * kStepChunk<kBits>);
  float even = 0.0f, odd = 0.0f;
#pragma unroll
  for (int i = 0; i < kStepChunk<kBits> / 4; ++i) {
    const float4 v = dt[i];
    even = fmaf(w[4 * i], v.x, even);
    odd = fmaf(w[4 * i + 1], v.y, odd);
    even = fmaf(w[4 * i + 2], v.z, even);
    odd = fmaf(w[4 * i + 3], v.w, odd);
  }
  if (exists) step = fmaf(scale, even + odd, step);
}

template <int kBits, int kRows>
__device__ void DecodeBlock<kBits, kRows>::multiplySteps(float (&step)[4], const uint4& words,
                                                         __half scale, int chunk,
                                                         int chunks) const {
  const bool exists = chunk < chunks;
  const int from = exists ? chunk : 0;
#pragma unroll
  for (int piece = 0; piece < kPiecesOfChunk; ++piece) {
    uint4 part = words;
    if (kBits == 16 && !exists) part = {};  // Scales are zero.
    if (piece == 1) part.x = kBits == 8 ? words.z : words.y, part.y = words.w;
    const int text = lane_ >> 2;
    multiplyRows<kBits>(step, part, scale,
                        loadShared(args_.partials_at + 2 * stepPlace(from, piece, text)));
  }
}

template <int kBits, int kRows>
__device__ void DecodeBlock<kBits, kRows>::unpackSteps(const uint4& words,
                                                       float (&w)[kStepChunk<kBits>]) {
  if constexpr (kBits == 16) {
    unpackColumns(words, w);
  } else {
    const uint32_t bits[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
    for (int i = 0; i < 16; ++i) w[i] = weightOf(bits[i * kBits / 32], i % (32 / kBits));
  }
}

template <int kBits, int kRows>
template <int kCount>
__device__ float DecodeBlock<kBits, kRows>::sumOverStates(const float (&y)[kCount][4]) const {
  float sums[kCount];
  const bool upper = (lane_ & 2) != 0, second = (lane_ & 4) != 0;
#pragma unroll
  for (int j = 0; j < kCount; ++j) {
    float keep0 = upper ? y[j][2] : y[j][0], keep1 = upper ? y[j][3] : y[j][1];
    keep0 += __shfl_xor_sync(0xffffffffu, upper ? y[j][0] : y[j][2], 2);
    keep1 += __shfl_xor_sync(0xffffffffu, upper ? y[j][1] : y[j][3], 2);
    sums[j] = second ? keep1 : keep0;
    sums[j] += __shfl_xor_sync(0xffffffffu, second ? keep0 : keep1, 4);
  }
  int left = kCount;
#pragma unroll
  for (int bit = 8; bit <= 16; bit *= 2) {
    const bool odd = left > 1 && (lane_ & bit) != 0;
#pragma unroll
    for (int j = 0; j < (left + 1) / 2; ++j) {
      const float even_sum = sums[2 * j], odd_sum = left > 1 ? sums[2 * j + 1] : even_sum;
      sums[j] =
          (odd ? odd_sum : even_sum) + __shfl_xor_sync(0xffffffffu, odd ? even_sum : odd_sum, bit);
    }
    left = (left + 1) / 2;
  }
  return sums[0];
}

template <int kBits, int kRows>
template <int kCount>
__device__ void DecodeBlock<kBits, kRows>::publishOutput(int layer, int pair, int first_text,
                                                         float sum, float skip) const {
  const int out_index = outputIndex();
  const int text = first_text + ((lane_ >> 3) & (kCount - 1));
  const int at = placeOf(pair, text, pair) + out_index;
  const float out = fmaf(skip, toFloat(u()[at]), sum) * toFloat(gate()[at]);
  const int column = kTileRows * (share().pair + pair) + out_index;
  if constexpr (kRows == 1) {
    if (lane_ < kTileRows) publish(args_.outputs + column, out, lastEpoch(0) + layer + 1);
  } else {
    const float next = __shfl_down_sync(0xffffffffu, out, 4);  // See outputIndex.
    if (lane_ >= kTileRows * kCount || (lane_ & 4) != 0 || text >= args_.b) return;
    publishPair(args_.output_pairs + ((args_.d * text + column) >> 1), out, next,
                lastEpoch(text) + layer + 1);
  }
}

}  // namespace s6
