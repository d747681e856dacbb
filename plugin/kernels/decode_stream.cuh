// SPDX-License-Identifier: MIT
/*!
 * \file decode_stream.cuh
 * \brief The weights of a whole token as one stream a warp, fetched ahead by a warp of its own.
 *
 * Which weights a warp multiplies, and in which order, does not depend on any activation. So each
 * computing warp has a partner that does nothing but walk its list and copy what comes next into a
 * ring in shared memory, as far ahead as the ring is long: across phases and blocks of the model.
 * The memory bus stays busy while the blocks wait for each other's values (the idea of Hazy
 * Research's low-latency megakernel), and no address is ever computed between two products.
 *
 * A slot of the ring is 2 KB, four entries of 16 bytes for each lane, laid so that lane i of the
 * computing warp reads what lane i of its partner copied: reads never collide in a bank. Slots of
 * packed matrices end in 128 bytes of scales. Two mbarriers a slot say that it is full (the copies
 * themselves arrive) and that it is free again.
 *
 * The list of a warp, block after block of the model:
 *     in     pairs (u tile, z tile) of its row group: 2 column blocks of both tiles a slot
 *     column 8 columns of x_proj for 32 of its rows, 4 of the pairs of its part a slot
 *     scan   for its pairs: dt_proj, A, the state
 *     out    tiles of its row group two by two like in; an odd one alone, 4 column blocks a slot
 * and after the last block of the model the head's tiles, like out.
 */
#pragma once

#include "decode_args.cuh"

namespace s6 {

__device__ __forceinline__ uint32_t sharedAddress(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

//! 16 bytes at an offset into the block's dynamic shared memory.
__device__ __forceinline__ uint4 loadShared(int offset) {
  extern __shared__ __align__(128) uint8_t shared[];
  return *reinterpret_cast<const uint4*>(shared + offset);
}

template <int kBytes>
__device__ __forceinline__ void copyAsync(uint32_t to, const uint8_t* from) {
  if constexpr (kBytes == 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(to), "l"(from), "n"(kBytes)
                 : "memory");
  }
}

__device__ __forceinline__ void startBarrier(uint32_t barrier, int arrivals) {
  asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}

__device__ __forceinline__ bool isOver(uint32_t barrier, int parity) {
  uint32_t is_over;
  asm volatile(
      "{ .reg .pred p; mbarrier.test_wait.parity.shared.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
      : "=r"(is_over)
      : "r"(barrier), "r"(parity)
      : "memory");
  return is_over != 0;
}

//! Waits until the phase of this parity is over. A warp that has time sleeps between its looks:
//! each look takes an issue slot and a turn of the shared memory from those who compute.
template <int kSleepNanoseconds>
__device__ __forceinline__ void awaitBarrier(uint32_t barrier, int parity) {
  while (!isOver(barrier, parity)) {
    if constexpr (kSleepNanoseconds > 0) __nanosleep(kSleepNanoseconds);
  }
}

__device__ __forceinline__ void arrive(uint32_t barrier) {
  asm volatile("{ .reg .b64 t; mbarrier.arrive.shared.b64 t, [%0]; }" ::"r"(barrier) : "memory");
}

//! Arrives once all copies that this thread has started are complete.
__device__ __forceinline__ void arriveWithCopies(uint32_t barrier) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" ::"r"(barrier) : "memory");
}

//! A range of 64-byte column blocks, or of anything else.
struct Range {
  int begin, end;
  __device__ int size() const { return end - begin; }
};

//! What a block owns, in its own counting.
struct BlockShare {
  int pair, pairs, out, outs, head, heads;

  __device__ explicit BlockShare(const DecodeArgs& args)
      : pair(args.first_pair[blockIdx.x]),
        pairs(args.first_pair[blockIdx.x + 1] - pair),
        out(args.first_out[blockIdx.x]),
        outs(args.first_out[blockIdx.x + 1] - out),
        head(args.first_head[blockIdx.x]),
        heads(args.first_head[blockIdx.x + 1] - head) {}
};

//! A warp's part of a product: which columns, and which of the units of two tiles.
struct ProductShare {
  Range blocks;  //!< Column blocks of 64 bytes.
  int unit, unit_step;

  __device__ ProductShare(const DecodeMatrix& matrix, DecodeSplit split, int warp) {
    const int slice = warp & ((1 << split.log_slices) - 1);
    const int count = matrix.row_bytes / 64;
    blocks = {(slice * count) >> split.log_slices, ((slice + 1) * count) >> split.log_slices};
    unit = warp >> split.log_slices;
    unit_step = kDecodeWarps >> split.log_slices;
  }
};

/*!
 * How the warps share x_proj: 32 rows a row group, a warp one of them at a time; where there are
 * fewer row groups than warps, the pairs are dealt to several parts.
 */
struct ColumnShare {
  int row_groups, parts, part, row_group;

  __device__ ColumnShare(const DecodeArgs& args, int warp) {
    row_groups = (args.x_proj.rows + 31) / 32;
    parts = max(1, kDecodeWarps / row_groups);
    part = row_groups >= kDecodeWarps ? 0 : warp / row_groups;
    row_group = row_groups >= kDecodeWarps ? warp : warp % row_groups;
    if (part >= parts) row_group = row_groups;  // Nothing to do.
  }
};

