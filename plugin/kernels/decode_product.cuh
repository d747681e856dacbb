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
 * For one text, codes are multiplied as bytes (m16n8k32), after one instruction a word in 8 bits
 * and three in 4: the activations are 22-bit fixed-point numbers in units of a common step, and
 * their three digits to the base of 256 are three columns of the product, of which a single text
 * leaves seven free. Integers, so exact; the scale of a group is applied to the sum of its columns,
 * the digits are put together once a tile.
 *
 * For more texts, codes become float16 by writing them into the mantissa of 1024 (the trick of
 * FasterTransformer's and Marlin's dequantisation): exact, and multiplied as integers; in the
 * narrow products of multiplyRows times their scale.
 *
 * A 4-bit word holds columns 0, 2, 4, 6 in the low halves of its bytes and 1, 3, 5, 7 in the upper
 * ones; as float16 it gives the pairs (0, 4), (1, 5), (2, 6), (3, 7). Activations that meet 4-bit
 * weights lie in that order (digitPlace, activationPlace).
 */
#pragma once

#include <cuda_fp16.h>

#include <type_traits>

#include "decode_stream.cuh"

namespace s6 {

//! Where column `column` of the activations lies, in halves, if it meets weights of these bits.
__device__ __forceinline__ int activationPlace(int column, int bits) {
  if (bits != 4) return column;
  const int within = column & 7;
  return (column & ~7) | ((within & 3) << 1) | (within >> 2);
}

//! Where pair `pair` of the float16 activations of a single text lies: words 0 and 2 of four first.
__device__ __forceinline__ int pairPlace(int pair) {
  return (pair & ~3) | ((pair & 1) << 1) | ((pair >> 1) & 1);
}

//! Where column `column` of a digit lies, in bytes.
__device__ __forceinline__ int digitPlace(int column, int bits) {
  if (bits != 4) return column;
  const int within = column & 7;
  return (column & ~7) | ((within & 1) << 2) | (within >> 1);
}

//! Adding it to a float below 2^22 leaves the nearest integer in the lower bits of the sum, and a
//! sum of integers that starts at its bits can be read as a float.
constexpr float kRound = 12582912.0f;  // 1.5 * 2^23

//! Fixed-point activations stay below: a little under 2^22.
constexpr float kLargestFixed = 4190000.0f;

//! value * inverse as an integer: its digits, each plus 128, in bytes 0 (the lowest) to 2.
__device__ __forceinline__ uint32_t biasedDigits(float value, float inverse) {
  // From 2^22 + 2^23 below the exponent to half of 256 in every digit.
  return __float_as_uint(fmaf(value, inverse, kRound)) + 0x00408080u;
}

//! D += A B: a0, a2 are row g of the first tile, a1, a3 of the twin, b0, b1 text g; D holds row g
//! of the first tile and then of the twin for the texts 2 t and 2 t + 1.
__device__ __forceinline__ void mma(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2,
                                    uint32_t a3, uint32_t b0, uint32_t b1) {
  const uint32_t a[4] = {a0, a1, a2, a3}, b[2] = {b0, b1};
  multiplyAdd(c, a, b);
}

//! D += A B in 8-bit integers, laid out like mma with four columns of A where that has two.
__device__ __forceinline__ void mmaBytes(uint32_t (&d)[4], uint32_t a0, uint32_t a1, uint32_t a2,
                                         uint32_t a3, uint32_t b0, uint32_t b1) {
  const uint32_t a[4] = {a0, a1, a2, a3}, b[2] = {b0, b1};
  multiplyAdd(d, a, b, d);
}

//! One float16 at an offset into shared memory.
__device__ __forceinline__ __half loadScale(int offset) {
  extern __shared__ __align__(128) uint8_t shared[];
  return *reinterpret_cast<const __half*>(shared + offset);
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

//! Eight float16 in the order that activationPlace has for 4 bits: the pairs (0, 4), (1, 5), ...
__device__ __forceinline__ uint4 alternating(const uint4& v) {
  return {__byte_perm(v.x, v.z, 0x5410), __byte_perm(v.x, v.z, 0x7632),
          __byte_perm(v.y, v.w, 0x5410), __byte_perm(v.y, v.w, 0x7632)};
}

/*!
 * Weights of one tile times activations of several texts, a lane's 8 of row g with the 8 of text g:
 * c[0] and c[1] += row g's sums for the texts 2 t and 2 t + 1. Codes are multiplied by their scale
 * before, as lanes of a row may have different ones. x: in columns' order.
 */
template <int kBits>
__device__ __forceinline__ void multiplyRows(float (&c)[4], const uint4& words, __half scale,
                                             const uint4& x) {
  uint32_t w[4] = {words.x, words.y, words.z, words.w};
  uint4 y = x;
  if constexpr (kBits == 8) {
    fromBytes(words.y, w[2], w[3]);
    fromBytes(words.x, w[0], w[1]);
  } else if constexpr (kBits == 4) {
    fromNibbles(words.x, w);
    y = alternating(x);
  }
  if constexpr (kBits != 16) {
    const __half2 scales = __half2half2(scale);
#pragma unroll
    for (uint32_t& pair : w) {
      const __half2 scaled = __hmul2(reinterpret_cast<const __half2&>(pair), scales);
      pair = reinterpret_cast<const uint32_t&>(scaled);
    }
  }
  mma(c, w[0], 0u, w[1], 0u, y.x, y.y);
  mma(c, w[2], 0u, w[3], 0u, y.z, y.w);
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
    multiplyCodes<kBits, kHasTwin>(sums, part, twin_part, x,
                                   __half2float(loadScale(scales + 16 * i)),
                                   kHasTwin ? __half2float(loadScale(twin_scales + 16 * i)) : 0.0f);
  }
}

//! Two words of codes of one row as what mmaBytes takes: minus the zero point, and 4-bit codes
//! times 16, because they lie in the upper halves of the bytes then. From 8 bits: two times four
//! columns; from 4 bits: one word's eight.
template <int kBits>
struct SignedBytes {
  uint32_t low, high;

