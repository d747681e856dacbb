// SPDX-License-Identifier: MIT
/*!
 * \file decode_kernel.cuh
 * \brief One token through the whole model in one persistent launch; equation in s6/decode.h.
 *
 * Grid: one block an SM, all resident (cooperative launch), of 8 warps that compute and 8 that
 * fetch for them. Blocks own work for good (decode_args.cuh), get their weights from a stream that
 * runs ahead (decode_stream.cuh), multiply on the tensor cores (decode_product.cuh) and hand each
 * other values without barriers (decode_exchange.cuh). Three exchanges a block of the model:
 *
 *     channels    residual -> norm -> in_proj -> convolution -> u, gate; part of x_proj(u)   | sums
 *     scan        sums -> dt_proj -> recurrence -> gated output                              | y
 *     outputs     y -> out_proj + residual                                                   | x
 *
 * Shared memory besides the ring: activations [texts][columns] float16 ·
 * partials [tile][slice][text][8] · mixed [text][r + 2 n] · channels: u and gate [pair][text][8] ·
 * own: the residual of the block's rows [tile][text][8] · reduce (small sums). Each is written by
 * one phase, read by the next, with a barrier of the computing warps between; see the phases.
 *
 * Numerics: as the header of s6/decode.h says; exp by ex2.approx, as in mamba-ssm.
 */
#pragma once

#include "decode_exchange.cuh"
#include "decode_product.cuh"
#include "scan_math.cuh"

namespace s6 {

//! A barrier of the computing warps; the fetching ones go their own way.
__device__ __forceinline__ void syncComputing() {
  asm volatile("bar.sync 1, %0;" ::"n"(kDecodeThreads) : "memory");
}

//! Brings what the phases of a block of the model read outside the stream into L2.
//! Not inlined: it runs while a block waits, and would only take registers from what does not.
static __device__ __noinline__ void prefetchTables(const DecodeArgs& args, int pair, int pairs,
                                                   int layer) {
  constexpr int kLine = 128;
  const auto fetch = [](const void* at) {
    asm volatile("prefetch.global.L2 [%0];" ::"l"(at) : "memory");
  };
  // The norm's weights serve all blocks: each fetches some lines.
  const bool is_last = layer == args.layers;
  const float* norm = is_last ? args.final_norm : args.norm.of(layer);
  const int norm_line = threadIdx.x * args.blocks + blockIdx.x;
  if (norm != nullptr && norm_line * kLine < 4 * args.m) fetch(norm + norm_line * kLine / 4);
  if (is_last || pairs == 0) return;
  const int channel = kTileRows * pair, channels = kTileRows * pairs;
  const int lines = 4 * channels / kLine + 2;
  const int past = args.k - 1;
  for (int i = threadIdx.x; i < (args.k + 3 + past * args.b) * lines; i += kDecodeThreads) {
    const int row = i / lines, line = i % lines;
    const float* table = nullptr;
    if (row < args.k) {
      table = args.conv_weight.of(layer) + row * args.d;
    } else if (row == args.k) {
      table = args.conv_bias.of(layer);
    } else if (row == args.k + 1) {
      table = args.dt_bias.of(layer);
    } else if (row == args.k + 2) {
      table = args.D.of(layer);
    } else {
      table = args.conv_state + (int64_t{layer} * args.b * past + row - args.k - 3) * args.d;
    }
    const int at = min(channel + line * kLine / 4, channel + channels - 1);
    fetch(table + at);
  }
  if (args.x_proj.bits != 16) {
    const DecodeMatrix& x = args.x_proj;
    const int first = channel >> x.group_shift;
    const int groups = ((channel + channels - 1) >> x.group_shift) - first + 1;
    const int row_lines = 2 * x.rows / kLine + 1;
    const uint8_t* scales = x.scales + layer * x.scales_layer_bytes + int64_t{2} * first * x.rows;
    for (int i = threadIdx.x; i < groups * row_lines; i += kDecodeThreads) {
      fetch(scales + 2 * (i / row_lines) * x.rows + i % row_lines * kLine);
    }
    const DecodeMatrix& dt = args.dt_proj;
    const int dt_groups = args.r >> dt.group_shift, dt_lines = 2 * channels / kLine + 2;
    for (int i = threadIdx.x; i < dt_groups * dt_lines; i += kDecodeThreads) {
      const int at = min(channel + i % dt_lines * kLine / 2, channel + channels - 1);
      fetch(dt.scales + layer * dt.scales_layer_bytes + 2 * (int64_t{i / dt_lines} * args.d + at));
    }
  }
}

//! What the computing warps of a block do.
template <int kBits, int kRows, int kDepth>
class DecodeBlock {
 public:
  using Queue = WeightQueue<kBits, kDepth>;
  using Channel = std::conditional_t<kRows == 1, float, __half>;