//! Weights of one row of dt_proj that a lane takes at once: 16 bytes, or 8 of 4-bit codes.
template <int kBits>
constexpr int kStepChunk = kBits == 16 ? 8 : 16;

template <int kBits>
__device__ __forceinline__ int stepEntries(int r) {
  return (r / kStepChunk<kBits> + 3) / 4;
}

//! Where the ring of a warp and its barriers lie.
template <int kBits, int kDepth>
struct Ring {
  static constexpr int kSlotBytes = slotBytes(kBits);
  int slots;          //!< Offset of this lane's part of the first slot.
  uint32_t barriers;  //!< Address of full[kDepth], then free[kDepth].
  int slot = 0, parity = 0;

  __device__ Ring(const uint8_t* shared, int warp, int lane)
      : slots(warp * kDepth * kSlotBytes + lane * 16),
        barriers(sharedAddress(shared) + kDecodeWarps * kDepth * kSlotBytes + warp * kDepth * 16) {}

  __device__ int offset() const { return slots + slot * kSlotBytes; }
  __device__ uint32_t full() const { return barriers + slot * 8; }
  __device__ uint32_t free() const { return barriers + (kDepth + slot) * 8; }
  __device__ void step() {
    if (++slot == kDepth) slot = 0, parity ^= 1;
  }
  __device__ void start() const {
    for (int i = 0; i < kDepth; ++i) {
      startBarrier(barriers + i * 8, 32);
      startBarrier(barriers + (kDepth + i) * 8, 1);
    }
  }
};

//! The computing side of a ring.
template <int kBits, int kDepth>
class WeightQueue {
 public:
  __device__ WeightQueue(const uint8_t* shared, int warp, int lane)
      : ring_(shared, warp, lane), lane_(lane) {}

  //! Offset of this lane's part of the next slot, once it is full.
  __device__ __forceinline__ int next() {
    awaitBarrier<0>(ring_.full(), ring_.parity);
    return ring_.offset();
  }
  //! The slot has been read by all lanes.
  __device__ __forceinline__ void release() {
    __syncwarp();
    if (lane_ == 0) arrive(ring_.free());
    ring_.step();
  }

 private:
  Ring<kBits, kDepth> ring_;
  const int lane_;
};

//! The fetching side: copies the list of one computing warp.
template <int kBits, int kRows, int kDepth>
class WeightFetcher {
 public:
  __device__ WeightFetcher(const DecodeArgs& args, const BlockShare& share, const uint8_t* shared,
                           int warp, int lane)
      : args_(args),
        share_(share),
        ring_(shared, warp, lane),
        shared_(sharedAddress(shared)),
        warp_(warp),
        lane_(lane) {}

  __device__ void run() {
    for (int layer = 0; layer < args_.layers; ++layer) {
      fetchProduct(args_.in_proj, args_.in_split, layer, kTileRows * share_.pair, share_.pairs,
                   kTileRows, args_.d, 2 * share_.pairs);
      fetchColumns(layer);
      fetchScan(layer);
      fetchProduct(args_.out_proj, args_.out_split, layer, kTileRows * share_.out,
                   (share_.outs + 1) / 2, 2 * kTileRows, kTileRows, share_.outs);
    }
    fetchProduct(args_.head, args_.head_split, 0, kTileRows * share_.head, (share_.heads + 1) / 2,
                 2 * kTileRows, kTileRows, share_.heads);
  }

 private:
  static constexpr bool kIsCoded = kBits != 16;

  //! Waits for a free slot; its address.
  __device__ __forceinline__ uint32_t begin() {
    awaitBarrier<100>(ring_.free(), ring_.parity ^ 1);  // A fresh ring is free.
    return shared_ + ring_.offset();
  }
  __device__ __forceinline__ void end() {
    arriveWithCopies(ring_.full());
    ring_.step();
  }

  //! 16 bytes of this lane's row; of 4-bit codes 8 of each half of the block, so that the block
  //! is two groups of 64 columns one after the other.
  __device__ __forceinline__ void copyBlock(uint32_t to, const uint8_t* from, bool is_narrow) {
    if (kIsCoded && is_narrow) {
      copyAsync<8>(to, from);
      copyAsync<8>(to + 8, from + 32);
    } else {
      copyAsync<16>(to, from);
    }
  }