  //! (word & 0xf0f0f0f0) ^ signs
  static __device__ __forceinline__ uint32_t upperHalves(uint32_t word, uint32_t signs) {
    uint32_t d;
    asm("lop3.b32 %0, %1, 0xf0f0f0f0, %2, 0x6a;" : "=r"(d) : "r"(word), "r"(signs));
    return d;
  }

  __device__ __forceinline__ SignedBytes(uint32_t word, uint32_t next, uint32_t signs) {
    if constexpr (kBits == 8) {
      low = word ^ signs, high = next ^ signs;
    } else {
      low = upperHalves(word << 4, signs), high = upperHalves(word, signs);
    }
  }
};

/*!
 * 64 columns of both tiles in codes, four words of 8 bits or two of 4: x holds the digits of the
 * lane's 16 activations, one digit in lanes of the same g.
 */
template <int kBits, bool kHasTwin>
__device__ __forceinline__ void multiplyDigits(TileSums& sums, const uint32_t (&words)[kBits / 2],
                                               const uint32_t (&twin)[kBits / 2], const uint4& x,
                                               uint32_t signs, float scale, float twin_scale) {
  // At most 64 * 128 * 128 is added, so that the sums stay readable as floats.
  const uint32_t begin = __float_as_uint(kRound);
  uint32_t d[4] = {begin, begin, begin, begin};
  constexpr int kStep = kBits / 4;
  const uint32_t digits[4] = {x.x, x.y, x.z, x.w};
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const SignedBytes<kBits> a(words[kStep * i], words[kStep * i + kStep - 1], signs);
    const SignedBytes<kBits> b(twin[kStep * i], twin[kStep * i + kStep - 1], signs);
    mmaBytes(d, a.low, kHasTwin ? b.low : 0u, a.high, kHasTwin ? b.high : 0u, digits[2 * i],
             digits[2 * i + 1]);
  }
  float c[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) c[i] = __uint_as_float(d[i]) - kRound;
  sums.add(c, scale, twin_scale);
}

//! 32 columns of one tile: this lane's 8 of row g, and of a digit x. Gives digits 2 t and 2 t + 1
//! of row g.
template <int kBits>
__device__ __forceinline__ float2 multiplyNarrow(const SignedBytes<kBits>& a, const uint2& x) {
  const uint32_t begin = __float_as_uint(kRound);
  uint32_t d[4] = {begin, begin, begin, begin};
  mmaBytes(d, a.low, 0u, a.high, 0u, x.x, x.y);
  return {__uint_as_float(d[0]) - kRound, __uint_as_float(d[1]) - kRound};
}