  __device__ DecodeBlock(const DecodeArgs& args, const BlockShare& share, const Queue& queue)
      : args_(args),
        share_(share),
        queue_(queue),
        warp_(threadIdx.x / 32),
        lane_(threadIdx.x % 32),
        mix_(args.r + 2 * kDecodeState),
        epoch_(*args.epoch) {
    for (int slot = threadIdx.x; slot < args.b * mix_; slot += kDecodeThreads) {
      totals()[slot] = args.totals[slot];
    }
    const int values = share.outs * kTileRows * kRows;
    for (int i = threadIdx.x; i < values; i += kDecodeThreads) {
      const int row = i / kTileRows % kRows;
      const int column = kTileRows * (share.out + i / (kTileRows * kRows)) + i % kTileRows;
      own()[i] = row < args.b ? firstResidual(row, column) : 0.0f;
    }
  }

  __device__ void run() {
    prefetchTables(args_, share_.pair, share_.pairs, 0);
    for (int layer = 0; layer < args_.layers; ++layer) {
      prefetchTables(args_, share_.pair, share_.pairs,
                     layer + 1);  // While the residuals are on their way.
      if (share_.pairs > 0) {
        channels(layer);
        scan(layer);
      }
      outputs(layer);
    }
    finish();
  }

 private:
  static constexpr int kBatchUnits = batchPairs(kRows);  // Two tiles each.
  static constexpr int kPairsPerThread = 8;              // Of residual words, for a single text.
  static constexpr int kWordsAtOnce = 4;                 // That a thread awaits together.
  static constexpr int kRowThreads = kDecodeThreads / kRows;  // That stage one text.

  template <typename T>
  __device__ T* sharedAt(int offset) const {
    extern __shared__ __align__(128) uint8_t shared[];
    return reinterpret_cast<T*>(shared + offset);
  }
  __device__ __half* activations() const { return sharedAt<__half>(args_.activations_at); }
  __device__ float* partials() const { return sharedAt<float>(args_.partials_at); }
  __device__ float* mixed() const { return sharedAt<float>(args_.mixed_at); }
  __device__ Channel* u() const { return sharedAt<Channel>(args_.channels_at); }
  __device__ Channel* gate() const { return u() + share_.pairs * kTileRows * kRows; }
  __device__ float* own() const { return sharedAt<float>(args_.own_at); }
  __device__ float* reduce() const { return sharedAt<float>(args_.reduce_at); }

  // --- Residual and its norm -------------------------------------------------------------------

  //! The residual before the first block: a row of the embedding, or x.
  __device__ float firstResidual(int row, int column) const {
    const DecodeMatrix& e = args_.embedding;
    if (e.data == nullptr) return args_.x[row * args_.m + column];
    const int64_t token = args_.token_ids[row];
    if (token < 0 || token >= e.rows) return 0.0f;
    const uint8_t* at = e.data + token * e.row_bytes;
    if (e.bits == 16) return __half2float(reinterpret_cast<const __half*>(at)[column]);
    const __half scale = reinterpret_cast<const __half*>(
        e.scales)[int64_t{column >> e.group_shift} * e.rows + token];
    const int code = e.bits == 8 ? at[column] : (at[column / 2] >> (4 * (column & 1))) & 15;
    return static_cast<float>(code - (1 << (e.bits - 1))) * __half2float(scale);
  }

  __device__ float2 firstResiduals(int row, int pair) const {
    return {firstResidual(row, 2 * pair), firstResidual(row, 2 * pair + 1)};
  }

  static __device__ float2 floatsOf(const ulonglong2& pair) {
    return {__uint_as_float(static_cast<uint32_t>(pair.x)),
            __uint_as_float(static_cast<uint32_t>(pair.y))};
  }

  __device__ void storeActivations(int row, int stride, int pair, float2 value, int bits) {
    __half* to = activations() + row * stride;
    if (bits == 4) {
      to[activationPlace(2 * pair, 4)] = __float2half_rn(value.x);
      to[activationPlace(2 * pair + 1, 4)] = __float2half_rn(value.y);
    } else {
      reinterpret_cast<__half2*>(to)[pair] = __floats2half2_rn(value.x, value.y);
    }
  }

  //! Sum over the threads of one text; every one of them gets it. Two barriers.
  __device__ float sumOfRow(float value) {
#pragma unroll
    for (int step = 16; step > 0; step /= 2) value += __shfl_xor_sync(0xffffffffu, value, step);
    if (lane_ == 0) reduce()[warp_] = value;
    syncComputing();
    constexpr int kWarpsOfRow = kRowThreads / 32;
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < kWarpsOfRow; ++i) sum += reduce()[warp_ / kWarpsOfRow * kWarpsOfRow + i];
    return sum;
  }

