// SPDX-License-Identifier: MIT
/*!
 * \file decode_stream.cuh
 * \brief The weights of a whole token as one stream a warp, fetched ahead by warps of their own.
 *
 * Which weights a warp multiplies, and in which order, does not depend on any activation. So for
 * each computing warp another, or half of another, does nothing but walk its list and copy what
 * comes next into a ring in shared memory, as far ahead as the ring is long: across phases and
 * blocks of the model. The memory bus stays busy while the blocks wait for each other's values (the
 * idea of Hazy Research's low-latency megakernel), and no address is ever computed between two
 * products.
 *
 * A slot of the ring has two halves of 2 KB, each four entries of 16 bytes for each lane of the
 * computing warp; of packed matrices they end in 128 bytes of scales. Two mbarriers a slot say that
 * it is full (the copies themselves arrive) and that it is free again.
 *
 * The list of a warp, block after block of the model:
 *     in     units of its row group: each a u tile and its z tile, or, where gates are apart, two u
 *            tiles, an odd one with its z tile; 4 column blocks of both tiles a slot
 *     column x_proj: where it takes digits, its tiles two by two like in, of the column
 *            blocks that hold this block's channels; else in half a slot 64 bytes of the rows of
 *            up to four tiles
 *     gates  where they are apart: the other z tiles two by two like in
 *     scan   for its pairs: dt_proj, A, the state
 *     out    tiles of its row group two by two like in; an odd one alone, 8 column blocks a slot
 * and after the last block of the model the head's tiles, like out.
 */
#pragma once

#include "decode_args.cuh"
#include "mbarrier.cuh"
#include "shared_memory.cuh"
#include "tensor_cores.cuh"

namespace s6 {

//! 16 bytes at an offset into the block's dynamic shared memory.
__device__ __forceinline__ uint4 loadShared(int offset) {
  extern __shared__ __align__(128) uint8_t shared[];
  return *reinterpret_cast<const uint4*>(shared + offset);
}

__device__ __forceinline__ uint2 loadSharedHalf(int offset) {
  extern __shared__ __align__(128) uint8_t shared[];
  return *reinterpret_cast<const uint2*>(shared + offset);
}

//! Arrives once all copies that this thread has started are complete.
__device__ __forceinline__ void arriveWithCopies(uint32_t barrier) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" ::"r"(barrier) : "memory");
}

//! Lanes that say a slot has been read: one, for its warp. compute-sanitizer's racecheck does not
//! follow that the others' reads come before, so for it all do.
#ifdef S6_SANITIZE
constexpr int kReadersThatArrive = 32;
#else
constexpr int kReadersThatArrive = 1;
#endif

//! A range of 64-byte column blocks, or of anything else.
struct Range {
  int begin, end;
  __device__ int size() const { return end - begin; }
};

//! What a block owns, in its own counting.
struct BlockShare {
  int pair, pairs, out, outs, head, heads;

  __device__ BlockShare(const DecodeArgs& args, int block)
      : pair(args.first_pair[block]),
        pairs(args.first_pair[block + 1] - pair),
        out(args.first_out[block]),
        outs(args.first_out[block + 1] - out),
        head(args.first_head[block]),
        heads(args.first_head[block + 1] - head) {}
};

//! Of a product's columns the part `index` of `count`, which are equal.
struct ColumnPart {
  int count = 1, index = 0;
};

//! A warp's part of a product: which columns, and which of the units of two tiles.
struct ProductShare {
  int slice;
  Range blocks;    //!< Column blocks of 64 bytes.
  int part_begin;  //!< Where those of all warps begin.
  int unit, unit_step;

  __device__ ProductShare(const DecodeMatrix& matrix, DecodeSplit split, int warp,
                          ColumnPart part = {}) {
    slice = warp & ((1 << split.log_slices) - 1);
    const int count = matrix.row_bytes / 64 / part.count;
    part_begin = part.index * count;
    blocks = {part_begin + firstOfSlice(count, split.log_slices, slice),
              part_begin + firstOfSlice(count, split.log_slices, slice + 1)};
    unit = warp >> split.log_slices;
    unit_step = kDecodeWarps >> split.log_slices;
  }

