// SPDX-License-Identifier: MIT
/*!
 * \file decode_exchange.cuh
 * \brief How the blocks of the decode kernel hand each other values without a barrier.
 *
 * A float32 carries in its two lowest bits the epoch it belongs to; who needs it reads it until the
 * epoch is the one awaited. So an exchange costs one write and one read of L2, where a grid barrier
 * costs a fence, an atomic, a read of the counter and then the read of the data. The idea is that
 * of NCCL's LL protocol (a word is never seen in halves). Two bits do because a reader looks at
 * each epoch of a word, or at every second one, and so can meet the one it awaits and the one
 * before only. Of the value 22 bits are left; float16 has 11. Gated outputs of several texts, which
 * would be most of what is read, go two by two as float16, each with one bit of the epoch.
 *
 * Sums over blocks are 64-bit integer atomics: the upper 54 bits add up a fixed-point value, the
 * lower 10 count the addends, so the same word says whether the sum is complete; integers make it
 * independent of the order. Words are never reset: a reader subtracts the total it knew before.
 *
 * No buffer is doubled. A value is written again only by a block that has received a value which
 * depends on every reader of the former one: residuals of block L + 1 need all outputs of block L,
 * these need all sums, these need all residuals of block L.
 */
#pragma once

#include <cuda_fp16.h>

#include <cstdint>

namespace s6 {

constexpr float kSumScale = 1073741824.0f;  //!< 2^30: sums are exact to 1e-9, up to 8 million.
constexpr int kSumCountBits = 10;

constexpr uint32_t kEpochMask = 3u;  //!< The bits of a value that tell its epoch.

__device__ __forceinline__ void publish(float* word, float value, uint32_t epoch) {
  const uint32_t bits = (__float_as_uint(value) & ~kEpochMask) | (epoch & kEpochMask);
  asm volatile("st.relaxed.gpu.global.u32 [%0], %1;" ::"l"(word), "r"(bits) : "memory");
}

template <typename Word>
__device__ __forceinline__ uint4 readQuad(const Word* words) {
  uint4 v;
  asm volatile("ld.relaxed.gpu.global.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(words)
               : "memory");
  return v;
}

__device__ __forceinline__ bool isOf(const uint4& quad, uint32_t epoch) {
  const uint32_t others = (quad.x ^ epoch) | (quad.y ^ epoch) | (quad.z ^ epoch) | (quad.w ^ epoch);
  return (others & kEpochMask) == 0;
}

//! Four values without their epoch, so that a result is the same in every epoch.
__device__ __forceinline__ float4 valuesOf(const uint4& quad) {
  return {__uint_as_float(quad.x & ~kEpochMask), __uint_as_float(quad.y & ~kEpochMask),
          __uint_as_float(quad.z & ~kEpochMask), __uint_as_float(quad.w & ~kEpochMask)};
}

/*!
 * The first `count` of some values of other blocks, once all are there: read(i) reads value i.
 * Each round reads all that are not there yet: one after the other, each that was read too early
 * would cost a way to L2 of its own.
 */
template <int kCount, typename Value, typename Read, typename IsThere>
__device__ __forceinline__ void awaitEach(Value (&values)[kCount], int count, const Read& read,
                                          const IsThere& isThere) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    if (i < count) values[i] = read(i);
  }
  while (true) {
    bool are_there = true;
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      are_there = are_there && (i >= count || isThere(i, values[i]));
    }
    if (are_there) return;
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      if (i < count && !isThere(i, values[i])) values[i] = read(i);
    }
  }
}

//! The first `count` of some quads of neighbouring values, once all are of the epoch; place(i) is
//! where quad i lies.
template <int kCount, typename Place>
__device__ __forceinline__ void awaitQuads(uint4 (&quads)[kCount], int count, uint32_t epoch,
                                           const Place& place) {
  awaitEach(
      quads, count, [&](int i) { return readQuad(place(i)); },
      [&](int, const uint4& quad) { return isOf(quad, epoch); });
}

//! The bits of two float16 in a word that tell its epoch: the lowest of each.
constexpr uint32_t kPairEpochMask = 0x00010001u;

__device__ __forceinline__ uint32_t pairEpoch(uint32_t epoch) {
  return (epoch & 1u) | ((epoch & 2u) << 15);
}

//! Rounded to the 10 bits that a float16 keeps beside the epoch: Veltkamp's splitting.
__device__ __forceinline__ float roundToPairs(float value) {
  const float scaled = __fmul_rn(value, 16385.0f);  // 2^14 + 1
  return __fsub_rn(scaled, __fsub_rn(scaled, value));
}

