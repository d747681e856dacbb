// SPDX-License-Identifier: MIT
/*!
 * \file decode_args.cuh
 * \brief What the decode kernel is told: pointers, sizes, and who does what.
 *
 * The work of a token is dealt once on the host (api/decode_plan.cpp) and never moves: a block owns
 * pairs of 8 channels (the u rows and the z rows of in_proj, later the same channels of the scan),
 * tiles of 8 rows of out_proj with their part of the residual, and tiles of the head.
 */
#pragma once

#include <cstddef>
#include <cstdint>

#include "host_device.h"
#include "s6/decode.h"

namespace s6 {

constexpr int kLogDecodeWarps = 3;
constexpr int kDecodeWarps = 1 << kLogDecodeWarps;  //!< That compute; others fetch for them.
constexpr int kDecodeThreads = 32 * kDecodeWarps;   //!< Of these.
constexpr int kTileRows = 8;                        //!< Rows of a matrix that one mma takes.
constexpr int kDecodeState = 16;                    //!< n of every published S6 model.
constexpr int kMaxConvPast = 3;                     //!< k - 1 at most.
constexpr int kMaxDecodeBlocks = 160;
constexpr int kMostSumStride = 32;  //!< See sum_stride.

//! Units of two tiles that are summed up at once. A single text's have a value for every computing
//! thread; of several texts as many as there is room for their sums, whatever the slices.
S6_HOST_DEVICE constexpr int batchUnits(int rows, int log_slices) {
  return rows == 1 ? 16 : 16 >> log_slices;
}

//! Slots of a ring: a warp holds two at a time while it multiplies.
constexpr int kLeastDepth = 2;

//! Of four values each, that a thread holds at a time of a single text's residual and of its gated
//! outputs.
constexpr int kResidualQuads = 4;
constexpr int kOutputQuads = 8;

//! Half a slot of a warp's ring: four times 16 bytes a lane, and the scales of packed weights.
constexpr int kHalfSlotWeights = 4 * 16 * 32;
S6_HOST_DEVICE constexpr int halfSlotBytes(int bits) {
  return kHalfSlotWeights + (bits == 16 ? 0 : 128);
}
S6_HOST_DEVICE constexpr int slotBytes(int bits) { return 2 * halfSlotBytes(bits); }

//! Activations of one row in shared memory, in halves: padded so that neighbouring rows of a batch
//! lie in different banks for 16-byte reads. Depends on the bits of the matrix they meet.
S6_HOST_DEVICE constexpr int activationStride(int columns, int bits) {
  const int chunks = columns / 8;
  const int wanted = bits == 16 ? 4 : 1;  // Modulo 8 chunks of 16 bytes.
  return 8 * (chunks + (wanted - chunks % 8 + 8) % 8);
}

//! Bytes from the upper halves of a single text's float16 activations to the lower ones, so that 64
//! bytes of either lie in different banks.
S6_HOST_DEVICE constexpr int halvesStride(int columns) {
  return (2 * columns + 127) / 128 * 128 + 64;
}

//! log2 of the column blocks of 64 bytes, of `count` in a row, that stay together: lines of 128
//! bytes, or one.
S6_HOST_DEVICE constexpr int logBlocksTogether(int count) { return count % 2 == 0 ? 1 : 0; }

//! The first of the column blocks of slice `slice`, of 2^log_slices; one slice further its end.
S6_HOST_DEVICE constexpr int firstOfSlice(int count, int log_slices, int slice) {
  const int log_together = logBlocksTogether(count);
  return (slice * (count >> log_together) >> log_slices) << log_together;
}

//! The upper bit of every byte.
constexpr uint32_t kSigns = 0x80808080u;

//! Digits of a fixed-point activation: see decode_product.cuh.
constexpr int kDigits = 3;

//! Whether a product takes its activations as digits: of one text where weights are codes.
S6_HOST_DEVICE constexpr bool isInDigits(int bits, int rows) { return bits != 16 && rows == 1; }

//! Where a warp's columns do not fill its last slot, what follows a digit of them is read up to
//! this far and multiplied with scales of zero; nothing else may lie there that another warp
//! writes.
constexpr int kDigitOverrun = 1024;

/*!
 * Bytes from the beginning of the activations to where the columns of slice `slice`, of
 * 2^log_slices, have their place in digit `digit`: each slice lies kDigitOverrun further on than
 * the one before. Neighbouring digits lie in different banks.
 */
S6_HOST_DEVICE constexpr int digitOffset(int columns, int log_slices, int slice, int digit) {
  const int stride = (columns + (kDigitOverrun << log_slices) + 127) / 128 * 128 + 64;
  return digit * stride + kDigitOverrun * slice;
}

//! Whether gates may be units of their own, behind x_proj, made while its sums are on their way.
//! With codes that takes longer than it hides (docs/lab_note_decode.md).
S6_HOST_DEVICE constexpr bool mayPutGatesApart(int bits) { return bits == 16; }

//! Whether x_proj may be multiplied like the other products, two tiles at a time. In float16 the
//! activations of in_proj are still wanted, by the gates.
S6_HOST_DEVICE constexpr bool mayMixInTiles(int bits) { return bits != 16; }

//! Whether the weights may be so many that what is exchanged waits behind them.
S6_HOST_DEVICE constexpr bool mayLimitCopies(int bits) { return bits != 4; }

//! Whether a fetching warp serves two computing ones, measured: where there are few enough copies
//! for that, its issue slots are worth more to those who compute. A single text on many blocks has
//! no time to spare for one warp to serve two.
S6_HOST_DEVICE constexpr bool sharesFetchers(int bits, int rows, bool are_many_blocks) {
  return rows == 1 ? bits != 16 && !are_many_blocks : bits == 4;
}

//! What the activations of a product take in shared memory.
S6_HOST_DEVICE constexpr int activationBytes(int columns, int bits, int texts, int log_slices) {
  return isInDigits(bits, texts) ? digitOffset(columns, log_slices, 0, kDigits)
         : texts == 1            ? 2 * halvesStride(columns)
                                 : 2 * texts * activationStride(columns, bits);
}

struct DecodeMatrix {
  const uint8_t* data;
  const uint8_t* scales;
  int64_t layer_bytes, scales_layer_bytes;
  int32_t rows, row_bytes;
  int32_t bits;
  int32_t group_shift;  //!< log2 of group_size.
};

struct DecodeVector {
  const float* data;
  int64_t layer_bytes;
#if defined(__CUDACC__)
  __device__ const float* of(int layer) const {
    return reinterpret_cast<const float*>(reinterpret_cast<const uint8_t*>(data) +
                                          layer * layer_bytes);
  }
#endif
};

//! How the warps of a block share a matrix: 2^log_slices parts of the columns, the rest rows.
struct DecodeSplit {
  int32_t log_slices;
};

struct DecodeArgs {
  int32_t b, m, d, k, r, layers, vocab;
  int32_t blocks;
  //! Warps that fetch: as many as compute, or half as many, see sharesFetchers.
  int32_t fetchers;
  int32_t depth;       //!< Slots of the ring of a computing warp.
  bool limits_copies;  //!< See WeightFetcher.
  int32_t addends;     //!< Of each sum: the blocks that own channels.
  //! Whether x_proj is multiplied two tiles at a time, and dt_proj too takes the activations of a
  //! single text as digits. Measured: where each warp of the busiest block has a pair; with fewer,
  //! making these activations takes longer than it saves.
  int32_t mixes_in_tiles;
  //! log2 of the warps that share a pair of the scan, texts by texts, where there are more warps.
  int32_t log_text_groups;
  //! Whether gates are units of their own, measured: where that is not compiled out, except for a
  //! single text of a narrow model, whose two products are then too short to be worth a phase each.
  int32_t puts_gates_apart;
  float norm_eps, mixer_norm_eps, inverse_m;
  uint32_t signs;  //!< kSigns, where the compiler does not see it: it would take two instructions.
  DecodeMatrix embedding, in_proj, x_proj, dt_proj, out_proj, head;
  DecodeVector norm, conv_weight, conv_bias, dt_bias, A, D;
  const float* final_norm;
  const int32_t* token_ids;
  const float* x;
  float* y;
  float* conv_state;
  float* ssm_state;
  float* logits;
  int32_t* next_ids;
  //! In so many parts out_proj's columns are taken, one after the other: of several texts in two
  //! where all activations at once would leave too little for the rings.
  int32_t out_parts;
  // Workspace; see decode_exchange.cuh.
  float* residuals;        //!< [b, m]
  float* outputs;          //!< [d], gated, of a single text
  uint32_t* output_pairs;  //!< [b, d / 2], of several
  //! Words from sum to sum, measured: two lines, so that atomics spread, of a single text and of
  //! several in float16 of a narrow model; else one, as the sums of several texts are so many that
  //! they spread anyway, and neighbours are read together.
  int32_t sum_stride;
  unsigned long long* sums;    //!< [b, r + 2 n, sum_stride]
  unsigned long long* totals;  //!< [b, r + 2 n], the sums as the last call left them
  unsigned long long* best;    //!< [b, kMaxDecodeBlocks, 2]
  uint32_t* epochs;            //!< [b], the last ones of the text's last call
  DecodeSplit in_split, out_split, head_split;
  // Shared memory, in bytes from its beginning; the ring comes first.
  int32_t activations_at, partials_at, totals_at, mixed_at, channels_at, own_at, reduce_at,
      candidates_at, shared_bytes;
  uint16_t first_pair[kMaxDecodeBlocks + 1];
  uint16_t first_out[kMaxDecodeBlocks + 1];
  uint16_t first_head[kMaxDecodeBlocks + 1];
};
static_assert(sizeof(DecodeArgs) <= 4000, "kernel parameters");

}  // namespace s6