  //! Of x_proj in digits: the column blocks that hold this block's channels, units dealt to warps.
  __device__ ProductShare(const DecodeArgs& args, const BlockShare& share, int warp)
      : slice(0), part_begin(0), unit(warp), unit_step(kDecodeWarps) {
    const int columns = 512 / args.x_proj.bits;
    blocks = {kTileRows * share.pair / columns,
              (kTileRows * (share.pair + share.pairs) + columns - 1) / columns};
  }
};

/*!
 * How the warps share x_proj where it takes no digits: tiles of 8 rows are dealt to them, and a
 * warp takes four of its own at a time, an entry each of half a slot. An entry is a window of 64
 * bytes of each row; the first begins at the multiple of 16 before the block's first column, `lead`
 * pairs before. In a step four lanes take a row's weights of four pairs' channels, one each: kBits
 * bytes.
 *
 * Codes come here only where a block has fewer pairs than there are warps, so that a window is all
 * of a row and meets two groups of scales at most. Behind the tiles lie their scales:
 * [tile][group][row].
 */
template <int kBits>
struct ColumnShare {
  static constexpr int kStepsOfWindow = 16 / kBits;
  static constexpr int kTiles = 4;   //!< At a time.
  static constexpr int kGroups = 2;  //!< At most.
  static_assert(kBits == 16 || kBits * (kStepsOfWindow - 1 + kDecodeWarps - 1) <= 64, "a window");
  int tile, tiles, lead, steps;

  //! Where in half a slot the scales of tile i of four and of a group begin.
  static __device__ constexpr int scalesAt(int i, int group) {
    return kHalfSlotWeights + 2 * kTileRows * (kGroups * i + group);
  }

  __device__ ColumnShare(const DecodeArgs& args, const BlockShare& share, int warp)
      : tile(kDecodeWarps - 1 - warp),  // The first warps are busy with the convolution.
        tiles(args.x_proj.rows / kTileRows),
        lead(share.pair & (kStepsOfWindow - 1)),
        steps((lead + share.pairs + 3) / 4) {}
};

/*!
 * in_proj has as many units as a block has pairs of channels and gates; from this one on, where
 * gates are apart, they are the gates two by two, before it the channels, an odd one with its gate.
 */
template <int kBits>
__device__ __forceinline__ int firstGates(const DecodeArgs& args, int pairs) {
  return mayPutGatesApart(kBits) && args.puts_gates_apart != 0 ? (pairs + 1) / 2 : pairs;
}

//! What a warp scans at a time: a pair, of several texts perhaps some of them.
template <int kRows>
struct ScanItem {
  int index;
  const int log_groups;

  __device__ ScanItem(const DecodeArgs& args, int warp)
      : index(warp), log_groups(kRows > 1 ? args.log_text_groups : 0) {}
  __device__ void step() { index += kDecodeWarps; }
  __device__ int pair() const { return index >> log_groups; }
  __device__ int texts() const { return kRows >> log_groups; }
  __device__ int firstText() const { return (index & ((1 << log_groups) - 1)) * texts(); }
};

//! Weights of one row of dt_proj that a lane takes at once: 16 bytes, or 8 of 4-bit codes.
template <int kBits>
constexpr int kStepChunk = kBits == 16 ? 8 : 16;

template <int kBits>
__device__ __forceinline__ int stepEntries(int r) {
  return (r / kStepChunk<kBits> + 3) / 4;
}

//! Where the ring of a warp and its barriers lie.
template <int kBits>
struct Ring {
  static constexpr int kSlotBytes = slotBytes(kBits);
  const int depth;    //!< Slots.
  int slots;          //!< Offset of this lane's part of the first slot.
  uint32_t barriers;  //!< Address of those of the first slot: full, free.
  int slot = 0, parity = 0;

