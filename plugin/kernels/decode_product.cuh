// SPDX-License-Identifier: MIT
/*!
 * \file decode_product.cuh
 * \brief Two tiles of 8 weight rows times the activations of up to 8 texts, on the tensor cores.
 *
 * mma.m16n8k16 with the weights as its first operand (rows 0 to 7 of one tile, 8 to 15 of its twin)
 * and the activations as its second (column = text): one instruction takes 16 rows by 16 columns of
 * weights, whatever the number of texts. The order of the columns within a product is free as long
 * as both operands agree, so a lane feeds the 16 bytes that were copied from a row as they lie, and
 * no weight is ever shuffled: lane 4 g + t holds row g, columns 8 t ... of a block of 32 (float16),
 * 16 t ... of 64 (8 bits and 4 bits).
 *
 * Codes become float16 by writing them into the mantissa of 1024 (the trick of FasterTransformer's
 * and Marlin's dequantisation): exact, and multiplied as integers; the scale of a group is applied
 * to the float32 sum of its columns. A 4-bit word gives the pairs (0, 4), (1, 5), (2, 6), (3, 7) of
 * its eight columns: activations that meet 4-bit weights lie in that order (activationPlace).
 */
#pragma once

#include <cuda_fp16.h>

#include "decode_stream.cuh"

namespace s6 {

//! Where column `column` of the activations lies, in halves, if it meets weights of these bits.
__device__ __forceinline__ int activationPlace(int column, int bits) {
  if (bits != 4) return column;
  const int within = column & 7;
  return (column & ~7) | ((within & 3) << 1) | (within >> 2);
}

//! D += A B: a0, a2 are row g of the first tile, a1, a3 of the twin, b0, b1 text g; D holds row g
//! of the first tile and then of the twin for the texts 2 t and 2 t + 1.
__device__ __forceinline__ void mma(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2,
                                    uint32_t a3, uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

//! One float16 at an offset into shared memory.
__device__ __forceinline__ float loadScale(int offset) {
  extern __shared__ __align__(128) uint8_t shared[];
  return __half2float(*reinterpret_cast<const __half*>(shared + offset));
}

__device__ __forceinline__ uint32_t subtractHalves(uint32_t a, uint32_t b) {
  uint32_t d;
  asm("sub.rn.f16x2 %0, %1, %2;" : "=r"(d) : "r"(a), "r"(b));
  return d;
}

//! Four 8-bit codes minus 128, as two pairs of halves in order.
__device__ __forceinline__ void fromBytes(uint32_t word, uint32_t& low, uint32_t& high) {
  constexpr uint32_t kThousand = 0x64646464u;   // High byte of 1024 in float16.
  constexpr uint32_t kZeroPoint = 0x64806480u;  // 1024 + 128.
  low = subtractHalves(__byte_perm(word, kThousand, 0x4140), kZeroPoint);
  high = subtractHalves(__byte_perm(word, kThousand, 0x4342), kZeroPoint);
}

//! Eight 4-bit codes minus 8, as the pairs (0, 4), (1, 5), (2, 6), (3, 7).
__device__ __forceinline__ void fromNibbles(uint32_t word, uint32_t (&pairs)[4]) {
  constexpr uint32_t kThousand = 0x64006400u;
  constexpr uint32_t kZeroPoint = 0x64086408u;  // 1024 + 8.
  constexpr uint32_t kSixteenth = 0x2c002c00u;  // 1 / 16.
  constexpr uint32_t kMinus72 = 0xd480d480u;    // -(1024 / 16 + 8).
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    uint32_t low, high;
    asm("lop3.b32 %0, %1, 0x000f000f, %2, 0xea;" : "=r"(low) : "r"(word), "r"(kThousand));
    asm("lop3.b32 %0, %1, 0x00f000f0, %2, 0xea;" : "=r"(high) : "r"(word), "r"(kThousand));
    pairs[2 * i] = subtractHalves(low, kZeroPoint);
    asm("fma.rn.f16x2 %0, %1, %2, %3;"
        : "=r"(pairs[2 * i + 1])
        : "r"(high), "r"(kSixteenth), "r"(kMinus72));
    word >>= 8;
  }
}

//! Sums of a lane: row g of two tiles, for the texts 2 t and 2 t + 1.
struct TileSums {
  float first[2], twin[2];

  __device__ __forceinline__ void add(const float (&c)[4], float scale = 1.0f,
                                      float twin_scale = 1.0f) {
#pragma unroll
    for (int text = 0; text < 2; ++text) {
      first[text] = fmaf(scale, c[text], first[text]);
      twin[text] = fmaf(twin_scale, c[2 + text], twin[text]);
    }
  }
};

/*!
 * 64 columns of both tiles in codes: `words` and `twin` of this lane, x its 16 activations. Without
 * a twin its half of the product is zero.
 */
template <int kBits, bool kHasTwin>
__device__ __forceinline__ void multiplyCodes(TileSums& sums, const uint32_t (&words)[kBits / 2],
                                              const uint32_t (&twin)[kBits / 2],
                                              const uint32_t (&x)[8], float scale,
                                              float twin_scale) {
  float even[4] = {}, odd[4] = {};
  if constexpr (kBits == 8) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      uint32_t low, high, twin_low = 0, twin_high = 0;
      fromBytes(words[i], low, high);
      if constexpr (kHasTwin) fromBytes(twin[i], twin_low, twin_high);
      mma(i % 2 == 0 ? even : odd, low, twin_low, high, twin_high, x[2 * i], x[2 * i + 1]);
    }
  } else {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      uint32_t pairs[4], twins[4] = {};
      fromNibbles(words[i], pairs);
      if constexpr (kHasTwin) fromNibbles(twin[i], twins);
      mma(even, pairs[0], twins[0], pairs[1], twins[1], x[4 * i], x[4 * i + 1]);
      mma(odd, pairs[2], twins[2], pairs[3], twins[3], x[4 * i + 2], x[4 * i + 3]);
    }
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) even[i] += odd[i];
  sums.add(even, scale, twin_scale);
}