//! A row's product from those with its digits, of which the lowest is in the neighbour; `unit`:
//! what that one is worth. For lanes of digit 0.
__device__ __forceinline__ float joinDigits(const float (&digits)[2], float unit) {
  const float upper = fmaf(65536.0f, digits[0], 256.0f * digits[1]);
  return (upper + __shfl_down_sync(0xffffffffu, digits[0], 1)) * unit;
}

//! What a product with digits is worth besides: see SignedBytes.
template <int kBits>
constexpr float kCodeUnit = kBits == 4 ? 1.0f / 16.0f : 1.0f;

/*!
 * The products of one warp with its columns of some tiles, slot after slot.
 *
 * activations: offset in shared memory of what this lane multiplies in the first of its blocks; of
 * digits: of digit min(g, 2), of float16: of text g (of text 0 for all lanes where there is one).
 * Products that depend on each other are kept apart: a warp issues in order, and an mma takes some
 * thirty clocks.
 */
template <int kBits, int kRows, bool kHasTwin>
class TileProduct {
 public:
  static constexpr int kStep = kHasTwin ? 2 : 4;                 // Blocks of half a slot.
  static constexpr int kGroups = 8 / (kBits == 16 ? 8 : kBits);  // Of 64 columns, in a block.

  //! What a lane's 16 bytes of float16 weights meet; of a single text in two columns: see below.
  using Halves = std::conditional_t<kRows == 1, uint2, uint4>;

  //! What 64 columns in codes of a single text meet.
  struct Operands {
    uint4 x;
    __half scale, twin_scale;
  };

  //! Half a slot in registers, and what it is multiplied with where that is loaded early.
  struct Part {
    int at;
    uint4 w[4];
    Halves x[kStep];
    Operands operands[kStep * kGroups];
  };

  __device__ TileProduct(int activations, int blocks, int lane, uint32_t signs)
      : activations_(activations),
        signs_(signs),
        last_(activations + kBlockBytes * (blocks - 1)),
        scales_(kHalfSlotWeights - 16 * lane + 2 * (lane >> 2)),
        // Lane 4 g + t reads from chunk t of row g on, or in 4 bits from byte 8 t.
        place_(placeOfChunk(lane >> 2, 0, 0, kBits == 4) + (kBits == 4 ? 8 : 16) * (lane & 3) -
               16 * lane) {}