  __device__ Ring(const DecodeArgs& args, const uint8_t* shared, int warp, int lane)
      : depth(args.depth),
        slots(warp * depth * kSlotBytes + lane * 16),
        barriers(sharedAddress(shared) + kDecodeWarps * depth * kSlotBytes + warp * depth * 16) {}

  __device__ int offset() const { return slots + slot * kSlotBytes; }
  __device__ uint32_t full() const { return barriers + slot * 16; }
  __device__ uint32_t free() const { return full() + 8; }
  __device__ void step() {
    if (++slot == depth) slot = 0, parity ^= 1;
  }
  //! fetching_lanes: of those that copy into it.
  __device__ void start(int fetching_lanes) const {
    for (int i = 0; i < depth; ++i) {
      startBarrier(barriers + i * 16, fetching_lanes);
      startBarrier(barriers + i * 16 + 8, kReadersThatArrive);
    }
  }
};

constexpr int kSlotEntries = 8;  //!< Of 16 bytes a lane.

//! Where in a slot the 16 bytes `i` of a lane's eight begin.
template <int kBits>
__device__ __forceinline__ constexpr int entryAt(int i) {
  return i / 4 * halfSlotBytes(kBits) + i % 4 * 512;
}

//! A full slot.
struct Slot {
  int at;         //!< Offset of this lane's part.
  uint32_t free;  //!< The barrier that says that it has been read.
};

//! The computing side of a ring. A slot may be taken before the one before it is given back.
template <int kBits>
class WeightQueue {
 public:
  static constexpr int kSlotBits = kBits;

  __device__ WeightQueue(const DecodeArgs& args, const uint8_t* shared, int warp, int lane)
      : ring_(args, shared, warp, lane) {}

  //! The next slot, once it is full.
  __device__ __forceinline__ Slot take() {
    if (!is_ready_) awaitBarrier<0>(ring_.full(), ring_.parity);
    const Slot slot = {ring_.offset(), ring_.free()};
    ring_.step();
    is_ready_ = false;
    return slot;
  }
  //! Asks whether the next slot is full; the answer comes while the warp does something else.
  __device__ __forceinline__ void lookAhead() { is_ready_ = isOver(ring_.full(), ring_.parity); }
  //! The slot has been read by all lanes.
  __device__ __forceinline__ void giveBack(const Slot& slot, int lane) const {
    __syncwarp();
    if (lane < kReadersThatArrive) arrive(slot.free);
  }

 private:
  Ring<kBits> ring_;
  bool is_ready_ = false;
};

/*!
 * Brings what the phases of a block of the model read outside the stream into L2, a line a lane:
 * done by the fetching warps, each of which takes some lines of all rows of the tables.
 */
static __device__ __noinline__ void prefetchTables(const DecodeArgs& args, int pair, int pairs,
                                                   int layer) {
  constexpr int kLine = 32;  // Floats.
  const int fetcher = static_cast<int>(threadIdx.x) / 32 - kDecodeWarps, lane = threadIdx.x % 32;
  const auto fetch = [](const void* at) {
    asm volatile("prefetch.global.L2 [%0];" ::"l"(at) : "memory");
  };
  // The norm's weights serve all blocks: each fetches some lines.
  const bool is_last = layer == args.layers;
  const float* norm = is_last ? args.final_norm : args.norm.of(layer);
  const int norm_line = (32 * fetcher + lane) * args.blocks + blockIdx.x;
  if (norm != nullptr && norm_line * kLine < args.m) fetch(norm + norm_line * kLine);
  const int channel = kTileRows * pair, channels = kTileRows * pairs;
  if (is_last || pairs == 0 || kLine * fetcher >= channels + kLine) return;
  const DecodeMatrix& dt = args.dt_proj;
  const int past = args.k - 1, first_state = args.k + 3;
  const int first_scales = first_state + past * args.b;
  const int rows = first_scales + (dt.bits == 16 ? 0 : args.r >> dt.group_shift);
  // Not unrolled, for the instruction cache.
#pragma unroll 1
  for (int row = lane; row < rows; row += 32) {
    const float* table = args.conv_bias.of(layer);
    int at = channel, count = channels;
    if (row < args.k) table = args.conv_weight.of(layer) + row * args.d;
    if (row == args.k + 1) table = args.dt_bias.of(layer);
    if (row == args.k + 2) table = args.D.of(layer);
    if (row >= first_state) {
      table = args.conv_state + (int64_t{layer} * args.b * past + row - first_state) * args.d;
    }
    if (row >= first_scales) {
      // Scales are half as large as floats.
      table = reinterpret_cast<const float*>(dt.scales + layer * dt.scales_layer_bytes);
      at = ((row - first_scales) * args.d + channel) / 2, count = channels / 2;
    }
#pragma unroll 1
    for (int i = kLine * fetcher; i < count + kLine; i += kLine * args.fetchers) {
      fetch(table + at + min(i, count - 1));
    }
  }
}

