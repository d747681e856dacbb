// SPDX-License-Identifier: MIT
//! \file decode_activations.cuh
//! \brief Makes activations of a product of what other blocks have published: the residual and its
//! norm.
#pragma once

#include "decode_block.cuh"

namespace s6 {

template <int kBits, int kRows>
template <int kMatrixBits>
__device__ void DecodeBlock<kBits, kRows>::storeActivations(int row, int columns, int quad,
                                                            const float4& value) const {
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

template <int kBits, int kRows>
template <int kMatrixBits>
__device__ void DecodeBlock<kBits, kRows>::storeDigits(int columns, int quad, const float4& value,
                                                       float inverse, int log_slices,
                                                       int slice) const {
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

template <int kBits, int kRows>
__device__ float DecodeBlock<kBits, kRows>::sumOfRow(float value) {
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

template <int kBits, int kRows>
__device__ void DecodeBlock<kBits, kRows>::noteMagnitude(uint32_t bits, bool continues) {
  bits = __reduce_max_sync(0xffffffffu, bits);
  float& noted = reduce()[kDecodeWarps + warp_];
  if (lane_ == 0) noted = __uint_as_float(continues ? max(bits, __float_as_uint(noted)) : bits);
}

template <int kBits, int kRows>
__device__ float DecodeBlock<kBits, kRows>::largestNoted(int first, int log_step) const {
  uint32_t bits = __float_as_uint(kLeastMagnitude);
#pragma unroll
  for (int i = 0; i < kDecodeWarps; ++i) {
    const int warp = (first + (i << log_step)) & (kDecodeWarps - 1);
    bits = max(bits, __float_as_uint(reduce()[kDecodeWarps + warp]));
  }
  return __uint_as_float(bits);
}

template <int kBits, int kRows>
template <int kMatrixBits>
struct DecodeBlock<kBits, kRows>::Slice {
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

template <int kBits, int kRows>
template <int kMatrixBits>
__device__ float DecodeBlock<kBits, kRows>::largestOf(const Slice<kMatrixBits>& slice,
                                                      uint32_t bits) {
  if (slice.log_slices == kLogDecodeWarps) {  // All of it is this warp's.
    bits = __reduce_max_sync(0xffffffffu, max(bits, __float_as_uint(kLeastMagnitude)));
    return __uint_as_float(bits);
  }
  noteMagnitude(bits);
  slice.sync();
  return largestNoted(slice.index, slice.log_slices);
}

template <int kBits, int kRows>
template <int kMatrixBits>
__device__ void DecodeBlock<kBits, kRows>::stageResidual(int layer, const float* weight,
                                                         const DecodeMatrix& matrix,
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

template <int kBits, int kRows>
__device__ float DecodeBlock<kBits, kRows>::normOfText(int row) const {
  if constexpr (kRows > 1) return normRest(row);
  static_assert(kDecodeWarps == 8, "two quads of sums");
  const float4* squares = sharedAt<const float4>(args_.reduce_at);
  const float4 a = squares[0], b = squares[1];
  const float sum = ((a.x + b.x) + (a.y + b.y)) + ((a.z + b.z) + (a.w + b.w));
  return rsqrtf(sum * args_.inverse_m + args_.norm_eps);
}

template <int kBits, int kRows>
template <int kMatrixBits>
__device__ void DecodeBlock<kBits, kRows>::normalise(int layer, const float* weight) {
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

}  // namespace s6
