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
 *                 (gates after that where they are apart)
 *     scan        sums -> dt_proj -> recurrence -> gated output                              | y
 *     outputs     y -> out_proj + residual                                                   | x
 *
 * Shared memory besides the ring: activations [texts][columns] float16 (of one text two halves), or
 * [digit][columns] bytes (of in_proj, then of x_proj, dt_proj and out_proj in turn) · partials
 * [tile][slice][text][8] · mixed [text][r + 2 n] · channels: u and gate [pair][text][8] · own: the
 * residual of the block's rows [tile][text][8] · reduce (small sums) · candidates of the greedy
 * choice. Each is written by one phase, read by the next, with a barrier of the computing warps
 * between, or, of a single text's activations, of the warps that share a slice of the columns; see
 * the phases.
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

//! The residual before the first block: a row of the embedding, or x.
static __device__ float firstResidual(const DecodeArgs& args, int row, int column) {
  const DecodeMatrix& e = args.embedding;
  if (e.data == nullptr) return args.x[row * args.m + column];
  const int64_t token = args.token_ids[row];
  if (token < 0 || token >= e.rows) return 0.0f;
  const uint8_t* at = e.data + token * e.row_bytes;
  if (e.bits == 16) return __half2float(reinterpret_cast<const __half*>(at)[column]);
  const __half scale =
      reinterpret_cast<const __half*>(e.scales)[int64_t{column >> e.group_shift} * e.rows + token];
  const int code = e.bits == 8 ? at[column] : (at[column / 2] >> (4 * (column & 1))) & 15;
  return static_cast<float>(code - (1 << (e.bits - 1))) * __half2float(scale);
}

//! What the computing warps of a block do.
template <int kBits, int kRows>
class DecodeBlock {
 public:
  using Queue = WeightQueue<kBits>;
  using Channel = std::conditional_t<kRows == 1, float, __half>;

  __device__ DecodeBlock(const DecodeArgs& args, const Queue& queue)
      : args_(args),
        queue_(queue),
        thread_(static_cast<int>(threadIdx.x)),
        warp_(thread_ / 32),
        lane_(thread_ % 32),
        block_(static_cast<int>(blockIdx.x)) {
    if (thread_ < args.b) lastEpoch(thread_) = args.epochs[thread_], normScale(thread_) = 1.0f;
    for (int slot = thread_; slot < args.b * mix(); slot += kDecodeThreads) {
      totals()[slot] = args.totals[slot];
    }
    const int values = share().outs * kTileRows * kRows;
    for (int i = thread_; i < values; i += kDecodeThreads) {
      const int row = i / kTileRows % kRows;
      const int column = kTileRows * (share().out + i / (kTileRows * kRows)) + i % kTileRows;
      if (row < args.b) {
        own()[i] = firstResidual(args, row, column);
        publish(args.residuals + int64_t{row} * args.m + column, own()[i], args.epochs[row] + 1);
      }
    }
    syncComputing();
  }

  __device__ __forceinline__ void run() {
    for (int layer = 0; layer < args_.layers; ++layer) {
      if (share().pairs > 0) {
        channels(layer);
        if (mixesInDigits()) {
          if constexpr (isInDigits(kBits, kRows)) scanInDigits(layer);
        } else {
          scan(layer);
        }
      }
      outputs(layer);
    }
    finish();
  }

 private:
  static constexpr int kBatchUnits = batchPairs(kRows);  // Two tiles each.
  // Of four values each, that a thread awaits together.
  static constexpr int kQuadsAtOnce = kRows == 1 ? 5 : 4;
  // In reduce(), in words: sums and magnitudes of the warps come first.
  static constexpr int kUnitsAt = 2 * kDecodeWarps, kEpochsAt = 3 * kDecodeWarps;
  static constexpr int kScalesAt = kEpochsAt + kRows;
  static constexpr float kNormSlack = 64.0f;  // By what a norm may differ from its power of two.
  static constexpr int kSumsAtOnce = kRows == 1 ? 1 : 4;
  static constexpr int kRowThreads = kDecodeThreads / kRows;  // That stage one text.

  //! Called where a phase begins, so that nothing that follows from the thread's place in the block
  //! is kept in registers for the next block of the model: too much does, and it would spill.
  __device__ __forceinline__ void forgetPlace() {
    asm volatile("" : "+r"(thread_), "+r"(block_));
    warp_ = thread_ >> 5, lane_ = thread_ & 31;
  }

  //! Whether x_proj and dt_proj take their activations as digits.
  __device__ bool mixesInDigits() const {
    return isInDigits(kBits, kRows) && args_.mixes_in_digits != 0;
  }

  __device__ BlockShare share() const { return BlockShare(args_, block_); }
  //! Values that x_proj makes of a text.
  __device__ int mix() const { return args_.r + 2 * kDecodeState; }

  template <typename T>
  __device__ T* sharedAt(int offset) const {
    extern __shared__ __align__(128) uint8_t shared[];
    return reinterpret_cast<T*>(shared + offset);
  }
  __device__ __half* activations() const { return sharedAt<__half>(args_.activations_at); }
  __device__ float* partials() const { return sharedAt<float>(args_.partials_at); }
  __device__ float* mixed() const { return sharedAt<float>(args_.mixed_at); }
  __device__ Channel* u() const { return sharedAt<Channel>(args_.channels_at); }
  __device__ Channel* gate() const { return u() + share().pairs * kTileRows * kRows; }
  __device__ float* own() const { return sharedAt<float>(args_.own_at); }
  __device__ float* reduce() const { return sharedAt<float>(args_.reduce_at); }

  // --- Residual and its norm -------------------------------------------------------------------

  static __device__ float4 floatsOf(const uint4& words) {
    return {__uint_as_float(words.x), __uint_as_float(words.y), __uint_as_float(words.z),
            __uint_as_float(words.w)};
  }