  /*!
   * A product's units: unit i is the tile at row + i * unit_rows and its twin twin_rows further,
   * which exists if 2 i + 1 < tiles.
   */
  __device__ void fetchProduct(const DecodeMatrix& matrix, DecodeSplit split, int layer, int row,
                               int units, int unit_rows, int twin_rows, int tiles) {
    const ProductShare mine(matrix, split, warp_);
    const bool is_narrow = matrix.bits == 4;
    const int columns = 512 / matrix.bits;
    const int64_t twin = int64_t{twin_rows} * matrix.row_bytes;
    const uint8_t* data = matrix.data + layer * matrix.layer_bytes +
                          int64_t{row + (lane_ >> 2)} * matrix.row_bytes + 64 * mine.blocks.begin +
                          (is_narrow ? 8 : 16) * (lane_ & 3);
    const uint8_t* scales = matrix.scales + layer * matrix.scales_layer_bytes + 2 * row;
    for (int unit = mine.unit; unit < units; unit += mine.unit_step) {
      const bool has_twin = 2 * unit + 1 < tiles;
      const uint8_t* from = data + int64_t{unit} * unit_rows * matrix.row_bytes;
      // Of the scales a lane copies those of one tile and 64 columns.
      const int tile_groups = (has_twin ? 2 : 4) * columns / 64;
      const int tile = has_twin && lane_ >= tile_groups ? 1 : 0;
      const bool copies = kIsCoded && matrix.bits != 16 && lane_ < (has_twin ? 2 : 1) * tile_groups;
      int column = columns * mine.blocks.begin + 64 * (lane_ - tile * tile_groups);
      const uint8_t* scales_of = scales + 2 * (unit * unit_rows + tile * twin_rows);
      const int step = has_twin ? 2 : 4;
      for (int block = mine.blocks.begin; block < mine.blocks.end; block += step) {
        const int left = mine.blocks.end - block;
        const uint32_t to = begin();
        if (has_twin) {
          copyBlock(to, from, is_narrow);
          copyBlock(to + 512, from + twin, is_narrow);
          if (left > 1) {
            copyBlock(to + 1024, from + 64, is_narrow);
            copyBlock(to + 1536, from + twin + 64, is_narrow);
          }
        } else {
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            if (left > i) copyBlock(to + 512 * i, from + 64 * i, is_narrow);
          }
        }
        if (copies && column < columns * mine.blocks.end) {
          copyAsync<16>(to + 2048,
                        scales_of + int64_t{column >> matrix.group_shift} * 2 * matrix.rows);
        }
        end();
        from += 64 * step;
        column += columns * step;
      }
    }
  }

  __device__ void fetchColumns(int layer) {
    const ColumnShare mine(args_, warp_);
    const DecodeMatrix& matrix = args_.x_proj;
    const int step = mine.parts * kBits;  // 8 columns of kBits bits are kBits bytes.
    for (int group = mine.row_group; group < mine.row_groups; group += kDecodeWarps) {
      const int row = 32 * group + lane_;
      const uint8_t* from = matrix.data + layer * matrix.layer_bytes +
                            int64_t{row} * matrix.row_bytes + (share_.pair + mine.part) * kBits;
      for (int pair = mine.part; pair < share_.pairs; pair += 4 * mine.parts) {
        const uint32_t to = begin();
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          if (row < matrix.rows && pair + i * mine.parts < share_.pairs) {
            copyAsync<kBits>(to + 512 * i, from + i * step);
          }
        }
        end();
        from += 4 * step;
      }
      if (mine.row_groups <= kDecodeWarps) break;
    }
  }

  __device__ void fetchScan(int layer) {
    constexpr int kChunkBytes = kBits == 4 ? 8 : 16;
    constexpr int kLast = kRows == 1 ? 2 : 1;  // The rates, and the state of a single text.
    const int entries = stepEntries<kBits>(args_.r);
    const int chunks = args_.r / kStepChunk<kBits>;
    for (int pair = warp_; pair < share_.pairs; pair += kDecodeWarps) {
      const int channel = kTileRows * (share_.pair + pair);
      const int at = (lane_ >> 1) * args_.d + channel + 4 * (lane_ & 1);
      const uint8_t* from = args_.dt_proj.data + layer * args_.dt_proj.layer_bytes +
                            int64_t{channel + (lane_ >> 2)} * args_.dt_proj.row_bytes +
                            kChunkBytes * (lane_ & 3);
      const uint8_t* rates = reinterpret_cast<const uint8_t*>(args_.A.of(layer) + at);
      const int64_t state_bytes = int64_t{4} * kDecodeState * args_.d;
      const uint8_t* states =
          reinterpret_cast<const uint8_t*>(args_.ssm_state + at) + layer * args_.b * state_bytes;
      for (int first = 0; first < entries + kLast; first += 4) {
        const uint32_t to = begin();
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int entry = first + i;
          if (entry < entries) {
            if ((lane_ & 3) + 4 * entry < chunks) {
              copyAsync<kChunkBytes>(to + 512 * i, from + 4 * kChunkBytes * entry);
            }
          } else if (entry == entries) {
            copyAsync<16>(to + 512 * i, rates);
          } else if (kRows == 1 && entry == entries + 1) {
            copyAsync<16>(to + 512 * i, states);
          }
        }
        end();
      }
      if constexpr (kRows > 1) {
        for (int text = 0; text < args_.b; text += 4) {
          const uint32_t to = begin();
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            if (text + i < args_.b) {
              copyAsync<16>(to + 512 * i, states + (text + i) * state_bytes);
            }
          }
          end();
        }
      }
    }
  }

  const DecodeArgs& args_;
  const BlockShare& share_;
  Ring<kBits, kDepth> ring_;
  const uint32_t shared_;
  const int warp_, lane_;
};

}  // namespace s6