  //! rms_norm(residual) * weight as float16, in the order that weights of `bits` want.
  //! The residual is that before block `layer`.
  __device__ void normalise(int layer, const float* weight, int bits) {
    const int pairs = args_.m / 2;
    const int stride = activationStride(args_.m, bits);
    const int row = threadIdx.x / kRowThreads, thread = threadIdx.x % kRowThreads;
    const bool exists = row < args_.b;
    const uint32_t epoch = epoch_ + layer;
    const unsigned long long* words = args_.residuals + int64_t{row} * args_.m;
    const float2* weights = reinterpret_cast<const float2*>(weight);
    float squares = 0.0f;
    if constexpr (kRows == 1) {
      // Rounds are the same for all threads; in the last, those without a pair read the last one,
      // which does not count.
      const int rounds = (pairs + kRowThreads - 1) / kRowThreads;
      const auto pairOf = [&](int i) { return min(thread + i * kRowThreads, pairs - 1); };
      float2 value[kPairsPerThread] = {}, scale[kPairsPerThread];
#pragma unroll
      for (int first = 0; first < kPairsPerThread; first += kWordsAtOnce) {
        if (first >= rounds) break;
        if (layer == 0) {
#pragma unroll
          for (int i = first; i < first + kWordsAtOnce; ++i) {
            if (i < rounds) value[i] = firstResiduals(row, pairOf(i));
          }
          continue;
        }
        ulonglong2 word[kWordsAtOnce];
#pragma unroll
        for (int i = 0; i < kWordsAtOnce; ++i) {
          if (first + i < rounds) word[i] = readPair(words + 2 * pairOf(first + i));
        }
#pragma unroll
        for (int i = 0; i < kWordsAtOnce; ++i) {
          if (first + i < rounds) {
            while (!isOf(word[i], epoch)) word[i] = readPair(words + 2 * pairOf(first + i));
            value[first + i] = floatsOf(word[i]);
          }
        }
      }
#pragma unroll
      for (int i = 0; i < kPairsPerThread; ++i) {
        if (i < rounds) scale[i] = weights[pairOf(i)];  // On their way during the sum.
        if (thread + i * kRowThreads >= pairs) value[i] = {};
      }
#pragma unroll
      for (int i = 0; i < kPairsPerThread; ++i) {
        squares = fmaf(value[i].x, value[i].x, squares);
        squares = fmaf(value[i].y, value[i].y, squares);
      }
      const float norm = rsqrtf(sumOfRow(squares) * args_.inverse_m + args_.norm_eps);
#pragma unroll
      for (int i = 0; i < kPairsPerThread; ++i) {
        const int pair = thread + i * kRowThreads;
        if (pair < pairs) {
          storeActivations(row, stride, pair,
                           {value[i].x * norm * scale[i].x, value[i].y * norm * scale[i].y}, bits);
        }
      }
    } else {
      // Too many for registers: read twice, the second time from L2 without waiting.
      const auto residual = [&](int pair) {
        return layer == 0 ? firstResiduals(row, pair)
                          : floatsOf(awaitPair(words + 2 * pair, epoch));
      };
      if (exists) {
        for (int pair = thread; pair < pairs; pair += kRowThreads) {
          const float2 value = residual(pair);
          squares = fmaf(value.x, value.x, fmaf(value.y, value.y, squares));
        }
      }
      const float norm = rsqrtf(sumOfRow(squares) * args_.inverse_m + args_.norm_eps);
      if (exists) {
        for (int pair = thread; pair < pairs; pair += kRowThreads) {
          const float2 value = residual(pair), scale = weights[pair];
          storeActivations(row, stride, pair, {value.x * norm * scale.x, value.y * norm * scale.y},
                           bits);
        }
      }
    }
    syncComputing();
  }

  // --- Products --------------------------------------------------------------------------------

  //! Offset in shared memory of the activations that this lane multiplies.
  __device__ int laneActivations(int stride) const {
    // Rows of the product beyond the texts are never looked at.
    return args_.activations_at + (kRows == 1 ? 0 : 2 * min(lane_ >> 2, args_.b - 1) * stride);
  }

  __device__ int partialAt(int tile, int slice, int row, DecodeSplit split) const {
    const int tile_stride = ((kTileRows * kRows) << split.log_slices) + kTileRows;
    return tile * tile_stride + (slice * kRows + row) * kTileRows;
  }

  //! One batch of units of a product: this warp's sums to shared memory.
  template <int kMatrixBits>
  __device__ void multiplyBatch(const DecodeMatrix& matrix, DecodeSplit split, int columns,
                                int first_unit, int tiles) {
    const ProductShare share(matrix, split, warp_);
    const int slice = warp_ & ((1 << split.log_slices) - 1);
    const int from = laneActivations(activationStride(columns, kMatrixBits));
    const int units = min(kBatchUnits, (tiles + 1) / 2 - first_unit);
    for (int unit = share.unit; unit < units; unit += share.unit_step) {
      const bool has_twin = 2 * (first_unit + unit) + 1 < tiles;
      const TileSums sums =
          has_twin ? multiplyTiles<kMatrixBits, true>(queue_, share.blocks, from, lane_)
                   : multiplyTiles<kMatrixBits, false>(queue_, share.blocks, from, lane_);
      const int row_of_tile = lane_ >> 2, text = 2 * (lane_ & 3);
#pragma unroll
      for (int i = 0; i < (kRows > 1 ? 2 : 1); ++i) {
        if (kRows > 1 || text == 0) {
          partials()[partialAt(2 * unit, slice, text + i, split) + row_of_tile] = sums.first[i];
          partials()[partialAt(2 * unit + 1, slice, text + i, split) + row_of_tile] = sums.twin[i];
        }
      }
    }
  }

