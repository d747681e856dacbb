// SPDX-License-Identifier: MIT
/*!
 * \file decode_exchange.cuh
 * \brief How the blocks of the decode kernel hand each other values without a barrier.
 *
 * A value travels in one 8-byte word together with the epoch it belongs to; who needs it reads the
 * word until the epoch is the one awaited. So an exchange costs one write and one read of L2, where
 * a grid barrier costs a fence, an atomic, a read of the counter and then the read of the data. The
 * idea is that of NCCL's LL protocol (one 8-byte store is never seen in halves).
 *
 * Sums over blocks are 64-bit integer atomics: the upper 54 bits add up a fixed-point value, the
 * lower 10 count the addends, so the same word says whether the sum is complete; integers make it
 * independent of the order. Words are never reset: a reader subtracts the total it knew before.
 *
 * No buffer is doubled. A word is written again only by a block that has received a value which
 * depends on every reader of the former one: residuals of block L + 1 need all outputs of block L,
 * these need all sums, these need all residuals of block L.
 */
#pragma once

#include <cuda_fp16.h>

#include <cstdint>

namespace s6 {

constexpr float kSumScale = 1073741824.0f;  //!< 2^30: sums are exact to 1e-9, up to 8 million.
constexpr int kSumCountBits = 10;

__device__ __forceinline__ void publish(unsigned long long* word, uint32_t value, uint32_t epoch) {
  const unsigned long long packed = (static_cast<unsigned long long>(epoch) << 32) | value;
  asm volatile("st.relaxed.gpu.global.u64 [%0], %1;" ::"l"(word), "l"(packed) : "memory");
}

__device__ __forceinline__ ulonglong2 readPair(const unsigned long long* words) {
  ulonglong2 v;
  asm volatile("ld.relaxed.gpu.global.v2.u64 {%0, %1}, [%2];"
               : "=l"(v.x), "=l"(v.y)
               : "l"(words)
               : "memory");
  return v;
}

__device__ __forceinline__ bool isOf(const ulonglong2& pair, uint32_t epoch) {
  return static_cast<uint32_t>(pair.x >> 32) == epoch &&
         static_cast<uint32_t>(pair.y >> 32) == epoch;
}

//! Two neighbouring words, once both are of the epoch.
__device__ __forceinline__ ulonglong2 awaitPair(const unsigned long long* words, uint32_t epoch) {
  ulonglong2 v = readPair(words);
  while (!isOf(v, epoch)) v = readPair(words);
  return v;
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

//! The value that `addends` addends have put on top of `before`.
__device__ __forceinline__ float sumBetween(unsigned long long before, unsigned long long now,
                                            int addends) {
  const long long grown =
      static_cast<long long>(now - before - static_cast<unsigned long long>(addends));
  return static_cast<float>(grown >> kSumCountBits) * (1.0f / kSumScale);
}

}  // namespace s6