  //! Columns 4 quad ... 4 quad + 3 of a text's activations, of `columns`.
  template <int kMatrixBits>
  __device__ void storeActivations(int row, int columns, int quad, const float4& value) const {
    __half* to = activations() + row * activationStride(columns, kMatrixBits);
    if constexpr (kMatrixBits == 4) {
      const float values[4] = {value.x, value.y, value.z, value.w};
#pragma unroll
      for (int i = 0; i < 4; ++i) to[activationPlace(4 * quad + i, 4)] = __float2half_rn(values[i]);
    } else {
      const __half2 low = __floats2half2_rn(value.x, value.y);
      const __half2 high = __floats2half2_rn(value.z, value.w);
      if constexpr (kRows == 1) {
        // What the upper halves leave of the values are the lower ones.
        const float2 of_low = __half22float2(low), of_high = __half22float2(high);
        __half2* pairs = reinterpret_cast<__half2*>(to);
        __half2* lower_pairs = pairs + halvesStride(columns) / 4;
        const int place = pairPlace(2 * quad), next = pairPlace(2 * quad + 1);
        pairs[place] = low, pairs[next] = high;
        lower_pairs[place] = __floats2half2_rn(value.x - of_low.x, value.y - of_low.y);
        lower_pairs[next] = __floats2half2_rn(value.z - of_high.x, value.w - of_high.y);
      } else {
        reinterpret_cast<uint2*>(to)[quad] = {reinterpret_cast<const uint32_t&>(low),
                                              reinterpret_cast<const uint32_t&>(high)};
      }
    }
  }

  //! The same as digits, highest first, of what `inverse` makes integers; `slice`: the one of the
  //! quad, of 2^log_slices.
  template <int kMatrixBits>
  __device__ void storeDigits(int columns, int quad, const float4& value, float inverse,
                              int log_slices = 0, int slice = 0) const {
    const uint32_t a = biasedDigits(value.x, inverse), b = biasedDigits(value.y, inverse);
    const uint32_t c = biasedDigits(value.z, inverse), d = biasedDigits(value.w, inverse);
    uint8_t* first = sharedAt<uint8_t>(args_.activations_at) + digitPlace(4 * quad, kMatrixBits);
#pragma unroll
    for (int digit = 0; digit < kDigits; ++digit) {
      uint8_t* to = first + digitOffset(columns, log_slices, slice, digit);
      const int byte = kDigits - 1 - digit, two = byte | ((4 + byte) << 4);
      if constexpr (kMatrixBits == 4) {
        const uint32_t even = __byte_perm(a, c, two) ^ 0x8080u;
        const uint32_t odd = __byte_perm(b, d, two) ^ 0x8080u;
        reinterpret_cast<uint16_t*>(to)[0] = static_cast<uint16_t>(even);
        reinterpret_cast<uint16_t*>(to)[2] = static_cast<uint16_t>(odd);
      } else {
        const uint32_t all = __byte_perm(__byte_perm(a, b, two), __byte_perm(c, d, two), 0x5410u);
        *reinterpret_cast<uint32_t*>(to) = all ^ 0x80808080u;
      }
    }
  }

  static __device__ float sumOfWarp(float value) {
#pragma unroll
    for (int step = 16; step > 0; step /= 2) value += __shfl_xor_sync(0xffffffffu, value, step);
    return value;
  }