/*!
 * Where 16 bytes `chunk` of column block `block` (even or odd) of row `row` lie in the 1024 bytes
 * of a tile's two blocks. A row's line of 128 bytes stays together, because in two places it would
 * be written in two steps. Reads meet in no bank either: lane 4 g + t reads 16 bytes t of row g of
 * a block, so rows change their halves in turn; of 4 bits it reads 8 bytes of each half block, so
 * these change places in two rows of four.
 */
__device__ __forceinline__ int placeOfChunk(int row, int block, int chunk, bool is_narrow) {
  return 128 * row + 64 * ((row ^ block) & 1) + 16 * (is_narrow ? chunk ^ (row & 2) : chunk);
}

/*!
 * The fetching side: copies the list of a computing warp, or, each with half of its lanes, the
 * lists of two (kRings). These go on together, slot by slot, and a full ring keeps the other back;
 * but where warp A waits for a slot, warp B, whose ring is full of what stands no later in its
 * list, waits for no barrier that A has not passed.
 *
 * Where many blocks share the memory (kIsLimited) it has the copies of three halves of slots on
 * their way at most. More would bring nothing sooner, but the values that blocks exchange would
 * wait behind them.
 */
template <int kBits, int kRows, bool kIsLimited, int kRings>
class WeightFetcher {
 public:
  __device__ WeightFetcher(const DecodeArgs& args, const BlockShare& share, const uint8_t* shared,
                           int fetcher, int lane)
      : args_(args),
        share_(share),
        ring_(args, shared, kRings * fetcher + lane / kLanes, 0),
        shared_(sharedAddress(shared)),
        warp_(kRings * fetcher + lane / kLanes),
        lane_(lane % kLanes) {}

  __device__ void run() {
    prefetchTables(args_, share_.pair, share_.pairs, 0);
    // One place in the code for all products: what a block of the model runs through has to stay in
    // the instruction cache (docs/lab_note_decode.md).
#pragma unroll 1
    for (int layer = 0; layer <= args_.layers; ++layer) {
      const bool is_head = layer == args_.layers;
#pragma unroll 1
      for (int i = kIn; i <= kHead; ++i) {
        if ((i == kHead) != is_head) continue;
        if (i == kColumns && !(mayMixInTiles(kBits) && args_.mixes_in_tiles != 0)) {
          fetchColumns(layer);
        } else if (i != kGates || mayPutGatesApart(kBits)) {
          const int parts = kRows > 1 && i == kOut ? args_.out_parts : 1;
#pragma unroll 1
          for (int part = 0; part < parts; ++part) {
            fetchProduct(static_cast<Product>(i), is_head ? 0 : layer, {parts, part});
          }
        }
        if (i == kGates) fetchScan(layer);
        // Last, because it takes as long as some slots, which would be wanted sooner.
        if (i == kOut) prefetchTables(args_, share_.pair, share_.pairs, layer + 1);
      }
    }
  }