  __device__ float sumOfSlices(int tile, int row, int index, DecodeSplit split) const {
    const float* from = partials() + partialAt(tile, 0, row, split) + index;
    const int slices = 1 << split.log_slices;
    float part[kDecodeWarps];
#pragma unroll
    for (int slice = 0; slice < kDecodeWarps; ++slice) {
      part[slice] = slice < slices ? from[slice * kRows * kTileRows] : 0.0f;
    }
#pragma unroll
    for (int width = kDecodeWarps / 2; width > 0; width /= 2) {
#pragma unroll
      for (int slice = 0; slice < width; ++slice) part[slice] += part[slice + width];
    }
    return part[0];
  }

  //! Which value of a batch a thread finishes: of tile, text and row of the tile.
  struct Item {
    int tile, row, index;
    __device__ Item()
        : tile(threadIdx.x / (kTileRows * kRows)),
          row(threadIdx.x / kTileRows % kRows),
          index(threadIdx.x % kTileRows) {}
  };

  // --- Phases ----------------------------------------------------------------------------------

  __device__ void channels(int layer) {
    const Item item;
    const int pair_in_batch = item.tile / 2;
    const bool is_gate = item.tile % 2 != 0;
    const int past = args_.k - 1;
    for (int first = 0; first < share_.pairs; first += kBatchUnits) {
      const int pair = first + pair_in_batch;
      const bool is_mine = pair_in_batch < kBatchUnits && pair < share_.pairs && item.row < args_.b;
      const int channel = kTileRows * (share_.pair + pair) + item.index;
      if (first == 0) normalise(layer, args_.norm.of(layer), kBits);
      float weights[kMaxConvPast + 1], before[kMaxConvPast], bias = 0.0f;
      float* state =
          args_.conv_state + (int64_t{layer} * args_.b + item.row) * past * args_.d + channel;
      if (is_mine && !is_gate) {
        bias = args_.conv_bias.of(layer)[channel];
        const float* from = args_.conv_weight.of(layer) + channel;
#pragma unroll
        for (int i = 0; i <= kMaxConvPast; ++i) {
          weights[i] = i <= past ? from[i * args_.d] : 0.0f;
          if (i < kMaxConvPast) before[i] = i < past ? state[i * args_.d] : 0.0f;
        }
      }
      multiplyBatch<kBits>(args_.in_proj, args_.in_split, args_.m, first, 2 * share_.pairs);
      syncComputing();
      if (is_mine) {
        const float value = sumOfSlices(item.tile, item.row, item.index, args_.in_split);
        const int to = (pair * kRows + item.row) * kTileRows + item.index;
        if (is_gate) {
          gate()[to] = fromFloat<Channel>(siluFast(value));
        } else {
          float total = bias;
#pragma unroll
          for (int i = 0; i < kMaxConvPast; ++i) {
            if (i < past) {
              total = fmaf(weights[i], before[i], total);
              state[i * args_.d] = i + 1 < past ? before[i + 1 < kMaxConvPast ? i + 1 : i] : value;
            }
          }
#pragma unroll
          for (int i = 0; i <= kMaxConvPast; ++i) {
            if (i == past) total = fmaf(weights[i], value, total);
          }
          u()[to] = fromFloat<Channel>(siluFast(total));
        }
      }
      syncComputing();
    }
    addColumns(layer);
  }