  //! Sum over the threads of one of several texts; every one of them gets it. One barrier.
  __device__ float sumOfRow(float value) {
    value = sumOfWarp(value);
    constexpr int kWarpsOfRow = kRowThreads / 32;
    if constexpr (kWarpsOfRow == 1) return value;
    if (lane_ == 0) reduce()[warp_] = value;
    syncComputing();
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < kWarpsOfRow; ++i) sum += reduce()[warp_ / kWarpsOfRow * kWarpsOfRow + i];
    return sum;
  }

  static __device__ float squareOf(const float4& v) {
    return fmaf(v.x, v.x, v.y * v.y) + fmaf(v.z, v.z, v.w * v.w);
  }

  static __device__ float4 scaled(const float4& v, float by) {
    return {v.x * by, v.y * by, v.z * by, v.w * by};
  }

  static __device__ float4 scaled(const float4& v, const float4& by) {
    return {v.x * by.x, v.y * by.y, v.z * by.z, v.w * by.w};
  }

  //! Bits of |value|: in the order of the values, infinities and what is no number last.
  static __device__ uint32_t magnitudeBits(float value) {
    return __float_as_uint(value) & 0x7fffffffu;
  }

  static __device__ uint32_t largestBits(const float4& v) {
    return max(max(magnitudeBits(v.x), magnitudeBits(v.y)),
               max(magnitudeBits(v.z), magnitudeBits(v.w)));
  }

  //! This warp's largest magnitude, or what it noted last where that is more and `continues`: for
  //! largestMagnitude after the next barrier.
  __device__ void noteMagnitude(uint32_t bits, bool continues = false) {
    bits = __reduce_max_sync(0xffffffffu, bits);
    float& noted = reduce()[kDecodeWarps + warp_];
    if (lane_ == 0) noted = __uint_as_float(continues ? max(bits, __float_as_uint(noted)) : bits);
  }

  static constexpr float kLeastMagnitude = 1e-30f;  //!< So that no inverse is infinite.

  //! The largest magnitude of all warps, at least kLeastMagnitude.
  __device__ float largestMagnitude() const {
    uint32_t bits = __float_as_uint(kLeastMagnitude);
#pragma unroll
    for (int i = 0; i < kDecodeWarps; ++i) {
      bits = max(bits, __float_as_uint(reduce()[kDecodeWarps + i]));
    }
    return __uint_as_float(bits);
  }

  //! Of several texts: what their activations are scaled by, and what is left of the norm.
  __device__ float& normScale(int row) const { return reduce()[kScalesAt + row]; }
  __device__ float& normRest(int row) const { return reduce()[kScalesAt + kRows + row]; }

  //! The last epoch of a text's call before; in shared memory, because registers are short.
  __device__ uint32_t& lastEpoch(int row) const {
    return sharedAt<uint32_t>(args_.reduce_at + 4 * kEpochsAt)[row];
  }

  //! What the activations that this warp multiplies are worth: of digits the lowest.
  __device__ float& unitOfWarp() const { return reduce()[kUnitsAt + warp_]; }

  /*!
   * The columns of a product that a warp multiplies, staged by the warps that share them: so no
   * warp waits for others, nor for values that it does not need. In quads of four.
   */
  template <int kMatrixBits>
  struct Slice {
    int index, log_slices, log_threads, begin, end, thread;

    __device__ Slice(const DecodeMatrix& matrix, DecodeSplit split, int warp, int lane)
        : index(warp & ((1 << split.log_slices) - 1)),
          log_slices(split.log_slices),
          log_threads(kLogDecodeWarps + 5 - log_slices),
          thread(32 * (warp >> log_slices) + lane) {
      const Range blocks = ProductShare(matrix, split, warp).blocks;
      begin = 128 / kMatrixBits * blocks.begin, end = 128 / kMatrixBits * blocks.end;
    }
    //! Of its threads, the same for all; in the last, those without a quad read the last one.
    __device__ int rounds() const { return (end - begin + (1 << log_threads) - 1) >> log_threads; }
    __device__ bool has(int i) const { return begin + thread + (i << log_threads) < end; }
    __device__ int quad(int i) const { return min(begin + thread + (i << log_threads), end - 1); }
    //! A barrier of its warps.
    __device__ void sync() const {
      asm volatile("bar.sync %0, %1;" ::"r"(2 + index), "r"(1 << log_threads) : "memory");
    }
  };

  //! The largest of the magnitudes in a slice, at least kLeastMagnitude.
  template <typename Slice>
  __device__ float largestOf(const Slice& slice, uint32_t bits) const {
    bits = __reduce_max_sync(0xffffffffu, max(bits, __float_as_uint(kLeastMagnitude)));
    if (slice.log_slices < kLogDecodeWarps) {
      const float* noted = reduce() + kDecodeWarps;
      if (lane_ == 0) reduce()[kDecodeWarps + warp_] = __uint_as_float(bits);
      slice.sync();
#pragma unroll
      for (int i = 0; i < kDecodeWarps; ++i) {
        const int warp = (slice.index + (i << slice.log_slices)) & (kDecodeWarps - 1);
        bits = max(bits, __float_as_uint(noted[warp]));
      }
    }
    return __uint_as_float(bits);
  }

  //! residual * weight as activations of a product with weights of these bits, by the warps that
  //! multiply them; the norm is applied to the product's sums, see normOfText. The residual is that
  //! before block `layer`.
  template <int kMatrixBits>
  __device__ void stageResidual(int layer, const float* weight, const DecodeMatrix& matrix,
                                DecodeSplit split) {
    forgetPlace();
    constexpr bool kAreDigits = isInDigits(kMatrixBits, kRows);
    const Slice<kMatrixBits> slice(matrix, split, warp_, lane_);
    const int rounds = slice.rounds();
    const float4* weights = reinterpret_cast<const float4*>(weight);
    uint4 word[kResidualQuads] = {};
    float4 value[kResidualQuads] = {}, scale[kResidualQuads] = {};
#pragma unroll
    for (int i = 0; i < kResidualQuads; ++i) {
      if (i < rounds) scale[i] = weights[slice.quad(i)];  // On their way with the residuals.
    }
    awaitQuads(word, rounds, lastEpoch(0) + layer + 1,
               [&](int i) { return args_.residuals + 4 * slice.quad(i); });
    float squares = 0.0f;
    uint32_t largest = 0;
#pragma unroll
    for (int i = 0; i < kResidualQuads; ++i) {
      if (i >= rounds) break;
      if (slice.has(i)) value[i] = valuesOf(word[i]);
      squares += squareOf(value[i]);
      value[i] = scaled(value[i], scale[i]);
      largest = max(largest, largestBits(value[i]));
    }
    const float most = largestOf(slice, largest);
    float inverse, unit;
    if constexpr (kAreDigits) {
      inverse = kLargestFixed * reciprocalUnit(most), unit = most * (1.0f / kLargestFixed);
    } else {
      // The power of two that brings the largest between 2^14 and 2^15, so that no half overflows.
      const uint32_t exponent = __float_as_uint(most) & 0x7f800000u;
      constexpr uint32_t kOne = 127u << 23, kShift = 14u << 23;
      inverse = __uint_as_float(2 * kOne + kShift - exponent);
      unit = __uint_as_float(exponent - kShift);
    }
#pragma unroll
    for (int i = 0; i < kResidualQuads; ++i) {
      if (!slice.has(i)) break;
      if constexpr (kAreDigits) {
        storeDigits<kMatrixBits>(args_.m, slice.quad(i), value[i], inverse, slice.log_slices,
                                 slice.index);
      } else {
        storeActivations<kMatrixBits>(0, args_.m, slice.quad(i), scaled(value[i], inverse));
      }
    }
    squares = sumOfWarp(squares);
    if (lane_ == 0) reduce()[warp_] = squares, unitOfWarp() = unit;
    slice.sync();
  }

  //! What the sums of a product with the residual lack.
  __device__ float normOfText(int row) const {
    if constexpr (kRows > 1) return normRest(row);
    static_assert(kDecodeWarps == 8, "two quads of sums");
    const float4* squares = sharedAt<const float4>(args_.reduce_at);
    const float4 a = squares[0], b = squares[1];
    const float sum = ((a.x + b.x) + (a.y + b.y)) + ((a.z + b.z) + (a.w + b.w));
    return rsqrtf(sum * args_.inverse_m + args_.norm_eps);
  }

  //! rms_norm(residual) * weight as activations of a product with weights of these bits, of several
  //! texts. The residual is that before block `layer`.
  template <int kMatrixBits>
  __device__ void normalise(int layer, const float* weight) {
    forgetPlace();
    const int quads = args_.m / 4;
    const int row = thread_ / kRowThreads, thread = thread_ % kRowThreads;
    const bool exists = row < args_.b;
    const uint32_t epoch = exists ? lastEpoch(row) + layer + 1 : 0;
    const float* residuals = args_.residuals + int64_t{row} * args_.m;
    const float4* weights = reinterpret_cast<const float4*>(weight);
    // Too many for registers, so the norm comes too late for the activations: they are scaled by
    // a power of two near it, the one that fitted last, and the product's sums by the rest.
    float& scale = normScale(row);
    float norm = 1.0f;
#pragma unroll 1
    for (int attempt = 0; exists && attempt < 2; ++attempt) {
      const float by = scale;
      float squares = 0.0f;
      for (int first = thread; first < quads; first += kQuadsAtOnce * kRowThreads) {
        const int count = (quads - first + kRowThreads - 1) / kRowThreads;
        const auto quadOf = [&](int i) { return first + i * kRowThreads; };
        uint4 word[kQuadsAtOnce] = {};
        float4 weight_of[kQuadsAtOnce] = {};
#pragma unroll
        for (int i = 0; i < kQuadsAtOnce; ++i) {
          if (i < count) weight_of[i] = weights[quadOf(i)];  // On their way with the residuals.
        }
        awaitQuads(word, count, epoch, [&](int i) { return residuals + 4 * quadOf(i); });
#pragma unroll
        for (int i = 0; i < kQuadsAtOnce; ++i) {
          if (i >= count) break;
          const float4 value = valuesOf(word[i]);
          squares += squareOf(value);
          storeActivations<kMatrixBits>(row, args_.m, quadOf(i),
                                        scaled(scaled(value, by), weight_of[i]));
        }
      }
      norm = rsqrtf(sumOfRow(squares) * args_.inverse_m + args_.norm_eps);
      const float rest = norm / by;
      if (thread == 0) normRest(row) = rest;
      if (rest > 1.0f / kNormSlack && rest < kNormSlack) break;
      __syncwarp();
      if (thread == 0) scale = __uint_as_float(__float_as_uint(norm) & 0x7f800000u);
      __syncwarp();
    }
    syncComputing();
  }

  // --- Products --------------------------------------------------------------------------------

  //! Offset in shared memory of the activations that this lane multiplies with its first block.
  template <int kMatrixBits>
  __device__ int laneActivations(int columns, int first_block, int log_slices = 0,
                                 int slice = 0) const {
    const int column = 512 / kMatrixBits * first_block;
    const int group = lane_ >> 2, place = lane_ & 3;
    // Columns of the product beyond the digits or texts are never looked at.
    if constexpr (isInDigits(kMatrixBits, kRows)) {
      return args_.activations_at +
             digitOffset(columns, log_slices, slice, min(group, kDigits - 1)) + column + 16 * place;
    } else {
      const int text = kRows == 1 ? 0 : min(group, args_.b - 1);
      // Of a single text: see multiplyHalves.
      const int half = kRows == 1 ? 8 * (group & 1) + halvesStride(columns) * (group >> 1 & 1) : 0;
      return args_.activations_at + 2 * (text * activationStride(columns, kMatrixBits) + column) +
             (kMatrixBits == 16 ? 16 : 32) * place + half;
    }
  }

  __device__ int partialAt(int tile, int slice, int row, DecodeSplit split) const {
    const int tile_stride = ((kTileRows * kRows) << split.log_slices) + kTileRows;
    return tile * tile_stride + (slice * kRows + row) * kTileRows;
  }

  //! A batch of units of a product as far as this warp has a part in it: what can be worked out
  //! before its activations are there.
  struct Batch {
    int units;      //!< Of two tiles.
    int tile_step;  //!< From a unit to the next in partials().
    int blocks;     //!< Of the columns.
    int from;       //!< See laneActivations.
    int to;         //!< Where in partials() the first unit goes.
    int odd;        //!< And the last tile, if it has no twin and is this warp's; else -1.
  };

  template <int kMatrixBits>
  __device__ Batch batchOf(const DecodeMatrix& matrix, DecodeSplit split, int columns,
                           int first_unit, int tiles) {
    forgetPlace();
    const ProductShare share(matrix, split, warp_);
    const int stride = partialAt(1, 0, 0, split);
    const int twins = min(kBatchUnits, tiles / 2 - first_unit);
    const int log_step = kLogDecodeWarps - split.log_slices;
    const int here = partialAt(0, share.slice, 2 * (lane_ & 3), split) + (lane_ >> 2);
    const bool has_odd =
        tiles % 2 != 0 && twins < kBatchUnits && (twins & (share.unit_step - 1)) == share.unit;
    Batch batch = {
        max(0, (twins - share.unit + share.unit_step - 1) >> log_step),
        2 * share.unit_step * stride,
        share.blocks.size(),
        laneActivations<kMatrixBits>(columns, share.blocks.begin, split.log_slices, share.slice),
        here + 2 * share.unit * stride,
        has_odd ? here + 2 * twins * stride : -1};
    // Now, and not where it is used.
    asm volatile(""
                 : "+r"(batch.units), "+r"(batch.tile_step), "+r"(batch.blocks), "+r"(batch.from),
                   "+r"(batch.to), "+r"(batch.odd));
    return batch;
  }

  //! This warp's sums of a batch to shared memory.
  template <int kMatrixBits, bool kMayBeOdd>
  __device__ void multiplyBatch(const Batch& batch, DecodeSplit split) {
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

  __device__ float sumOfSlices(int tile, int row, int index, DecodeSplit split) const {
    const float* from = partials() + partialAt(tile, 0, row, split) + index;
    // Always as many addends as there are warps: fewer slices count several times, which is exact.
    const int slices = 1 << split.log_slices;
    float part[kDecodeWarps];
#pragma unroll
    for (int slice = 0; slice < kDecodeWarps; ++slice) {
      part[slice] = from[(slice & (slices - 1)) * kRows * kTileRows];
    }
#pragma unroll
    for (int width = kDecodeWarps / 2; width > 0; width /= 2) {
#pragma unroll
      for (int slice = 0; slice < width; ++slice) part[slice] += part[slice + width];
    }
    return part[0] * (static_cast<float>(slices) / kDecodeWarps);
  }

  //! Which value of a batch a thread finishes: of tile, text and row of the tile.
  struct Item {
    int tile, row, index;
    __device__ explicit Item(int thread)
        : tile(thread / (kTileRows * kRows)),
          row(thread / kTileRows % kRows),
          index(thread % kTileRows) {}
  };

  //! So that a loop that is not unrolled can take the first of four registers in each round.
  template <typename T>
  static __device__ __forceinline__ void moveUp(T (&values)[4]) {
    values[0] = values[1], values[1] = values[2], values[2] = values[3];
  }

  //! Half of a slot, four times 16 bytes.
  static __device__ __forceinline__ void loadWords(uint4 (&words)[4], const Slot& slot, int half) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      words[i] = loadShared(slot.at + half * halfSlotBytes(kBits) + 512 * i);
    }
  }

  // --- Phases ----------------------------------------------------------------------------------

  //! A value of in_proj, and what the convolution knows of its channel.
  struct ChannelItem : Item {
    int pair, channel;
    bool is_gate, is_mine;
    float* state;
    //! first: the first unit of the batch, of a block that has so many pairs.
    __device__ ChannelItem(const DecodeBlock& block, int layer, int first)
        : Item(block.thread_), pair(first + this->tile / 2), is_gate(this->tile % 2 != 0) {
      const DecodeArgs& args = block.args_;
      const BlockShare share = block.share();
      const int gates = firstGates<kBits>(args, share.pairs);
      is_mine = this->tile < 2 * kBatchUnits && this->row < args.b &&
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

  //! The block's u and gates. The scan wants the gates, so they are made while the sums of x_proj
  //! are on their way where they are apart.
  __device__ void channels(int layer) {
    forgetPlace();
    const int past = args_.k - 1;
    int first = 0;
#pragma unroll 1
    while (first < share().pairs) {
      // Of several texts first, because it takes most registers; of one text after all that can be
      // worked out or asked for before the residual is there.
      if constexpr (kRows > 1) {
        if (first == 0) normalise<kBits>(layer, args_.norm.of(layer));
      }
      const int gates = firstGates<kBits>(args_, share().pairs);
      const Batch batch = batchOf<kBits>(args_.in_proj, args_.in_split, args_.m, first,
                                         2 * (first < gates ? gates : share().pairs));
      float weights[kMaxConvPast + 1] = {}, before[kMaxConvPast] = {}, bias = 0.0f;
      if (const ChannelItem item(*this, layer, first); item.is_mine && !item.is_gate) {
        bias = args_.conv_bias.of(layer)[item.channel];
        const float* from = args_.conv_weight.of(layer) + item.channel;
#pragma unroll
        for (int i = 0; i <= kMaxConvPast; ++i) {
          weights[i] = i <= past ? from[i * args_.d] : 0.0f;
          if (i < kMaxConvPast) before[i] = i < past ? item.state[i * args_.d] : 0.0f;
        }
      }
      ColumnScales scales;
      if (kRows == 1 && !mixesInDigits()) scales.begin(*this, layer);
      if constexpr (kRows == 1) {
        if (first == 0) {
          stageResidual<kBits>(layer, args_.norm.of(layer), args_.in_proj, args_.in_split);
        }
      }
      multiplyBatch<kBits, false>(batch, args_.in_split);
      syncComputing();
      uint32_t magnitude = 0;
      // Made anew, so that it takes no registers during the products.
      if (const ChannelItem item(*this, layer, first); item.is_mine) {
        const float value =
            sumOfSlices(item.tile, item.row, item.index, args_.in_split) * normOfText(item.row);
        const int to = (item.pair * kRows + item.row) * kTileRows + item.index;
        if (item.is_gate) {
          gate()[to] = fromFloat<Channel>(siluFast(value));
        } else {
          float total = bias;
#pragma unroll
          for (int i = 0; i < kMaxConvPast; ++i) {
            if (i < past) {
              total = fmaf(weights[i], before[i], total);
              item.state[i * args_.d] =
                  i + 1 < past ? before[i + 1 < kMaxConvPast ? i + 1 : i] : value;
            }
          }
#pragma unroll
          for (int i = 0; i <= kMaxConvPast; ++i) {
            if (i == past) total = fmaf(weights[i], value, total);
          }
          const float input = siluFast(total);
          u()[to] = fromFloat<Channel>(input);
          magnitude = magnitudeBits(input);
        }
      }
      // Made anew too.
      const int channels_end = firstGates<kBits>(args_, share().pairs);
      const bool ends_channels = first < channels_end && first + kBatchUnits >= channels_end;
      if (mixesInDigits()) noteMagnitude(magnitude, first > 0);
      first = ends_channels ? channels_end : first + kBatchUnits;
      if (ends_channels && !mixesInDigits()) {
        if (kRows > 1) scales.begin(*this, layer);
        addColumns(layer, scales);
      } else {
        syncComputing();
        if constexpr (isInDigits(kBits, kRows)) {
          if (ends_channels) addColumnDigits();
        }
      }
    }
  }

  //! This block's columns of x_proj times the digits of its u, added to the sums of all blocks.
  //! Those of other blocks in the same column blocks are taken times zero.
  __device__ void addColumnDigits() {
    forgetPlace();
    const ProductShare mine(args_, share(), warp_);
    constexpr int kColumns = 512 / kBits;
    const int before = kTileRows * share().pair - kColumns * mine.blocks.begin;
    const int channels = kTileRows * share().pairs;
    const float most = largestMagnitude(), inverse = kLargestFixed * reciprocalUnit(most);
    for (int i = thread_; i < kColumns / 4 * mine.blocks.size(); i += kDecodeThreads) {
      const int channel = 4 * i - before;
      const bool is_own = channel >= 0 && channel < channels;
      const float4 none = {};
      storeDigits<kBits>(args_.d, i,
                         is_own ? *reinterpret_cast<const float4*>(u() + channel) : none, inverse);
    }
    syncComputing();
    const int units = args_.x_proj.rows / (2 * kTileRows);
    const float unit_of_digits = most * (kCodeUnit<kBits> / kLargestFixed);
    multiplyUnits<kBits, kRows, true>(
        queue_, (units - warp_ + kDecodeWarps - 1) / kDecodeWarps, mine.blocks.size(),
        laneActivations<kBits>(args_.d, 0), lane_, args_.signs, [&](int i, const TileSums& sums) {
          const float first = joinDigits(sums.first, unit_of_digits);
          const float twin = joinDigits(sums.twin, unit_of_digits);
          if ((lane_ & 3) == 0) {
            const int row = 2 * kTileRows * (warp_ + kDecodeWarps * i) + (lane_ >> 2);
            addToSum(args_.sums + kSumStride * row, first);
            addToSum(args_.sums + kSumStride * (row + kTileRows), twin);
          }
        });
  }

  static constexpr int kPairBytes = kTileRows * sizeof(Channel);  //!< Of a text in u().

  //! The channels of a pair of one text, at an offset into shared memory.
  static __device__ void loadChannels(float (&values)[kTileRows], int at) {
    if constexpr (kRows == 1) {
      const float4 low = floatsOf(loadShared(at)), high = floatsOf(loadShared(at + 16));
      values[0] = low.x, values[1] = low.y, values[2] = low.z, values[3] = low.w;
      values[4] = high.x, values[5] = high.y, values[6] = high.z, values[7] = high.w;
    } else {
      const uint4 words = loadShared(at);
      const uint32_t pairs[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float2 pair = unpackPair<__half>(pairs[i]);
        values[2 * i] = pair.x, values[2 * i + 1] = pair.y;
      }
    }
  }

  /*!
   * Scales of x_proj as addColumns takes them, step after step. Asked for that far ahead, because
   * L2 answers late while weights stream.
   */
  struct ColumnScales {
    __half ahead[kBits == 16 ? 1 : 3] = {};
    int tile = 0, step = 0;

    __device__ void begin(const DecodeBlock& block, int layer) {
      if constexpr (kBits != 16) {
        tile = ColumnShare<kBits>(block.args_, block.share(), block.warp_).tile, step = 0;
#pragma unroll
        for (__half& scale : ahead) scale = next(block, layer);
      }
    }

    //! That of the next step; asks for one more.
    __device__ float take(const DecodeBlock& block, int layer) {
      if constexpr (kBits == 16) {
        return 1.0f;
      } else {
        const float scale = __half2float(ahead[0]);
        ahead[0] = ahead[1], ahead[1] = ahead[2], ahead[2] = next(block, layer);
        return scale;
      }
    }

   private:
    __device__ __half next(const DecodeBlock& block, int layer) {
      const DecodeMatrix& matrix = block.args_.x_proj;
      const BlockShare share = block.share();
      const ColumnShare<kBits> mine(block.args_, share, block.warp_);
      const int pair = 4 * step + (block.lane_ & 3) - mine.lead;
      __half scale = {};
      if (tile < mine.tiles && pair >= 0 && pair < share.pairs) {
        const int group = kTileRows * (share.pair + pair) >> matrix.group_shift;
        const int row = kTileRows * tile + (block.lane_ >> 2);
        scale = reinterpret_cast<const __half*>(
            matrix.scales + layer * matrix.scales_layer_bytes)[group * matrix.rows + row];
      }
      if (++step == mine.steps) step = 0, tile += kDecodeWarps;
      return scale;
    }
  };

  //! This block's columns of x_proj times its u, added to the sums of all blocks. Begins with a
  //! barrier, for u.
  __device__ void addColumns(int layer, ColumnScales& scales) {
    const ColumnShare<kBits> mine(args_, share(), warp_);
    const int pairs = share().pairs;
    const int quarter = lane_ & 3, row_of_tile = lane_ >> 2;
    syncComputing();
    Slot slot = {};
    int entry = 0;
#pragma unroll 1
    for (int tile = mine.tile; tile < mine.tiles; tile += kDecodeWarps) {
      float sums[kRows] = {};
#pragma unroll 1
      for (int step = 0; step < mine.steps; ++step) {
        constexpr int kStepsOfWindow = ColumnShare<kBits>::kStepsOfWindow;
        const int part = step % kStepsOfWindow;
        if (entry == 0 && part == 0) slot = queue_.take();
        const int at = slot.at + entryAt<kBits>(entry) + 64 * row_of_tile - 16 * lane_ +
                       kBits * (4 * part + quarter);
        uint4 words = {};
        if constexpr (kBits == 16) {
          words = loadShared(at);
        } else if constexpr (kBits == 8) {
          const uint2 half = loadSharedHalf(at);
          words.x = half.x, words.y = half.y;
        } else {
          words.x = *sharedAt<const uint32_t>(at);
        }
        const bool is_last_step = step + 1 == mine.steps;
        if (part + 1 == kStepsOfWindow || is_last_step) {
          const bool is_last = is_last_step && tile + kDecodeWarps >= mine.tiles;
          if (++entry == kSlotEntries || is_last) {
            queue_.lookAhead();
            queue_.giveBack(slot, lane_);
            entry = 0;
          }
        }
        const int pair = 4 * step + quarter - mine.lead;
        const bool is_own = pair >= 0 && pair < pairs;
        const float scale = scales.take(*this, layer);
        float w[kTileRows];
        unpackColumns(words, w);
        // Weights of other blocks' pairs, or none at all, do not count.
        const int inputs = args_.channels_at + (is_own ? pair : 0) * kRows * kPairBytes;
#pragma unroll
        for (int row = 0; row < kRows; ++row) {
          float input[kTileRows];
          loadChannels(input, inputs + row * kPairBytes);
          float even = 0.0f, odd = 0.0f;
#pragma unroll
          for (int k = 0; k < kTileRows; k += 2) {
            even = fmaf(w[k], input[k], even), odd = fmaf(w[k + 1], input[k + 1], odd);
          }
          if (is_own) sums[row] = fmaf(scale, even + odd, sums[row]);
        }
      }
      // Lane q of four adds those of texts q, q + 4.
#pragma unroll
      for (int row = 0; row < kRows; ++row) {
        sums[row] += __shfl_xor_sync(0xffffffffu, sums[row], 1);
        sums[row] += __shfl_xor_sync(0xffffffffu, sums[row], 2);
        if (kRows > 4 && quarter == row % 4) sums[row & ~3] = sums[row];
      }
#pragma unroll
      for (int first = 0; first < kRows; first += 4) {
        const int row = first + quarter;
        if (row < args_.b) {
          addToSum(args_.sums + kSumStride * (row * mix() + kTileRows * tile + row_of_tile),
                   sums[first]);
        }
      }
    }
  }

  //! Code i of a word minus the zero point, made in the mantissa of 2^23: conversions are slow.
  static __device__ float weightOf(uint32_t word, int i) {
    constexpr uint32_t kExponent = 0x4b000000u;
    const uint32_t bits = kBits == 8 ? __byte_perm(word, kExponent, 0x7440u | i)
                                     : ((word >> (4 * i)) & 15u) | kExponent;
    return __uint_as_float(bits) - (8388608.0f + (1 << (kBits - 1)));
  }

  //! The first eight neighbouring weights of a row in 16 bytes, in columns' order.
  static __device__ void unpackColumns(const uint4& words, float (&w)[kTileRows]) {
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

  //! What the sums were when they were last complete.
  __device__ unsigned long long* totals() const {
    return sharedAt<unsigned long long>(args_.totals_at);
  }

  //! The complete sums to shared memory, normed where the model wants that. Ends in a barrier.
  __device__ void receiveSums() {
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
                [&](int i) { return args_.sums + kSumStride * (first + i * kDecodeThreads); });
#pragma unroll
      for (int i = 0; i < kSumsAtOnce; ++i) {
        if (i >= count) break;
        const int slot = first + i * kDecodeThreads;
        mixed()[slot] = sumBetween(before[i], now[i], args_.addends);
        totals()[slot] = now[i];
      }
    }
    syncComputing();
    if (args_.mixer_norm_eps > 0.0f) {
      for (int job = warp_; job < 3 * args_.b; job += kDecodeWarps) {
        const int row = job / 3, part = job % 3;
        float* values =
            mixed() + row * mix() + (part == 0 ? 0 : args_.r + (part - 1) * kDecodeState);
        const int count = part == 0 ? args_.r : kDecodeState;
        float squares = 0.0f;
        for (int i = lane_; i < count; i += 32) squares = fmaf(values[i], values[i], squares);
        const float norm =
            rsqrtf(sumOfWarp(squares) / static_cast<float>(count) + args_.mixer_norm_eps);
        for (int i = lane_; i < count; i += 32) values[i] *= norm;
      }
      syncComputing();
    }
  }

  __device__ void scan(int layer) {
    forgetPlace();
    const int entries = stepEntries<kBits>(args_.r);
    const int chunks = args_.r / kStepChunk<kBits>;
    const int channel_lane = lane_ >> 2, quarter = lane_ & 3;
    const int state = lane_ >> 1, half = lane_ & 1;
    const DecodeMatrix& matrix = args_.dt_proj;
    const __half* scales =
        reinterpret_cast<const __half*>(matrix.scales + layer * matrix.scales_layer_bytes);
    const int out_index = outputIndex();
    float my_bias = 0.0f, my_skip = 0.0f;
    // Of a single text not converted before they are used, so that nothing waits for them sooner.
    using Scale = std::conditional_t<kRows == 1, __half, float>;
    Scale chunk_scale[4] = {};
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
              chunk < chunks
                  ? static_cast<Scale>(scales[group * matrix.rows + channel + channel_lane])
                  : Scale{};
        }
      }
    };
    load(warp_);  // While the sums are on their way.
    receiveSums();
    for (int pair = warp_; pair < share().pairs; pair += kDecodeWarps) {
      const int channel = kTileRows * (share().pair + pair);
      // The slots of dt_proj, then the rates, then the state of a single text: see WeightStream.
      constexpr int kLast = kRows == 1 ? 2 : 1;
      float step[kRows] = {};
      uint4 rates = {}, states = {};
      Slot slot = {};
#pragma unroll 1
      for (int first = 0; first < entries + kLast; first += 4) {
        const int half = first / 4 % 2;
        if (half == 0) slot = queue_.take();
        uint4 words[4];
        loadWords(words, slot, half);
        if (half == 1 || first + 4 >= entries + kLast) {
          queue_.lookAhead();
          queue_.giveBack(slot, lane_);
        }
        // As in addColumns.
#pragma unroll(kBits == 16 ? 4 : 1)
        for (int i = 0; i < 4; ++i) {
          const int entry = first + i, chunk = quarter + 4 * entry;
          if (entry == entries) rates = words[0];
          if (entry == entries + 1) states = words[0];
          if (chunk < chunks) {
            float w[kStepChunk<kBits>];
            unpackSteps(words[0], w);
            addSteps(step, w, kBits == 16 ? 1.0f : static_cast<float>(chunk_scale[0]), chunk);
          }
          moveUp(chunk_scale);
          moveUp(words);
        }
      }
      const float rates_of[4] = {
          __uint_as_float(rates.x) * kLog2E, __uint_as_float(rates.y) * kLog2E,
          __uint_as_float(rates.z) * kLog2E, __uint_as_float(rates.w) * kLog2E};
      const float bias_kept = my_bias, skip_kept = my_skip;
      load(pair + kDecodeWarps);
      // Of texts first_row ..., as many as there are states; those of no text are not kept.
      const auto advanceStates = [&](int first_row, auto& states_of) {
        constexpr int kCount = sizeof(states_of) / sizeof(uint4);
        float dt[kCount], out[kCount], h[kCount][4];
#pragma unroll
        for (int j = 0; j < kCount; ++j) {
          float sum = step[first_row + j];
          sum += __shfl_xor_sync(0xffffffffu, sum, 1);
          sum += __shfl_xor_sync(0xffffffffu, sum, 2);
          dt[j] = softplusFast(sum + bias_kept);
        }
#pragma unroll
        for (int j = 0; j < kCount; ++j) {
          const int row = kRows == 1 ? 0 : min(first_row + j, args_.b - 1);
          const float4 before = floatsOf(states_of[j]);
          h[j][0] = before.x, h[j][1] = before.y, h[j][2] = before.z, h[j][3] = before.w;
          const float* projected = mixed() + row * mix() + args_.r;
          const float B = projected[state], C = projected[kDecodeState + state];
          const Channel* input = u() + (pair * kRows + row) * kTileRows;
          float y[4];
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            const float mine = __shfl_sync(0xffffffffu, dt[j], 4 * (4 * half + i));
            const float drive = mine * toFloat(input[4 * half + i]) * B;
            h[j][i] = fmaf(exp2Unit(mine * rates_of[i]), h[j][i], drive);
            y[i] = C * h[j][i];
          }
          out[j] = gatedOutput(row, pair, y, out_index, skip_kept);
        }
#pragma unroll
        for (int j = 0; j < kCount; ++j) {
          const int row = first_row + j;
          if (kRows > 1 && row >= args_.b) break;
          publishOutput(layer, row, pair, out[j], out_index);
          float* to = args_.ssm_state +
                      ((int64_t{layer} * args_.b + row) * kDecodeState + state) * args_.d +
                      channel + 4 * half;
          *reinterpret_cast<float4*>(to) = {h[j][0], h[j][1], h[j][2], h[j][3]};
        }
      };
      if constexpr (kRows == 1) {
        const uint4 only[1] = {states};
        advanceStates(0, only);
      } else {
        const Slot states_of_all = queue_.take();
#pragma unroll
        for (int first = 0; first < kRows; first += 2) {
          if (first >= args_.b) break;
          const uint4 two[2] = {loadShared(states_of_all.at + entryAt<kBits>(first)),
                                loadShared(states_of_all.at + entryAt<kBits>(first + 1))};
          advanceStates(first, two);
        }
        queue_.lookAhead();
        queue_.giveBack(states_of_all, lane_);
      }
    }
  }

  //! scan where dt_proj takes digits.
  __device__ void scanInDigits(int layer) {
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
        const float y[4] = {
            advance(0, h[j].x, rates[j].x, input.x), advance(1, h[j].y, rates[j].y, input.y),
            advance(2, h[j].z, rates[j].z, input.z), advance(3, h[j].w, rates[j].w, input.w)};
        out[j] = gatedOutput(0, pair, y, out_index, skip_kept[j]);
      }