 private:
  static constexpr bool kIsCoded = kBits != 16;
  static constexpr int kLanes = 32 / kRings;  //!< That copy for one computing warp.

  //! In the order of the list.
  enum Product { kIn, kColumns, kGates, kOut, kHead };

  static constexpr int kHalvesOnTheirWay = 3;

  //! Of half a slot, or of one that is not filled half by half, all copies have been started.
  __device__ __forceinline__ void endHalf() const {
    if constexpr (kIsLimited) commitCopies();
  }
  //! Before those of the next.
  __device__ __forceinline__ void beginHalf() const {
    if constexpr (kIsLimited) waitCopies<kHalvesOnTheirWay - 1>();
  }

  //! Waits for a free slot; its address.
  __device__ __forceinline__ uint32_t begin() {
    awaitBarrier<100>(ring_.free(), ring_.parity ^ 1);  // A fresh ring is free.
    beginHalf();
    return shared_ + ring_.offset();
  }
  __device__ __forceinline__ void end() {
    arriveWithCopies(ring_.full());
    endHalf();
    ring_.step();
  }

  //! An entry of 32 lanes, kBytes each and 16 apart, by kLanes at a time; pass_bytes: from what
  //! these take at once to the next.
  template <int kBytes>
  __device__ __forceinline__ void copyEntry(uint32_t to, const uint8_t* from,
                                            int64_t pass_bytes) const {
#pragma unroll
    for (int i = 0; i < kRings; ++i) copyAsync<kBytes>(to + 16 * kLanes * i, from + i * pass_bytes);
  }