//! 16 activations of a lane that 64 columns in codes meet.
__device__ __forceinline__ void loadActivations(uint32_t (&x)[8], int at) {
  const uint4 low = loadShared(at), high = loadShared(at + 16);
  x[0] = low.x, x[1] = low.y, x[2] = low.z, x[3] = low.w;
  x[4] = high.x, x[5] = high.y, x[6] = high.z, x[7] = high.w;
}

//! A block of packed columns; scales: offset of those of its first 64 columns, twin_scales of the
//! twin's; activations: of the lane's first columns in the block.
template <int kBits, bool kHasTwin>
__device__ __forceinline__ void multiplyBlock(TileSums& sums, const uint4& w, const uint4& v,
                                              int activations, int scales, int twin_scales) {
  constexpr int kGroups = 8 / kBits;   // Of 64 columns.
  constexpr int kWords = 4 / kGroups;  // Of a lane in such a group.
  const uint32_t words[4] = {w.x, w.y, w.z, w.w}, twins[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
  for (int i = 0; i < kGroups; ++i) {
    uint32_t x[8], part[kWords], twin_part[kWords];
    loadActivations(x, activations + 128 * i);
#pragma unroll
    for (int j = 0; j < kWords; ++j) {
      part[j] = words[kWords * i + j];
      twin_part[j] = twins[kWords * i + j];
    }
    multiplyCodes<kBits, kHasTwin>(sums, part, twin_part, x, loadScale(scales + 16 * i),
                                   kHasTwin ? loadScale(twin_scales + 16 * i) : 0.0f);
  }
}

/*!
 * This warp's columns of two tiles, or of one if !kHasTwin.
 *
 * activations: offset in shared memory of text g's activations (of text 0 for all lanes where there
 * is one). Products that depend on each other are kept apart: a warp issues in order, and an mma
 * takes some thirty clocks.
 */
template <int kBits, bool kHasTwin, typename Queue>
__device__ __forceinline__ TileSums multiplyTiles(Queue& queue, Range blocks, int activations,
                                                  int lane) {
  constexpr int kStep = kHasTwin ? 2 : 4;  // Blocks of a slot.
  TileSums sums = {};
  if constexpr (kBits == 16) {
    float partial[4][4] = {};
    int at = activations + 64 * blocks.begin + 16 * (lane & 3);
#pragma unroll 1
    for (int block = blocks.begin; block < blocks.end; block += kStep, at += 64 * kStep) {
      const int left = blocks.end - block;
      const int slot = queue.next();
      uint4 w[4], x[kStep];
#pragma unroll
      for (int i = 0; i < kStep; ++i) {
        x[i] = uint4{};  // Zeros times zeros where there is no block.
        if (i < left) x[i] = loadShared(at + 64 * i);
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        w[i] = uint4{};
        if (i / (4 / kStep) < left) w[i] = loadShared(slot + 512 * i);
      }
      queue.release();
      if constexpr (kHasTwin) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const uint4 &a = w[2 * i], &b = w[2 * i + 1];
          mma(partial[2 * i], a.x, b.x, a.y, b.y, x[i].x, x[i].y);
          mma(partial[2 * i + 1], a.z, b.z, a.w, b.w, x[i].z, x[i].w);
        }
      } else {
#pragma unroll
        for (int i = 0; i < 4; ++i) mma(partial[i], w[i].x, 0u, w[i].y, 0u, x[i].x, x[i].y);
#pragma unroll
        for (int i = 0; i < 4; ++i) mma(partial[i], w[i].z, 0u, w[i].w, 0u, x[i].z, x[i].w);
      }
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) sums.add(partial[i]);
  } else {
    constexpr int kGroups = 8 / kBits;  // Of 64 columns, in a block.
    const int x_lane = activations + 32 * (lane & 3);
#pragma unroll 1
    for (int block = blocks.begin; block < blocks.end; block += kStep) {
      const int left = blocks.end - block;
      const int slot = queue.next();
      const int scales = slot + 2048 - 16 * lane + 2 * (lane >> 2);
#pragma unroll
      for (int i = 0; i < kStep; ++i) {
        if (i < left) {
          const int x = x_lane + 128 * kGroups * (block + i);
          const int group = scales + 16 * kGroups * i;
          if constexpr (kHasTwin) {
            multiplyBlock<kBits, true>(sums, loadShared(slot + 1024 * i),
                                       loadShared(slot + 1024 * i + 512), x, group,
                                       group + 32 * kGroups);
          } else {
            multiplyBlock<kBits, false>(sums, loadShared(slot + 512 * i), uint4{}, x, group, group);
          }
        }
      }
      queue.release();
    }
  }
  return sums;
}

}  // namespace s6