//! Two neighbouring values of several texts, which become float16 anyway.
__device__ __forceinline__ void publishPair(uint32_t* word, float low, float high, uint32_t epoch) {
  const __half2 pair = __floats2half2_rn(roundToPairs(low), roundToPairs(high));
  const uint32_t bits =
      (reinterpret_cast<const uint32_t&>(pair) & ~kPairEpochMask) | pairEpoch(epoch);
  asm volatile("st.relaxed.gpu.global.u32 [%0], %1;" ::"l"(word), "r"(bits) : "memory");
}

//! The first `count` of some quads of words of publishPair, once all are of the epoch, which is
//! taken out; place(i) is where quad i lies.
template <int kCount, typename Place>
__device__ __forceinline__ void awaitPairs(uint4 (&quads)[kCount], int count, uint32_t epoch,
                                           const Place& place) {
  const uint32_t wanted = pairEpoch(epoch);
  awaitEach(
      quads, count, [&](int i) { return readQuad(place(i)); },
      [&](int, const uint4& v) {
        const uint32_t others = (v.x ^ wanted) | (v.y ^ wanted) | (v.z ^ wanted) | (v.w ^ wanted);
        return (others & kPairEpochMask) == 0;
      });
#pragma unroll
  for (uint4& v : quads) {
    v = {v.x & ~kPairEpochMask, v.y & ~kPairEpochMask, v.z & ~kPairEpochMask,
         v.w & ~kPairEpochMask};
  }
}

//! For what must stay exact: 32 bits in a word of 64 with their epoch.
__device__ __forceinline__ void publishExact(unsigned long long* word, uint32_t value,
                                             uint32_t epoch) {
  const unsigned long long packed = (static_cast<unsigned long long>(epoch) << 32) | value;
  asm volatile("st.relaxed.gpu.global.u64 [%0], %1;" ::"l"(word), "l"(packed) : "memory");
}

//! Two neighbouring words of publishExact, once both are of the epoch.
__device__ __forceinline__ uint2 awaitExactPair(const unsigned long long* words, uint32_t epoch) {
  unsigned long long x, y;
  do {
    asm volatile("ld.relaxed.gpu.global.v2.u64 {%0, %1}, [%2];"
                 : "=l"(x), "=l"(y)
                 : "l"(words)
                 : "memory");
  } while (static_cast<uint32_t>(x >> 32) != epoch || static_cast<uint32_t>(y >> 32) != epoch);
  return {static_cast<uint32_t>(x), static_cast<uint32_t>(y)};
}

__device__ __forceinline__ void addToSum(unsigned long long* word, float value) {
  const long long fixed = __float2ll_rn(value * kSumScale);
  const unsigned long long addend = (static_cast<unsigned long long>(fixed) << kSumCountBits) | 1u;
  asm volatile("red.relaxed.gpu.global.add.u64 [%0], %1;" ::"l"(word), "l"(addend) : "memory");
}

__device__ __forceinline__ unsigned long long readSum(const unsigned long long* word) {
  unsigned long long now;
  asm volatile("ld.relaxed.gpu.global.u64 %0, [%1];" : "=l"(now) : "l"(word) : "memory");
  return now;
}

//! Whether `addends` more than in `before` have arrived.
__device__ __forceinline__ bool isComplete(unsigned long long before, unsigned long long now,
                                           int addends) {
  constexpr unsigned kMask = (1u << kSumCountBits) - 1u;
  return ((static_cast<unsigned>(now) ^ (static_cast<unsigned>(before) + addends)) & kMask) == 0;
}

//! The first `count` of some sums, once `addends` more than in `before` have arrived in each;
//! place(i) is where sum i lies.
template <int kCount, typename Place>
__device__ __forceinline__ void awaitSums(unsigned long long (&sums)[kCount],
                                          const unsigned long long (&before)[kCount], int count,
                                          int addends, const Place& place) {
  awaitEach(
      sums, count, [&](int i) { return readSum(place(i)); },
      [&](int i, unsigned long long sum) { return isComplete(before[i], sum, addends); });
}

//! The value that `addends` addends have put on top of `before`.
__device__ __forceinline__ float sumBetween(unsigned long long before, unsigned long long now,
                                            int addends) {
  const long long grown =
      static_cast<long long>(now - before - static_cast<unsigned long long>(addends));
  return static_cast<float>(grown >> kSumCountBits) * (1.0f / kSumScale);
}

}  // namespace s6
