// SPDX-License-Identifier: MIT
/*!
 * \file decode_block.cuh
 * \brief What the computing warps of a block of the decode kernel share; their phases have files of
 * their own.
 *
 * Shared memory besides the ring: activations [texts][columns] float16 (of one text two halves), or
 * [digit][columns] bytes (of in_proj, then of x_proj, dt_proj and out_proj in turn) · partials
 * [tile][slice][text][8], and between in_proj and out_proj dt as activations of several texts ·
 * mixed [text][r + 2 n] · channels: u and gate [pair][text][8] · own: the residual of the block's
 * rows [tile][text][8] · reduce (small sums) · candidates of the greedy choice. Each is written by
 * one phase, read by the next, with a barrier of the computing warps between, or, of a single
 * text's activations, of the warps that share a slice of the columns; see the phases.
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
  //! Of four values each, that a thread awaits together.
  static constexpr int kQuadsAtOnce = kRows == 1 ? 5 : 4;
  //! In reduce(), in words: sums and magnitudes of the warps come first.
  static constexpr int kUnitsAt = 2 * kDecodeWarps, kEpochsAt = 3 * kDecodeWarps;
  static constexpr int kScalesAt = kEpochsAt + kRows;
  static constexpr float kNormSlack = 64.0f;  //!< By what a norm may differ from its power of two.
  static constexpr int kSumsAtOnce = kRows == 1 ? 1 : 4;
  static constexpr int kRowThreads = kDecodeThreads / kRows;  //!< That stage one text.

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

  // --- decode_activations.cuh ------------------------------------------------------------------

  static __device__ float4 floatsOf(const uint4& words) {
    return {__uint_as_float(words.x), __uint_as_float(words.y), __uint_as_float(words.z),
            __uint_as_float(words.w)};
  }

  //! Columns 4 quad ... 4 quad + 3 of a text's activations, of `columns`.
  template <int kMatrixBits>
  __device__ void storeActivations(int row, int columns, int quad, const float4& value) const;

  //! Columns 8 eight ... 8 eight + 7 of one of several texts, as float16.
  __device__ void storeEight(int row, int columns, int eight, const uint4& v) const {
    __half* to = activations() + row * activationStride(columns, kBits) + 8 * eight;
    *reinterpret_cast<uint4*>(to) = kBits == 4 ? alternating(v) : v;
  }

  //! The same as digits, highest first, of what `inverse` makes integers; `slice`: the one of the
  //! quad, of 2^log_slices.
  template <int kMatrixBits>
  __device__ void storeDigits(int columns, int quad, const float4& value, float inverse,
                              int log_slices = 0, int slice = 0) const;

  //! Sum over the lanes of this warp; every one of them gets it.
  static __device__ float sumOfWarp(float value) {
#pragma unroll
    for (int step = 16; step > 0; step /= 2) value += __shfl_xor_sync(0xffffffffu, value, step);
    return value;
  }

  //! Sum over the threads of one of several texts; every one of them gets it. One barrier.
  __device__ float sumOfRow(float value);

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
  __device__ void noteMagnitude(uint32_t bits, bool continues = false);

  static constexpr float kLeastMagnitude = 1e-30f;  //!< So that no inverse is infinite.

  //! The largest magnitude that warps `first`, `first` + 2^log_step, ... noted, at least
  //! kLeastMagnitude.
  __device__ float largestNoted(int first, int log_step) const;

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
  struct Slice;

  //! The largest of the magnitudes in a slice, at least kLeastMagnitude.
  template <int kMatrixBits>
  __device__ float largestOf(const Slice<kMatrixBits>& slice, uint32_t bits);

  //! residual * weight as activations of a product with weights of these bits, by the warps that
  //! multiply them; the norm is applied to the product's sums, see normOfText. The residual is that
  //! before block `layer`.
  template <int kMatrixBits>
  __device__ void stageResidual(int layer, const float* weight, const DecodeMatrix& matrix,
                                DecodeSplit split);

  //! What the sums of a product with the residual lack.
  __device__ float normOfText(int row) const;

  //! rms_norm(residual) * weight as activations of a product with weights of these bits, of several
  //! texts. The residual is that before block `layer`.
  template <int kMatrixBits>
  __device__ void normalise(int layer, const float* weight);

  // --- decode_batches.cuh ----------------------------------------------------------------------

  //! Offset in shared memory of the activations that this lane multiplies with its first block.
  template <int kMatrixBits>
  __device__ int laneActivations(int columns, int first_block, int log_slices = 0,
                                 int slice = 0) const;

  //! Where in partials() a slice's sums of a tile and of a text begin.
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

  //! That of the units from `first_unit` on, of a block that has so many tiles.
  template <int kMatrixBits>
  __device__ Batch batchOf(const DecodeMatrix& matrix, DecodeSplit split, int columns,
                           int first_unit, int tiles, ColumnPart part = {});

  //! This warp's sums of a batch to shared memory.
  template <int kMatrixBits, bool kMayBeOdd>
  __device__ void multiplyBatch(const Batch& batch, DecodeSplit split);

  //! Row `index` of a tile of the batch, for a text.
  __device__ float sumOfSlices(int tile, int row, int index, DecodeSplit split) const;

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
                                              const Finish& finish) const;

  //! So that a loop that is not unrolled can take the first of four registers in each round.
  template <typename T>
  static __device__ __forceinline__ void moveUp(T (&values)[4]) {
    values[0] = values[1], values[1] = values[2], values[2] = values[3];
  }

  // --- decode_channels.cuh ---------------------------------------------------------------------

  //! A value of in_proj.
  struct ChannelItem;

  //! What the convolution knows of a channel before its value is there.
  struct Convolution;

  //! Makes a channel's u or gate of the sums of in_proj; the magnitude of u.
  __device__ uint32_t finishChannel(const ChannelItem& item, const Convolution& convolution);

  //! The block's u and gates. The scan wants the gates, so they are made while the sums of x_proj
  //! are on their way where they are apart.
  __device__ void channels(int layer);

  // --- decode_columns.cuh ----------------------------------------------------------------------

  //! This block's columns of x_proj times its u, added to the sums of all blocks. Those of other
  //! blocks in the same column blocks are taken times zero.
  __device__ void addColumnTiles();

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
  __device__ uint4 loadColumns(int at) const;

  //! This block's columns of x_proj times its u, added to the sums of all blocks. Begins with a
  //! barrier, for u.
  __device__ void addColumns();

  //! Adds this warp's sums of four tiles from `tile` on, of which `tiles` exist, to those of all
  //! blocks; quarter and row: of this lane, see addColumns.
  template <int kTiles, int kSums>
  __device__ void addToSums(const float (&sums)[kTiles][kSums], int tile, int tiles, int quarter,
                            int row);

  //! Code i of a word minus the zero point, made in the mantissa of 2^23: conversions are slow.
  static __device__ float weightOf(uint32_t word, int i) {
    constexpr uint32_t kExponent = 0x4b000000u;
    const uint32_t bits = kBits == 8 ? __byte_perm(word, kExponent, 0x7440u | i)
                                     : ((word >> (4 * i)) & 15u) | kExponent;
    return __uint_as_float(bits) - (8388608.0f + (1 << (kBits - 1)));
  }

  //! The first eight neighbouring weights of a row in 16 bytes, in columns' order.
  static __device__ void unpackColumns(const uint4& words, float (&w)[kTileRows]);

  // --- decode_scan.cuh -------------------------------------------------------------------------

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
  __device__ void keepMixed(int slot, float value) const;

  //! The complete sums to shared memory, normed where the model wants that. Ends in a barrier.
  __device__ void receiveSums();

  //! dt_proj, the recurrence and the gates of the block's pairs; publishes the outputs.
  __device__ void scan(int layer);

  //! The u of a text for channels 4 half ... 4 half + 3 of a pair.
  __device__ float4 inputsOf(int pair, int text, int half) const;

  /*!
   * Of a pair the states of the texts from `first_text` on, of several an even one: a step further,
   * and their outputs. dt: of channel lane / 4 for texts 2 (lane % 4) and the next. States of no
   * text are not kept.
   */
  template <int kCount>
  __device__ void advanceStates(int layer, int pair, int first_text, const float (&dt)[2],
                                const float (&rates)[4], float skip, const uint4 (&states)[kCount]);

  //! The same where dt_proj takes digits.
  __device__ void scanInDigits(int layer);

  //! The digits of dt; returns what the lowest is worth in a product. Ends in a barrier.
  __device__ float stageStepDigits();

  /*!
   * Adds 32 columns of dt_proj, chunks 2 i and 2 i + 1 of 16, of which a slot has four an entry: a
   * lane takes half of a chunk. scale: of chunk quarter + 4 (i / 2), zero if there is none;
   * is_split: the two chunks have different ones.
   */
  __device__ __forceinline__ void addStepDigits(float (&digits)[2], const Slot& slot, int i,
                                                int chunks, bool is_split, float scale) const;

  //! step += scale * (16 or 8 weights of dt_proj) . dt; a chunk beyond `chunks` counts nothing.
  __device__ void addSteps(float& step, const float (&w)[kStepChunk<kBits>], float scale, int chunk,
                           int chunks) const;

  //! The same of several texts, by multiplyRows.
  __device__ void multiplySteps(float (&step)[4], const uint4& words, __half scale, int chunk,
                                int chunks) const;

  //! A chunk's weights of dt_proj, in columns' order.
  static __device__ void unpackSteps(const uint4& words, float (&w)[kStepChunk<kBits>]);

  //! The channel of a pair that this lane has after the sum over states.
  __device__ int outputIndex() const {
    return 4 * (lane_ & 1) + 2 * ((lane_ >> 1) & 1) + ((lane_ >> 2) & 1);
  }

  //! Sums y, of some texts, over the 16 states: halving exchanges, so that every lane ends with one
  //! channel, outputIndex(), of one text, (lane / 8) % kCount.
  template <int kCount>
  __device__ float sumOverStates(const float (&y)[kCount][4]) const;

  //! What sumOverStates gives, with the skip and the gate, for the other blocks.
  template <int kCount>
  __device__ void publishOutput(int layer, int pair, int first_text, float sum, float skip) const;

  // --- decode_outputs.cuh ----------------------------------------------------------------------

  //! The gated outputs of all blocks as activations of out_proj, by the warps that multiply them.
  __device__ void stageOutputs(int layer);

  //! A part of the same of several texts, by all warps. Ends in a barrier.
  __device__ void receiveOutputs(int layer, ColumnPart part);

  //! The block's rows of out_proj, added to its residual, which it publishes.
  __device__ void outputs(int layer);

  // --- decode_head.cuh -------------------------------------------------------------------------

  //! A token that may be the most likely one; of two that are equally likely the first is.
  struct Candidate {
    float logit;
    int32_t id;
    __device__ bool isBehind(const Candidate& other) const {
      return other.logit > logit || (other.logit == logit && other.id < id);
    }
  };

  //! The best of each thread; not kept in registers, of which the products need all.
  __device__ Candidate* candidates() const { return sharedAt<Candidate>(args_.candidates_at); }

  //! The block's logits, with a head of these bits.
  template <int kHeadBits>
  __device__ void headBatches();

  //! Head and greedy choice; then the words that the next call begins with.
  __device__ void finish();

  //! The best of this warp's lanes.
  static __device__ Candidate bestOfWarp(Candidate mine);

  const DecodeArgs& args_;
  Queue queue_;
  int thread_, warp_, lane_, block_;
};

}  // namespace s6