  /*!
   * A product's units: unit i is the tile at row + i * unit_rows and its twin, which exists if
   * 2 i + 1 < tiles: the tile's gate or the next tile.
   *
   * A copy takes whole lines of 128 bytes, 8 lanes each, because a multiprocessor asks for one line
   * in two clocks, however little of it: lane 8 i + c copies 16 bytes c of row i, then of rows
   * kRowsAtOnce, 2 kRowsAtOnce, ... further on.
   */
  __device__ void fetchProduct(Product product, int layer, ColumnPart part) {
    const DecodeMatrix& matrix = product == kColumns ? args_.x_proj
                                 : product == kOut   ? args_.out_proj
                                 : product == kHead  ? args_.head
                                                     : args_.in_proj;
    const ProductShare mine = product == kColumns
                                  ? ProductShare(args_, share_, warp_)
                                  : ProductShare(matrix,
                                                 product == kOut    ? args_.out_split
                                                 : product == kHead ? args_.head_split
                                                                    : args_.in_split,
                                                 warp_, part);
    const int gates = firstGates<kBits>(args_, share_.pairs);
    const int tiles = product == kIn        ? 2 * gates
                      : product == kColumns ? (share_.pairs > 0 ? matrix.rows / kTileRows : 0)
                      : product == kGates   ? 2 * (share_.pairs - gates)
                      : product == kOut     ? share_.outs
                                            : share_.heads;
    const int first_tile = product == kColumns ? 0
                           : product == kOut   ? share_.out
                           : product == kHead  ? share_.head
                                               : share_.pair;
    const int row = kTileRows * first_tile + (product == kGates ? args_.d : 0);
    const bool has_gates = product == kIn && gates == share_.pairs;
    const int unit_rows = has_gates ? kTileRows : 2 * kTileRows;
    const int units = (tiles + 1) / 2;
    const int columns = 512 / matrix.bits;
    const int row_of_lane = lane_ >> 3, chunk = lane_ & 7, odd = chunk >> 2;
    const uint8_t* data = matrix.data + layer * matrix.layer_bytes +
                          int64_t{row + row_of_lane} * matrix.row_bytes + 64 * mine.blocks.begin +
                          16 * chunk;
    constexpr int kRowsAtOnce = kLanes / 8;
    int places[kRings];  // In turn: they come again every four rows.
#pragma unroll
    for (int i = 0; i < kRings; ++i) {
      places[i] = placeOfChunk(row_of_lane + kRowsAtOnce * i, odd, chunk & 3, matrix.bits == 4);
    }
    const uint8_t* scales = matrix.scales + layer * matrix.scales_layer_bytes + 2 * row;
    for (int unit = mine.unit; unit < units; unit += mine.unit_step) {
      const bool has_twin = 2 * unit + 1 < tiles;
      const bool is_gate = has_gates || (product == kIn && 2 * unit + 1 == share_.pairs);
      const int twin_rows = is_gate ? args_.d : kTileRows;
      const uint8_t* from = data + int64_t{unit} * unit_rows * matrix.row_bytes;
      // Of the scales a lane copies those of one tile and 64 columns.
      const int tile_groups = (has_twin ? 2 : 4) * columns / 64;
      const int tile = has_twin && lane_ >= tile_groups ? 1 : 0;
      const bool copies = kIsCoded && matrix.bits != 16 && lane_ < (has_twin ? 2 : 1) * tile_groups;
      int column = columns * mine.blocks.begin + 64 * (lane_ - tile * tile_groups);
      const uint8_t* scales_of = scales + 2 * (unit * unit_rows + tile * twin_rows);
      const int step = has_twin ? 2 : 4;
      // The other 1024 bytes of half a slot: the twin's, or the next two column blocks.
      const int64_t second = has_twin ? int64_t{twin_rows} * matrix.row_bytes : 128;
      const int before_second = has_twin ? 0 : 2;
      int left = mine.blocks.size() - odd;
      while (left + odd > 0) {
        const uint32_t slot = begin();
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          if (half == 1) endHalf(), beginHalf();
          const uint32_t at = slot + half * halfSlotBytes(kBits);
#pragma unroll
          for (int i = 0; i < 2 * kRings; ++i) {
            const uint32_t to = at + places[i % kRings] + 512 * (i / kRings);
            const uint8_t* rows = from + int64_t{kRowsAtOnce * i} * matrix.row_bytes;
            copyOrZeroAsync<Leaving::kSurroundings>(to, rows, left > 0);
            copyOrZeroAsync<Leaving::kSurroundings>(to + 1024, rows + second, left > before_second);
          }
          if (copies) {
            copyOrZeroAsync<Leaving::kLine>(
                at + kHalfSlotWeights + 16 * lane_,
                scales_of + int64_t{column >> matrix.group_shift} * 2 * matrix.rows,
                column < columns * mine.blocks.end);
          }
          from += 64 * step;
          column += columns * step;
          left -= step;
        }
        end();
      }
    }
  }

  //! See ColumnShare.
  __device__ void fetchColumns(int layer) {
    if (share_.pairs == 0) return;
    using Share = ColumnShare<kBits>;
    const Share mine(args_, share_, warp_);
    const DecodeMatrix& matrix = args_.x_proj;
    const int bytes = kBits * (mine.lead + share_.pairs);  // Of a row.
    const uint8_t* data = matrix.data + layer * matrix.layer_bytes +
                          int64_t{lane_ >> 2} * matrix.row_bytes +
                          kBits * (share_.pair - mine.lead);
    const int64_t pass_bytes = int64_t{kLanes / 4} * matrix.row_bytes;
    constexpr int kRowStep = kTileRows * kDecodeWarps;  // From one of a warp's tiles to its next.
    // Of the scales a lane copies those of one tile and group.
    const int scale_tile = lane_ / Share::kGroups * kDecodeWarps;
    const int channel = kTileRows * share_.pair, last = channel + kTileRows * share_.pairs - 1;
    const int group = (channel >> matrix.group_shift) + lane_ % Share::kGroups;
    const bool has_scales =
        kIsCoded && lane_ < Share::kTiles * Share::kGroups && group <= last >> matrix.group_shift;
    const uint8_t* scales = matrix.scales + layer * matrix.scales_layer_bytes +
                            2 * (int64_t{group} * matrix.rows + kTileRows * scale_tile);
    uint32_t to = 0;
    int half = 0;
#pragma unroll 1
    for (int tile = mine.tile; tile < mine.tiles; tile += Share::kTiles * kDecodeWarps) {
      const uint8_t* from = data + int64_t{kTileRows * tile} * matrix.row_bytes;
#pragma unroll 1
      for (int window = 0; window < bytes; window += 64) {
        to = half == 0 ? begin() + 16 * lane_ : to + halfSlotBytes(kBits);
        const int at = window + 16 * (lane_ & 3);
#pragma unroll
        for (int i = 0; i < Share::kTiles; ++i) {
          if (tile + i * kDecodeWarps >= mine.tiles) break;
          if (at < bytes) {
            copyEntry<16>(to + entryAt<kBits>(i),
                          from + at + int64_t{i * kRowStep} * matrix.row_bytes, pass_bytes);
          }
        }
        if (has_scales && tile + scale_tile < mine.tiles) {
          copyAsync<16>(to + Share::scalesAt(0, 0), scales + 2 * kTileRows * tile);
        }
        if (half == 1) end();
        half ^= 1;
      }
    }
    if (half == 1) end();
  }

  __device__ void fetchScan(int layer) {
    constexpr int kChunkBytes = kBits == 4 ? 8 : 16;
    constexpr int kLast = kRows == 1 ? 2 : 1;  // The rates, and the state of a single text.
    const int entries = stepEntries<kBits>(args_.r);
    const int chunks = args_.r / kStepChunk<kBits>;
    const int64_t pass_bytes = int64_t{kLanes / 4} * args_.dt_proj.row_bytes;
    const int64_t states_pass_bytes = int64_t{kLanes / 2} * 4 * args_.d;
    for (ScanItem<kRows> item(args_, warp_); item.pair() < share_.pairs; item.step()) {
      const int channel = kTileRows * (share_.pair + item.pair());
      const int at = (lane_ >> 1) * args_.d + channel + 4 * (lane_ & 1);
      const uint8_t* from = args_.dt_proj.data + layer * args_.dt_proj.layer_bytes +
                            int64_t{channel + (lane_ >> 2)} * args_.dt_proj.row_bytes +
                            kChunkBytes * (lane_ & 3);
      const uint8_t* rates = reinterpret_cast<const uint8_t*>(args_.A.of(layer) + at);
      const int64_t state_bytes = int64_t{4} * kDecodeState * args_.d;
      const uint8_t* states =
          reinterpret_cast<const uint8_t*>(args_.ssm_state + at) + layer * args_.b * state_bytes;
      for (int first = 0; first < entries + kLast; first += 8) {
        const uint32_t to = begin() + 16 * lane_;
#pragma unroll
        for (int i = 0; i < 8; ++i) {
          const int entry = first + i;
          if (entry < entries) {
            if ((lane_ & 3) + 4 * entry < chunks) {
              copyEntry<kChunkBytes>(to + entryAt<kBits>(i), from + 4 * kChunkBytes * entry,
                                     pass_bytes);
            }
          } else if (entry == entries) {
            copyEntry<16>(to + entryAt<kBits>(i), rates, states_pass_bytes);
          } else if (kRows == 1 && entry == entries + 1) {
            copyEntry<16>(to + entryAt<kBits>(i), states, states_pass_bytes);
          }
        }
        end();
      }
      if constexpr (kRows > 1) {
        const uint32_t to = begin() + 16 * lane_;
#pragma unroll
        for (int i = 0; i < kRows; ++i) {
          const int text = item.firstText() + i;
          if (i >= item.texts() || text >= args_.b) break;
          copyEntry<16>(to + entryAt<kBits>(i), states + text * state_bytes, states_pass_bytes);
        }
        end();
      }
    }
  }

  const DecodeArgs& args_;
  const BlockShare& share_;
  Ring<kBits> ring_;
  const uint32_t shared_;
  const int warp_;  //!< The computing one.
  const int lane_;  //!< Among those that copy for it.
};

}  // namespace s6