  //! Begins with half a slot at `at`, which is half `index` of its tiles.
  __device__ __forceinline__ void load(Part& part, int at_slot, int index) const {
    part.at = at_slot;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      // See placeOfChunk: two places for even and odd blocks, of the tile and of its twin.
      const int block = kHasTwin ? i / 2 : i % 2, second_place = kHasTwin ? i % 2 : i / 2;
      const int at = ((part.at + place_) ^ (64 * block)) + 1024 * second_place;
      if constexpr (kBits == 4) {
        const uint2 first = loadSharedHalf(at);
        const uint2 second = loadSharedHalf(at ^ 32);
        part.w[i] = {first.x, first.y, second.x, second.y};
      } else {
        part.w[i] = loadShared(at);
      }
    }
    if constexpr (kBits == 16 && (kHasTwin || kRows == 1)) loadActivationsOf(part.x, index);
  }

  //! Before the weights of the next part are, which they would wait behind.
  __device__ __forceinline__ void loadOperands(Part& part, int index) const {
    if constexpr (kIsEarly) {
#pragma unroll
      for (int i = 0; i < kStep * kGroups; ++i) part.operands[i] = operandsOf(part, index, i);
    }
  }

  __device__ __forceinline__ void multiply(const Part& part, int index) {
    if constexpr (kBits == 16) {
      multiplyHalves(part, index);
    } else {
      const int scales = part.at + scales_;
#pragma unroll
      for (int i = 0; i < kStep; ++i) {
        const int block = kStep * index + i;
        const int group = scales + 16 * kGroups * i;
        const int twin_group = group + 32 * kGroups;
        const uint4& w = part.w[kHasTwin ? 2 * i : i];
        const uint4 twin = kHasTwin ? part.w[kHasTwin ? 2 * i + 1 : 0] : uint4{};
        if constexpr (isInDigits(kBits, kRows)) {
          Operands operands[kGroups];
#pragma unroll
          for (int j = 0; j < kGroups; ++j) {
            operands[j] = kIsEarly ? part.operands[kGroups * i + j]
                                   : operandsOf(part, index, kGroups * i + j);
          }
          multiplyBlockDigits(w, twin, operands);
        } else {
          // Blocks that do not exist have scales of zero; what they meet must be a number.
          multiplyBlock<kBits, kHasTwin>(
              sums_, w, twin, min(activations_ + kBlockBytes * block, last_), group, twin_group);
        }
      }
    }
  }

  //! Sums of the tiles so far; the next ones begin.
  __device__ __forceinline__ TileSums takeSums() {
    if constexpr (kBits == 16) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if constexpr (kRows == 1) {
          float& sum = kHasTwin && i % 2 != 0 ? sums_.twin[0] : sums_.first[0];
          sum += partial_[i][0] + partial_[i][3];
        } else {
          sums_.add(partial_[i]);
        }
#pragma unroll
        for (int j = 0; j < 4; ++j) partial_[i][j] = 0.0f;
      }
      if constexpr (kRows == 1) {
        // The lower halves' are in the neighbour.
        sums_.first[0] += __shfl_xor_sync(0xffffffffu, sums_.first[0], 1);
        if constexpr (kHasTwin) sums_.twin[0] += __shfl_xor_sync(0xffffffffu, sums_.twin[0], 1);
      }
    }
    const TileSums sums = sums_;
    sums_ = {};
    return sums;
  }

 private:
  //! Whether operands are loaded early: with 4 bits they are too many for the registers.
  static constexpr bool kIsEarly = isInDigits(kBits, kRows) && kBits == 8 && kHasTwin;
  //! Of float16 activations that a block meets.
  static constexpr int kBlockBytes = 1024 / kBits;

  __device__ __forceinline__ void loadActivationsOf(Halves (&x)[kStep], int index) const {
    const int at = activations_ + 64 * kStep * index;
    // Blocks that do not exist are zeros; what they meet must be a number.
#pragma unroll
    for (int i = 0; i < kStep; ++i) {
      const int from = min(at + 64 * i, last_);
      if constexpr (kRows == 1) {
        x[i] = loadSharedHalf(from);
      } else {
        x[i] = loadShared(from);
      }
    }
  }

  __device__ __forceinline__ void multiplyHalves(const Part& part, int index) {
    const auto& w = part.w;
    if constexpr (kRows == 1) {
      // The 16 bytes that were loaded are the first operand as they are: words 0 and 2 as row g, 1
      // and 3 as row 8 + g. They meet two columns with the upper halves of the activations and two
      // with the lower: D has the sums of the former words in (g, 0) and (g, 2), of the latter in
      // (8 + g, 1) and (8 + g, 3).
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const uint2 x = part.x[kHasTwin ? i / 2 : i];
        mma(partial_[i], w[i].x, w[i].y, w[i].z, w[i].w, x.x, x.y);
      }
    } else if constexpr (kHasTwin) {
      const auto& x = part.x;
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const uint4 &a = w[2 * i], &b = w[2 * i + 1];
        mma(partial_[2 * i], a.x, b.x, a.y, b.y, x[i].x, x[i].y);
        mma(partial_[2 * i + 1], a.z, b.z, a.w, b.w, x[i].z, x[i].w);
      }
    } else {
      Halves x[kStep];
      loadActivationsOf(x, index);
#pragma unroll
      for (int i = 0; i < 4; ++i) mma(partial_[i], w[i].x, 0u, w[i].y, 0u, x[i].x, x[i].y);
#pragma unroll
      for (int i = 0; i < 4; ++i) mma(partial_[i], w[i].z, 0u, w[i].w, 0u, x[i].z, x[i].w);
    }
  }

  //! What the i-th 64 columns of a part meet.
  __device__ __forceinline__ Operands operandsOf(const Part& part, int index, int i) const {
    const int scales = part.at + scales_;
    return {loadShared(activations_ + 64 * (kStep * kGroups * index + i)),
            loadScale(scales + 16 * i),
            kHasTwin ? loadScale(scales + 16 * (kStep * kGroups + i)) : __half{}};
  }

  __device__ __forceinline__ void multiplyBlockDigits(const uint4& w, const uint4& v,
                                                      const Operands* operands) {
    constexpr int kWords = 4 / kGroups;  // Of a lane in 64 columns.
    const uint32_t words[4] = {w.x, w.y, w.z, w.w}, twins[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int i = 0; i < kGroups; ++i) {
      uint32_t part[kWords], twin_part[kWords];
#pragma unroll
      for (int j = 0; j < kWords; ++j) {
        part[j] = words[kWords * i + j];
        twin_part[j] = twins[kWords * i + j];
      }
      multiplyDigits<kBits, kHasTwin>(sums_, part, twin_part, operands[i].x, signs_,
                                      __half2float(operands[i].scale),
                                      kHasTwin ? __half2float(operands[i].twin_scale) : 0.0f);
    }
  }

  const int activations_;
  const uint32_t signs_;
  const int last_, scales_, place_;
  float partial_[4][4] = {};
  TileSums sums_ = {};
};

