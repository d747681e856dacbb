// SPDX-License-Identifier: MIT
/*!
 * \file decode_kernel.cuh
 * \brief One token through the whole model in one persistent launch; equation in s6/decode.h.
 *
 * Grid: one block an SM, all resident (cooperative launch), of 8 warps that compute and 4 or 8 that
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
 * [tile][slice][text][8], and between in_proj and out_proj dt as activations of several texts ·
 * mixed [text][r + 2 n] · channels: u and gate [pair][text][8] · own: the residual of the block's
 * rows [tile][text][8] · reduce (small sums) · candidates of the greedy choice. Each is written by
 * one phase, read by the next, with a barrier of the computing warps between, or, of a single
 * text's activations, of the warps that share a slice of the columns; see the phases.
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
  //! Whose values the threads finish at once.
  static constexpr int kTilesOfRound = kDecodeThreads / (kTileRows * kRows);
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

  __device__ bool mixesInTiles() const { return mayMixInTiles(kBits) && args_.mixes_in_tiles != 0; }
  //! Whether x_proj and dt_proj take their activations as digits.
  __device__ bool mixesInDigits() const { return kRows == 1 && mixesInTiles(); }

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

  //! Columns 8 eight ... 8 eight + 7 of one of several texts, as float16.
  __device__ void storeEight(int row, int columns, int eight, const uint4& v) const {
    __half* to = activations() + row * activationStride(columns, kBits) + 8 * eight;
    *reinterpret_cast<uint4*>(to) = kBits == 4 ? alternating(v) : v;
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
  //! largestNoted after the next barrier.
  __device__ void noteMagnitude(uint32_t bits, bool continues = false) {
    bits = __reduce_max_sync(0xffffffffu, bits);
    float& noted = reduce()[kDecodeWarps + warp_];
    if (lane_ == 0) noted = __uint_as_float(continues ? max(bits, __float_as_uint(noted)) : bits);
  }

  static constexpr float kLeastMagnitude = 1e-30f;  //!< So that no inverse is infinite.

  //! The largest magnitude that warps `first`, `first` + 2^log_step, ... noted, at least
  //! kLeastMagnitude.
  __device__ float largestNoted(int first, int log_step) const {
    uint32_t bits = __float_as_uint(kLeastMagnitude);
#pragma unroll
    for (int i = 0; i < kDecodeWarps; ++i) {
      const int warp = (first + (i << log_step)) & (kDecodeWarps - 1);
      bits = max(bits, __float_as_uint(reduce()[kDecodeWarps + warp]));
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

    __device__ Slice(const ProductShare& share, DecodeSplit split, int lane)
        : index(share.slice),
          log_slices(split.log_slices),
          log_threads(kLogDecodeWarps + 5 - log_slices),
          begin(128 / kMatrixBits * share.blocks.begin),
          end(128 / kMatrixBits * share.blocks.end),
          thread(32 * share.unit + lane) {}
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
  __device__ float largestOf(const Slice& slice, uint32_t bits) {
    if (slice.log_slices == kLogDecodeWarps) {  // All of it is this warp's.
      bits = __reduce_max_sync(0xffffffffu, max(bits, __float_as_uint(kLeastMagnitude)));
      return __uint_as_float(bits);
    }
    noteMagnitude(bits);
    slice.sync();
    return largestNoted(slice.index, slice.log_slices);
  }

  //! residual * weight as activations of a product with weights of these bits, by the warps that
  //! multiply them; the norm is applied to the product's sums, see normOfText. The residual is that
  //! before block `layer`.
  template <int kMatrixBits>
  __device__ void stageResidual(int layer, const float* weight, const DecodeMatrix& matrix,
                                DecodeSplit split) {
    forgetPlace();
    constexpr bool kAreDigits = isInDigits(kMatrixBits, kRows);
    const Slice<kMatrixBits> slice(ProductShare(matrix, split, warp_), split, lane_);
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
                           int first_unit, int tiles, ColumnPart part = {}) {
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

  //! Which value of a batch a thread finishes in round `round`: of tile, text and row of the tile.
  //! Rounds swap a unit's two tiles, because a channel takes longer than a gate.
  struct Item {
    int tile, row, index;
    __device__ explicit Item(int thread, int round = 0)
        : tile((thread / (kTileRows * kRows) + round * kTilesOfRound) ^ (round & 1)),
          row(thread / kTileRows % kRows),
          index(thread % kTileRows) {}
  };

  //! In which the values of `tiles` tiles are finished.
  static __device__ int roundsOf(int tiles) {
    return kRows == 1 ? 1 : (tiles + kTilesOfRound - 1) / kTilesOfRound;
  }

  //! finish(item, tile) for what this thread finishes of the batch from `first_unit` on; tile: of
  //! the block, which has so many.
  template <typename Finish>
  __device__ __forceinline__ void finishBatch(int first_unit, int batch_units, int block_tiles,
                                              const Finish& finish) const {
    const int tiles = min(2 * batch_units, block_tiles - 2 * first_unit), rounds = roundsOf(tiles);
    for (int round = 0; round < rounds; ++round) {
      const Item item(thread_, round);
      if (item.tile < tiles && item.row < args_.b) finish(item, 2 * first_unit + item.tile);
    }
  }

  //! So that a loop that is not unrolled can take the first of four registers in each round.
  template <typename T>
  static __device__ __forceinline__ void moveUp(T (&values)[4]) {
    values[0] = values[1], values[1] = values[2], values[2] = values[3];
  }

  // --- Phases ----------------------------------------------------------------------------------

  //! A value of in_proj.
  struct ChannelItem : Item {
    int pair, channel;
    bool is_gate, is_mine;
    float* state;
    //! first: the first unit of the batch, of a block that has so many pairs.
    __device__ ChannelItem(const DecodeBlock& block, int layer, int first, int round = 0)
        : Item(block.thread_, round), pair(first + this->tile / 2), is_gate(this->tile % 2 != 0) {
      const DecodeArgs& args = block.args_;
      const BlockShare share = block.share();
      const int gates = firstGates<kBits>(args, share.pairs);
      is_mine = this->tile < 2 * batchUnits(kRows, args.in_split.log_slices) &&
                this->row < args.b && pair < (first < gates ? gates : share.pairs);
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

  //! What the convolution knows of a channel before its value is there.
  struct Convolution {
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

  //! Makes a channel's u or gate of the sums of in_proj; the magnitude of u.
  __device__ uint32_t finishChannel(const ChannelItem& item, const Convolution& convolution) {
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

  //! The block's u and gates. The scan wants the gates, so they are made while the sums of x_proj
  //! are on their way where they are apart.
  __device__ void channels(int layer) {
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

  //! This block's columns of x_proj times its u, added to the sums of all blocks. Those of other
  //! blocks in the same column blocks are taken times zero.
  __device__ void addColumnTiles() {
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
        storeDigits<kBits>(
            args_.d, i, is_own ? *reinterpret_cast<const float4*>(u() + channel) : none, inverse);
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

  /*!
   * Where 8 columns `piece` of a text begin in a table [piece][text][8]. Texts are turned by two
   * for each `turn`, so that products find those of two texts at four turns in different banks.
   */
  static __device__ int placeOf(int piece, int text, int turn) {
    return kTileRows * (kRows * piece + ((text + 2 * turn) & (kRows - 1)));
  }

  //! Eight floats at an offset into shared memory.
  static __device__ void loadEight(float (&values)[kTileRows], int at) {
    const float4 low = floatsOf(loadShared(at)), high = floatsOf(loadShared(at + 16));
    values[0] = low.x, values[1] = low.y, values[2] = low.z, values[3] = low.w;
    values[4] = high.x, values[5] = high.y, values[6] = high.z, values[7] = high.w;
  }

  //! Weights of a row for the channels of a pair, as packed, at an offset into shared memory.
  __device__ uint4 loadColumns(int at) const {
    if constexpr (kBits == 16) return loadShared(at);
    if constexpr (kBits == 8) {
      const uint2 words = loadSharedHalf(at);
      return {words.x, words.y, 0, 0};
    }
    return {*sharedAt<const uint32_t>(at), 0, 0, 0};
  }

  //! This block's columns of x_proj times its u, added to the sums of all blocks. Begins with a
  //! barrier, for u.
  __device__ void addColumns() {
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

  //! Adds this warp's sums of four tiles from `tile` on, of which `tiles` exist, to those of all
  //! blocks; quarter and row: of this lane, see addColumns.
  template <int kTiles, int kSums>
  __device__ void addToSums(const float (&sums)[kTiles][kSums], int tile, int tiles, int quarter,
                            int row) {
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

  //! Of several texts dt as activations of a product, where sums of slices lie otherwise.
  __device__ __half* steps() const { return sharedAt<__half>(args_.partials_at); }

  static constexpr int kPiecesOfChunk = kStepChunk<kBits> / kTileRows;

  //! Where piece `piece` of a chunk of a text's dt begins in steps().
  static __device__ int stepPlace(int chunk, int piece, int text) {
    return placeOf(kPiecesOfChunk * chunk + piece, text, chunk);
  }

  //! A value of mixed(), [text][r + 2 n].
  __device__ void keepMixed(int slot, float value) const {
    mixed()[slot] = value;
    if constexpr (kRows > 1) {
      const int text = slot / mix(), column = slot % mix();
      if (column >= args_.r) return;
      const int chunk = column / kStepChunk<kBits>, within = column % kStepChunk<kBits>;
      steps()[stepPlace(chunk, within / kTileRows, text) + within % kTileRows] =
          __float2half_rn(value);
    }
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
      awaitSums(now, before, count, args_.addends, [&](int i) {
        return args_.sums + args_.sum_stride * (first + i * kDecodeThreads);
      });
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
        float* values =
            mixed() + row * mix() + (part == 0 ? 0 : args_.r + (part - 1) * kDecodeState);
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

  __device__ void scan(int layer) {
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
      const float rates_of[4] = {
          __uint_as_float(rates.x) * kLog2E, __uint_as_float(rates.y) * kLog2E,
          __uint_as_float(rates.z) * kLog2E, __uint_as_float(rates.w) * kLog2E};
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

  //! The u of a text for channels 4 half ... 4 half + 3 of a pair.
  __device__ float4 inputsOf(int pair, int text, int half) const {
    const int place = placeOf(pair, text, pair) + 4 * half;
    if constexpr (kRows == 1) return floatsOf(loadShared(args_.channels_at + 4 * place));
    const uint2 words = loadSharedHalf(args_.channels_at + 2 * place);
    const float2 low = unpackPair<__half>(words.x), high = unpackPair<__half>(words.y);
    return {low.x, low.y, high.x, high.y};
  }

  /*!
   * Of a pair the states of the texts from `first_text` on, of several an even one: a step further,
   * and their outputs. dt: of channel lane / 4 for texts 2 (lane % 4) and the next. States of no
   * text are not kept.
   */
  template <int kCount>
  __device__ void advanceStates(int layer, int pair, int first_text, const float (&dt)[2],
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
                ((int64_t{layer} * args_.b + first_text) * kDecodeState + state) * args_.d +
                channel;
#pragma unroll
    for (int j = 0; j < kCount; ++j) {
      if (kRows > 1 && first_text + j >= args_.b) break;
      *reinterpret_cast<float4*>(to) = h[j];
      to += kDecodeState * args_.d;
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

  //! step += scale * (16 or 8 weights of dt_proj) . dt; a chunk beyond `chunks` counts nothing.
  __device__ void addSteps(float& step, const float (&w)[kStepChunk<kBits>], float scale, int chunk,
                           int chunks) const {
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

  //! The same of several texts, by multiplyRows.
  __device__ void multiplySteps(float (&step)[4], const uint4& words, __half scale, int chunk,
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

  //! Sums y, of some texts, over the 16 states: halving exchanges, so that every lane ends with one
  //! channel, outputIndex(), of one text, (lane / 8) % kCount.
  template <int kCount>
  __device__ float sumOverStates(const float (&y)[kCount][4]) const {
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
        sums[j] = (odd ? odd_sum : even_sum) +
                  __shfl_xor_sync(0xffffffffu, odd ? even_sum : odd_sum, bit);
      }
      left = (left + 1) / 2;
    }
    return sums[0];
  }

  //! What sumOverStates gives, with the skip and the gate, for the other blocks.
  template <int kCount>
  __device__ void publishOutput(int layer, int pair, int first_text, float sum, float skip) const {
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

  //! The gated outputs of all blocks as activations of out_proj, by the warps that multiply them.
  __device__ void stageOutputs(int layer) {
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
        storeDigits<kBits>(args_.d, slice.quad(i), values[i], inverse, slice.log_slices,
                           slice.index);
      }
    }
    if (lane_ == 0) unitOfWarp() = unit;
    slice.sync();
  }

  //! A part of the same of several texts, by all warps. Ends in a barrier.
  __device__ void receiveOutputs(int layer, ColumnPart part) {
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

  __device__ void outputs(int layer) {
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
__global__ void __launch_bounds__(2 * kDecodeThreads, 1)
    decodeKernel(const __grid_constant__ DecodeArgs args) {
  extern __shared__ __align__(128) uint8_t shared[];
  const BlockShare share(args, static_cast<int>(blockIdx.x));
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  if (threadIdx.x < kDecodeWarps) {
    Ring<kBits>(args, shared, threadIdx.x, 0).start(32 * args.fetchers / kDecodeWarps);
  }
  __syncthreads();
  if (warp >= kDecodeWarps) {
    const int fetcher = warp - kDecodeWarps;
    constexpr int kMostRings = sharesFetchers(kBits, kRows, false) ? 2 : 1;
    if (mayLimitCopies(kBits) && args.limits_copies) {
      WeightFetcher<kBits, kRows, mayLimitCopies(kBits), 1>(args, share, shared, fetcher, lane)
          .run();
    } else if (kMostRings == 1 || args.fetchers == kDecodeWarps) {
      WeightFetcher<kBits, kRows, false, 1>(args, share, shared, fetcher, lane).run();
    } else {
      WeightFetcher<kBits, kRows, false, kMostRings>(args, share, shared, fetcher, lane).run();
    }
  } else {
    const WeightQueue<kBits> queue(args, shared, warp, lane);
    DecodeBlock<kBits, kRows>(args, queue).run();
  }
}

}  // namespace s6