#pragma unroll
      for (int j = 0; j < kTogether; ++j) {
        if (j >= count) break;
        const int pair = first + j * kDecodeWarps;
        publishOutput(layer, 0, pair, out[j], out_index);
        const int channel = kTileRows * (share().pair + pair) + 4 * half;
        *reinterpret_cast<float4*>(
            args_.ssm_state + (int64_t{layer} * kDecodeState + state) * args_.d + channel) = h[j];
      }
    }
  }

  //! The digits of dt; returns what the lowest is worth in a product. Ends in a barrier.
  __device__ float stageStepDigits() {
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

  /*!
   * Adds 32 columns of dt_proj, chunks 2 i and 2 i + 1 of 16, of which a slot has four an entry: a
   * lane takes half of a chunk. scale: of chunk quarter + 4 (i / 2), zero if there is none;
   * is_split: the two chunks have different ones.
   */
  __device__ __forceinline__ void addStepDigits(float (&digits)[2], const Slot& slot, int i,
                                                int chunks, bool is_split, float scale) const {
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

  //! step[text] += scale * (16 or 8 weights of dt_proj) . dt
  __device__ void addSteps(float (&step)[kRows], const float (&w)[kStepChunk<kBits>], float scale,
                           int chunk) const {
#pragma unroll
    for (int row = 0; row < kRows; ++row) {
      if (row < args_.b) {
        const float4* dt =
            reinterpret_cast<const float4*>(mixed() + row * mix() + chunk * kStepChunk<kBits>);
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
      for (int i = 0; i < 16; ++i) w[i] = weightOf(bits[i * kBits / 32], i % (32 / kBits));
    }
  }

  //! The channel of a pair that this lane has after the sum over states.
  __device__ int outputIndex() const {
    return 4 * (lane_ & 1) + 2 * ((lane_ >> 1) & 1) + ((lane_ >> 2) & 1);
  }

  //! Sums y over the 16 states: halving exchanges, so that every lane ends with one channel.
  __device__ float gatedOutput(int row, int pair, const float (&y)[4], int out_index, float skip) {
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
    return fmaf(skip, toFloat(u()[at]), sum) * toFloat(gate()[at]);
  }

  __device__ void publishOutput(int layer, int row, int pair, float out, int out_index) const {
    if (lane_ >= kTileRows) return;
    float* to = args_.outputs + int64_t{row} * args_.d + kTileRows * (share().pair + pair);
    publish(to + out_index, out, lastEpoch(row) + layer + 1);
  }

  //! The gated outputs of all blocks as activations of out_proj, by the warps that multiply them.
  __device__ void stageOutputs(int layer) {
    forgetPlace();
    const Slice<kBits> slice(args_.out_proj, args_.out_split, warp_, lane_);
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
        storeDigits<kBits>(args_.d, slice.quad(i), values[i], inverse, slice.log_slices,
                           slice.index);
      }
    }
    if (lane_ == 0) unitOfWarp() = unit;
    slice.sync();
  }

  //! The same of several texts, by all warps. Ends in a barrier.
  __device__ void receiveOutputs(int layer) {
    forgetPlace();
    const int row = thread_ / kRowThreads, thread = thread_ % kRowThreads;
    const int quads = args_.d / 4;
    const float* from = args_.outputs + int64_t{row} * args_.d;
    if (row < args_.b) {
      const uint32_t epoch = lastEpoch(row) + layer + 1;
      for (int first = thread; first < quads; first += kQuadsAtOnce * kRowThreads) {
        const int count = (quads - first + kRowThreads - 1) / kRowThreads;
        const auto quadOf = [&](int i) { return first + i * kRowThreads; };
        uint4 word[kQuadsAtOnce] = {};
        awaitQuads(word, count, epoch, [&](int i) { return from + 4 * quadOf(i); });
#pragma unroll
        for (int i = 0; i < kQuadsAtOnce; ++i) {
          if (i >= count) break;
          storeActivations<kBits>(row, args_.d, quadOf(i), valuesOf(word[i]));
        }
      }
    }
    syncComputing();
  }

  __device__ void outputs(int layer) {
    if (share().outs == 0) return;
    const bool is_last = layer + 1 == args_.layers;
    for (int first = 0; 2 * first < share().outs; first += kBatchUnits) {
      const Batch batch =
          batchOf<kBits>(args_.out_proj, args_.out_split, args_.d, first, share().outs);
      if (first == 0) {
        if constexpr (kRows == 1) {
          stageOutputs(layer);
        } else {
          receiveOutputs(layer);
        }
      }
      multiplyBatch<kBits, true>(batch, args_.out_split);
      syncComputing();
      const Item item(thread_);
      const int tile = 2 * first + item.tile;
      if (item.tile < 2 * kBatchUnits && tile < share().outs && item.row < args_.b) {
        float& residual = own()[(tile * kRows + item.row) * kTileRows + item.index];
        residual += sumOfSlices(item.tile, item.row, item.index, args_.out_split);
        const int column = kTileRows * (share().out + tile) + item.index;
        publish(args_.residuals + int64_t{item.row} * args_.m + column, residual,
                lastEpoch(item.row) + layer + 2);
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

  //! The best of each thread; not kept in registers, of which the products need all.
  __device__ Candidate* candidates() const { return sharedAt<Candidate>(args_.candidates_at); }

  template <int kHeadBits>
  __device__ void headBatches() {
    forgetPlace();
    if constexpr (kRows == 1) {
      stageResidual<kHeadBits>(args_.layers, args_.final_norm, args_.head, args_.head_split);
    } else {
      normalise<kHeadBits>(args_.layers, args_.final_norm);
    }
    const int units = (share().heads + 1) / 2;
    for (int first = 0; first < units; first += kBatchUnits) {
      multiplyBatch<kHeadBits, true>(
          batchOf<kHeadBits>(args_.head, args_.head_split, args_.m, first, share().heads),
          args_.head_split);
      syncComputing();
      const Item item(thread_);
      const int tile = 2 * first + item.tile;
      if (item.tile < 2 * kBatchUnits && tile < share().heads && item.row < args_.b) {
        const float logit =
            sumOfSlices(item.tile, item.row, item.index, args_.head_split) * normOfText(item.row);
        const int32_t id = kTileRows * (share().head + tile) + item.index;
        if (id < args_.vocab) {
          if (args_.logits != nullptr) args_.logits[int64_t{item.row} * args_.vocab + id] = logit;
          const Candidate candidate = {logit, id};
          if (candidates()[thread_].isBehind(candidate)) candidates()[thread_] = candidate;
        }
      }
      syncComputing();
    }
  }

  //! Head and greedy choice; then the words that the next call begins with.
  __device__ void finish() {
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
      return args_.best + 2 * (int64_t{row} * kMaxDecodeBlocks + block);
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
  Queue queue_;
  int thread_, warp_, lane_, block_;
};

template <int kBits, int kRows>
__global__ void __launch_bounds__(kDecodeBlockThreads, 1)
    decodeKernel(const __grid_constant__ DecodeArgs args) {
  extern __shared__ __align__(128) uint8_t shared[];
  const BlockShare share(args, static_cast<int>(blockIdx.x));
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  if (threadIdx.x < kDecodeWarps) {
    Ring<kBits>(args, shared, threadIdx.x, 0).start();
  }
  __syncthreads();
  if (warp >= kDecodeWarps) {
    WeightFetcher<kBits, kRows>(args, share, shared, warp - kDecodeWarps, lane).run();
  } else {
    const WeightQueue<kBits> queue(args, shared, warp, lane);
    DecodeBlock<kBits, kRows>(args, queue).run();
  }
}

}  // namespace s6