/*!
 * This warp's `blocks` columns of `units` units one after the other; store(i, sums) gets the sums
 * of unit i.
 *
 * The next half of a slot is loaded before this one is multiplied, and the next slot asked for: a
 * warp that waits for each step in turn takes about five times as long as it has instructions.
 */
template <int kBits, int kRows, bool kHasTwin, typename Queue, typename Store>
__device__ __forceinline__ void multiplyUnits(Queue& queue, int units, int blocks, int activations,
                                              int lane, uint32_t signs, const Store& store) {
  using Product = TileProduct<kBits, kRows, kHasTwin>;
  constexpr int kSlotBits = Queue::kSlotBits;  // The ring's, not this matrix'.
  // Codes as float16 for several texts leave no registers for it.
  constexpr bool kMayLoadAhead = kBits == 16 || kRows == 1;
  // Of units of half a slot the other half is not multiplied; no published model has such in
  // float16.
  const bool is_short = kBits != 16 && blocks <= Product::kStep;
  const int slots = (blocks + 2 * Product::kStep - 1) / (2 * Product::kStep);
  if (slots == 0) {
    for (int unit = 0; unit < units; ++unit) store(unit, TileSums{});
    return;
  }
  Product product(activations, blocks, lane, signs);
  if (!kMayLoadAhead || is_short) {
    for (int unit = 0; unit < units; ++unit) {
      for (int index = 0; index < slots; ++index) {
        const Slot slot = queue.take();
        const int halves = is_short ? 1 : 2;
#pragma unroll 1
        for (int half = 0; half < halves; ++half) {
          typename Product::Part part;
          product.load(part, slot.at + half * halfSlotBytes(kSlotBits), 2 * index + half);
          product.loadOperands(part, 2 * index + half);
          product.multiply(part, 2 * index + half);
        }
        queue.lookAhead();
        queue.giveBack(slot, lane);
      }
      store(unit, product.takeSums());
    }
    return;
  }
  int left = units * slots, unit = 0, index = 0;
  if (left == 0) return;
  typename Product::Part first, second;
  Slot slot = queue.take();
  product.load(first, slot.at, 0);
  queue.lookAhead();
#pragma unroll 1
  while (true) {
    const bool is_last = index + 1 == slots;
    const int following = is_last ? 0 : index + 1;
    product.loadOperands(first, 2 * index);
    product.load(second, slot.at + halfSlotBytes(kSlotBits), 2 * index + 1);
    product.multiply(first, 2 * index);
    // After the last slot this one is loaded again: a load that may not happen costs 16 copies.
    Slot next = slot;
    if (left > 1) next = queue.take();
    product.loadOperands(second, 2 * index + 1);
    product.load(first, next.at, 2 * following);
    product.multiply(second, 2 * index + 1);
    queue.giveBack(slot, lane);
    queue.lookAhead();
    if (is_last) store(unit++, product.takeSums());
    if (--left == 0) break;
    index = following, slot = next;
  }
}

}  // namespace s6