  //! This block's columns of x_proj times its u, added to the sums of all blocks.
  __device__ void addColumns(int layer) {
    const ColumnShare mine(args_, warp_);
    const DecodeMatrix& matrix = args_.x_proj;
    const __half* scales =
        reinterpret_cast<const __half*>(matrix.scales + layer * matrix.scales_layer_bytes);
    for (int group = mine.row_group; group < mine.row_groups; group += kDecodeWarps) {
      const int row_of_matrix = 32 * group + lane_;
      const bool exists = row_of_matrix < matrix.rows;
      float sums[kRows] = {};
      for (int first = mine.part; first < share_.pairs; first += 4 * mine.parts) {
        float scale[4] = {1.0f, 1.0f, 1.0f, 1.0f};
        if constexpr (kBits != 16) {
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            const int pair = first + i * mine.parts;
            const int scale_group = (kTileRows * (share_.pair + pair)) >> matrix.group_shift;
            if (exists && pair < share_.pairs) {
              scale[i] = __half2float(scales[scale_group * matrix.rows + row_of_matrix]);
            }
          }
        }
        const int slot = queue_.next();
        uint4 words[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) words[i] = loadShared(slot + 512 * i);
        queue_.release();
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int pair = first + i * mine.parts;
          if (pair < share_.pairs) {
            float w[kTileRows];
            unpackColumns(words[i], w);
#pragma unroll
            for (int row = 0; row < kRows; ++row) {
              const Channel* input = u() + (pair * kRows + row) * kTileRows;
              float dot = 0.0f;
#pragma unroll
              for (int j = 0; j < kTileRows; ++j) dot = fmaf(w[j], toFloat(input[j]), dot);
              sums[row] = fmaf(scale[i], dot, sums[row]);
            }
          }
        }
      }
#pragma unroll
      for (int row = 0; row < kRows; ++row) {
        if (exists && row < args_.b) {
          addToSum(args_.sums + kSumStride * (row * mix_ + row_of_matrix), sums[row]);
        }
      }
      if (mine.row_groups <= kDecodeWarps) break;
    }
  }

  //! Eight neighbouring weights of a row of x_proj, in columns' order.
  static __device__ void unpackColumns(const uint4& words, float (&w)[kTileRows]) {
    if constexpr (kBits == 16) {
      const uint32_t bits[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float2 pair = unpackPair<__half>(bits[i]);
        w[2 * i] = pair.x, w[2 * i + 1] = pair.y;
      }
    } else if constexpr (kBits == 8) {
#pragma unroll
      for (int i = 0; i < kTileRows; ++i) {
        const uint32_t word = i < 4 ? words.x : words.y;
        w[i] = static_cast<float>(static_cast<int>((word >> (8 * (i % 4))) & 255u) - 128);
      }
    } else {
#pragma unroll
      for (int i = 0; i < kTileRows; ++i) {
        w[i] = static_cast<float>(static_cast<int>((words.x >> (4 * i)) & 15u) - 8);
      }
    }
  }

  //! What the sums were when they were last complete.
  __device__ unsigned long long* totals() const {
    return sharedAt<unsigned long long>(args_.totals_at);
  }

  //! The complete sums to shared memory, normed where the model wants that. Ends in a barrier.
  __device__ void receiveSums() {
    for (int slot = threadIdx.x; slot < args_.b * mix_; slot += kDecodeThreads) {
      const unsigned long long before = totals()[slot];
      const unsigned long long now =
          awaitSum(args_.sums + kSumStride * slot, before, args_.addends);
      mixed()[slot] = sumBetween(before, now, args_.addends);
      totals()[slot] = now;
    }
    syncComputing();
    if (args_.mixer_norm_eps > 0.0f) {
      for (int job = warp_; job < 3 * args_.b; job += kDecodeWarps) {
        const int row = job / 3, part = job % 3;
        float* values =
            mixed() + row * mix_ + (part == 0 ? 0 : args_.r + (part - 1) * kDecodeState);
        const int count = part == 0 ? args_.r : kDecodeState;
        float squares = 0.0f;
        for (int i = lane_; i < count; i += 32) squares = fmaf(values[i], values[i], squares);
#pragma unroll
        for (int step = 16; step > 0; step /= 2) {
          squares += __shfl_xor_sync(0xffffffffu, squares, step);
        }
        const float norm = rsqrtf(squares / static_cast<float>(count) + args_.mixer_norm_eps);
        for (int i = lane_; i < count; i += 32) values[i] *= norm;
      }
      syncComputing();
    }
  }

  __device__ void scan(int layer) {
    const int entries = stepEntries<kBits>(args_.r);
    const int chunks = args_.r / kStepChunk<kBits>;
    const int channel_lane = lane_ >> 2, quarter = lane_ & 3;
    const int state = lane_ >> 1, half = lane_ & 1;
    const float* bias = args_.dt_bias.of(layer);
    const float* skip = args_.D.of(layer);
    const DecodeMatrix& matrix = args_.dt_proj;
    const __half* scales =
        reinterpret_cast<const __half*>(matrix.scales + layer * matrix.scales_layer_bytes);
    // The channel that this lane has after the sum over states below.
    const int out_index = 4 * half + 2 * ((lane_ >> 1) & 1) + ((lane_ >> 2) & 1);
    float my_bias = 0.0f, my_skip = 0.0f, chunk_scale[4] = {};
    const auto load = [&](int pair) {
      if (pair >= share_.pairs) return;
      const int channel = kTileRows * (share_.pair + pair);
      my_bias = bias[channel + channel_lane];
      my_skip = skip[channel + out_index];
      if constexpr (kBits != 16) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int chunk = quarter + 4 * i;
          const int group = (chunk * kStepChunk<kBits>) >> matrix.group_shift;
          chunk_scale[i] = chunk < chunks
                               ? __half2float(scales[group * matrix.rows + channel + channel_lane])
                               : 0.0f;
        }
      }
    };
    load(warp_);  // While the sums are on their way.
    receiveSums();
    for (int pair = warp_; pair < share_.pairs; pair += kDecodeWarps) {
      const int channel = kTileRows * (share_.pair + pair);
      // The slots of dt_proj, then the rates, then the state of a single text: see WeightStream.
      constexpr int kLast = kRows == 1 ? 2 : 1;
      float step[kRows] = {};
      uint4 rates = {}, states = {};
#pragma unroll 1
      for (int first = 0; first < entries + kLast; first += 4) {
        const int slot = queue_.next();
        uint4 words[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) words[i] = loadShared(slot + 512 * i);
        queue_.release();
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int entry = first + i, chunk = quarter + 4 * entry;
          if (entry == entries) rates = words[i];
          if (entry == entries + 1) states = words[i];
          if (chunk < chunks) {
            float w[kStepChunk<kBits>];
            unpackSteps(words[i], w);
            const float scale = kBits == 16 ? 1.0f : chunk_scale[i];
            addSteps(step, w, scale, chunk);
          }
        }
      }
      const float rates_of[4] = {
          __uint_as_float(rates.x) * kLog2E, __uint_as_float(rates.y) * kLog2E,
          __uint_as_float(rates.z) * kLog2E, __uint_as_float(rates.w) * kLog2E};
      const float bias_kept = my_bias, skip_kept = my_skip;
      load(pair + kDecodeWarps);
      const auto advanceState = [&](int row, const uint4& words) {
        float sum = step[row];
        sum += __shfl_xor_sync(0xffffffffu, sum, 1);
        sum += __shfl_xor_sync(0xffffffffu, sum, 2);
        const float dt = softplusFast(sum + bias_kept);
        float h[4] = {__uint_as_float(words.x), __uint_as_float(words.y), __uint_as_float(words.z),
                      __uint_as_float(words.w)};
        const float* projected = mixed() + row * mix_ + args_.r;
        const float B = projected[state], C = projected[kDecodeState + state];
        const Channel* input = u() + (pair * kRows + row) * kTileRows;
        float y[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float mine = __shfl_sync(0xffffffffu, dt, 4 * (4 * half + i));
          const float drive = mine * toFloat(input[4 * half + i]) * B;
          h[i] = fmaf(exp2Unit(mine * rates_of[i]), h[i], drive);
          y[i] = C * h[i];
        }
        publishOutput(layer, row, pair, y, out_index, skip_kept);
        float* to = args_.ssm_state +
                    ((int64_t{layer} * args_.b + row) * kDecodeState + state) * args_.d + channel +
                    4 * half;
        *reinterpret_cast<float4*>(to) = {h[0], h[1], h[2], h[3]};
      };
      if constexpr (kRows == 1) {
        advanceState(0, states);
      } else {
        for (int first = 0; first < args_.b; first += 4) {
          const int slot = queue_.next();
          uint4 words[4];
#pragma unroll
          for (int i = 0; i < 4; ++i) words[i] = loadShared(slot + 512 * i);
          queue_.release();
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            if (first + i < args_.b) advanceState(first + i, words[i]);
          }
        }
      }
    }
  }

  //! step[text] += scale * (16 or 8 weights of dt_proj) . dt
  __device__ void addSteps(float (&step)[kRows], const float (&w)[kStepChunk<kBits>], float scale,
                           int chunk) const {
#pragma unroll
    for (int row = 0; row < kRows; ++row) {
      if (row < args_.b) {
        const float4* dt =
            reinterpret_cast<const float4*>(mixed() + row * mix_ + chunk * kStepChunk<kBits>);
        float dot = 0.0f;
#pragma unroll
        for (int i = 0; i < kStepChunk<kBits> / 4; ++i) {
          const float4 v = dt[i];
          dot = fmaf(w[4 * i], v.x, dot);
          dot = fmaf(w[4 * i + 1], v.y, dot);
          dot = fmaf(w[4 * i + 2], v.z, dot);
          dot = fmaf(w[4 * i + 3], v.w, dot);
        }
        step[row] = fmaf(scale, dot, step[row]);
      }
    }
  }

  static __device__ void unpackSteps(const uint4& words, float (&w)[kStepChunk<kBits>]) {
    if constexpr (kBits == 16) {
      unpackColumns(words, w);
    } else {
      const uint32_t bits[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
      for (int i = 0; i < 16; ++i) {
        const uint32_t word = bits[i * kBits / 32];
        const uint32_t code = (word >> (i * kBits % 32)) & ((1u << kBits) - 1u);
        w[i] = static_cast<float>(static_cast<int>(code) - (1 << (kBits - 1)));
      }
    }
  }

  //! Sums y over the 16 states: halving exchanges, so that every lane ends with one channel.
  __device__ void publishOutput(int layer, int row, int pair, const float (&y)[4], int out_index,
                                float skip) {
    const bool upper = (lane_ & 2) != 0;
    float keep0 = upper ? y[2] : y[0], keep1 = upper ? y[3] : y[1];
    keep0 += __shfl_xor_sync(0xffffffffu, upper ? y[0] : y[2], 2);
    keep1 += __shfl_xor_sync(0xffffffffu, upper ? y[1] : y[3], 2);
    const bool second = (lane_ & 4) != 0;
    float sum = second ? keep1 : keep0;
    sum += __shfl_xor_sync(0xffffffffu, second ? keep0 : keep1, 4);
    sum += __shfl_xor_sync(0xffffffffu, sum, 8);
    sum += __shfl_xor_sync(0xffffffffu, sum, 16);
    const int at = (pair * kRows + row) * kTileRows + out_index;
    const float out = fmaf(skip, toFloat(u()[at]), sum) * toFloat(gate()[at]);
    const float next = __shfl_xor_sync(0xffffffffu, out, 4);
    if (lane_ < 4) {
      unsigned long long* word = args_.outputs + int64_t{row} * (args_.d / 2) +
                                 (kTileRows * (share_.pair + pair) + out_index) / 2;
      publish(word, packPair<__half>(out, next), epoch_ + layer + 1);
    }
  }

  //! The gated outputs of all blocks as activations of out_proj. Ends in a barrier.
  __device__ void receiveOutputs(int layer) {
    const int row = threadIdx.x / kRowThreads, thread = threadIdx.x % kRowThreads;
    const int words = args_.d / 2, stride = activationStride(args_.d, kBits);
    const uint32_t epoch = epoch_ + layer + 1;
    const unsigned long long* from = args_.outputs + int64_t{row} * words;
    if (row < args_.b) {
      for (int first = 2 * thread; first < words; first += 2 * kRowThreads * kWordsAtOnce) {
        ulonglong2 word[kWordsAtOnce];
#pragma unroll
        for (int i = 0; i < kWordsAtOnce; ++i) {
          const int at = first + 2 * i * kRowThreads;
          if (at < words) word[i] = readPair(from + at);
        }
#pragma unroll
        for (int i = 0; i < kWordsAtOnce; ++i) {
          const int at = first + 2 * i * kRowThreads;
          if (at < words) {
            while (!isOf(word[i], epoch)) word[i] = readPair(from + at);
            storeOutputs(row, stride, at, static_cast<uint32_t>(word[i].x),
                         static_cast<uint32_t>(word[i].y));
          }
        }
      }
    }
    syncComputing();
  }

  //! Channels 2 at ... 2 at + 3.
  __device__ void storeOutputs(int row, int stride, int at, uint32_t low, uint32_t high) {
    __half* to = activations() + row * stride;
    if constexpr (kBits == 4) {
      const __half2 pairs[2] = {reinterpret_cast<const __half2&>(low),
                                reinterpret_cast<const __half2&>(high)};
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        to[activationPlace(2 * at + 2 * i, 4)] = __low2half(pairs[i]);
        to[activationPlace(2 * at + 2 * i + 1, 4)] = __high2half(pairs[i]);
      }
    } else {
      *reinterpret_cast<uint2*>(to + 2 * at) = make_uint2(low, high);
    }
  }

  __device__ void outputs(int layer) {
    if (share_.outs == 0) return;
    const Item item;
    receiveOutputs(layer);
    const bool is_last = layer + 1 == args_.layers;
    const int units = (share_.outs + 1) / 2;
    for (int first = 0; first < units; first += kBatchUnits) {
      multiplyBatch<kBits>(args_.out_proj, args_.out_split, args_.d, first, share_.outs);
      syncComputing();
      const int tile = 2 * first + item.tile;
      if (item.tile < 2 * kBatchUnits && tile < share_.outs && item.row < args_.b) {
        float& residual = own()[(tile * kRows + item.row) * kTileRows + item.index];
        residual += sumOfSlices(item.tile, item.row, item.index, args_.out_split);
        const int column = kTileRows * (share_.out + tile) + item.index;
        publish(args_.residuals + int64_t{item.row} * args_.m + column, __float_as_uint(residual),
                epoch_ + layer + 1);
        if (is_last && args_.y != nullptr) args_.y[item.row * args_.m + column] = residual;
      }
      syncComputing();
    }
  }

  // --- Head ------------------------------------------------------------------------------------

  struct Candidate {
    float logit;
    int32_t id;
    __device__ bool isBehind(const Candidate& other) const {
      return other.logit > logit || (other.logit == logit && other.id < id);
    }
  };

  template <int kHeadBits>
  __device__ void headBatches(Candidate& best) {
    const Item item;
    normalise(args_.layers, args_.final_norm, kHeadBits);
    const int units = (share_.heads + 1) / 2;
    for (int first = 0; first < units; first += kBatchUnits) {
      multiplyBatch<kHeadBits>(args_.head, args_.head_split, args_.m, first, share_.heads);
      syncComputing();
      const int tile = 2 * first + item.tile;
      if (item.tile < 2 * kBatchUnits && tile < share_.heads && item.row < args_.b) {
        const float logit = sumOfSlices(item.tile, item.row, item.index, args_.head_split);
        const int32_t id = kTileRows * (share_.head + tile) + item.index;
        if (id < args_.vocab) {
          if (args_.logits != nullptr) args_.logits[int64_t{item.row} * args_.vocab + id] = logit;
          const Candidate candidate = {logit, id};
          if (best.isBehind(candidate)) best = candidate;
        }
      }
      syncComputing();
    }
  }

  //! Head and greedy choice; then the words that the next call begins with.
  __device__ void finish() {
    Candidate best = {-INFINITY, 0x7fffffff};
    if (args_.head.data != nullptr && share_.heads > 0) {
      if (args_.head.bits == 16) {
        headBatches<16>(best);
      } else if (args_.head.bits == 8) {
        headBatches<8>(best);
      } else {
        headBatches<4>(best);
      }
    }
    const uint32_t epoch = epoch_ + args_.layers;
    // One candidate a thread; threads of one text differ in tile and index.
    Candidate* candidates = reinterpret_cast<Candidate*>(partials());
    candidates[threadIdx.x] = best;
    syncComputing();
    constexpr int kRowStride = kTileRows * kRows;
    for (int row = warp_; row < args_.b; row += kDecodeWarps) {
      Candidate mine = {-INFINITY, 0x7fffffff};
      for (int i = lane_; i < kDecodeThreads / kRows; i += 32) {
        const int at = i / kTileRows * kRowStride + row * kTileRows + i % kTileRows;
        if (mine.isBehind(candidates[at])) mine = candidates[at];
      }
      mine = bestOfWarp(mine);
      if (lane_ == 0) {
        unsigned long long* words = args_.best + 2 * (int64_t{blockIdx.x} * args_.b + row);
        publish(words, __float_as_uint(mine.logit), epoch);
        publish(words + 1, static_cast<uint32_t>(mine.id), epoch);
      }
    }
    if (blockIdx.x != 0) return;
    // Every block has sent its last word: whatever they read at their start may change now.
    for (int row = warp_; row < args_.b; row += kDecodeWarps) {
      Candidate mine = {-INFINITY, 0x7fffffff};
      for (int block = lane_; block < args_.blocks; block += 32) {
        const ulonglong2 words =
            awaitPair(args_.best + 2 * (int64_t{block} * args_.b + row), epoch);
        const Candidate candidate = {__uint_as_float(static_cast<uint32_t>(words.x)),
                                     static_cast<int32_t>(words.y)};
        if (mine.isBehind(candidate)) mine = candidate;
      }
      mine = bestOfWarp(mine);
      // Logits that are no numbers choose the first token rather than a place outside the table.
      if (lane_ == 0 && args_.next_ids != nullptr) {
        args_.next_ids[row] = mine.id < args_.vocab ? mine.id : 0;
      }
    }
    syncComputing();
    for (int slot = threadIdx.x; slot < args_.b * mix_; slot += kDecodeThreads) {
      args_.totals[slot] = totals()[slot];
    }
    if (threadIdx.x == 0) *args_.epoch = epoch;
  }

  static __device__ Candidate bestOfWarp(Candidate mine) {
#pragma unroll
    for (int step = 16; step > 0; step /= 2) {
      const Candidate other = {__shfl_xor_sync(0xffffffffu, mine.logit, step),
                               __shfl_xor_sync(0xffffffffu, mine.id, step)};
      if (mine.isBehind(other)) mine = other;
    }
    return mine;
  }

  const DecodeArgs& args_;
  const BlockShare& share_;
  Queue queue_;
  const int warp_, lane_;
  const int mix_;
  const uint32_t epoch_;
};

template <int kBits, int kRows, int kDepth>
__global__ void __launch_bounds__(kDecodeBlockThreads, 1)
    decodeKernel(const __grid_constant__ DecodeArgs args) {
  extern __shared__ __align__(128) uint8_t shared[];
  const BlockShare share(args);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  if (threadIdx.x < kDecodeWarps) {
    Ring<kBits, kDepth>(shared, threadIdx.x, 0).start();
  }
  __syncthreads();
  if (warp >= kDecodeWarps) {
    WeightFetcher<kBits, kRows, kDepth>(args, share, shared, warp - kDecodeWarps, lane).run();
  } else {
    const WeightQueue<kBits, kDepth> queue(shared, warp, lane);
    DecodeBlock<kBits, kRows, kDepth>(args, share, queue).run();
  }
}

}  // namespace s6
