// SPDX-License-Identifier: MIT
/*!
 * \file scan_tile.cu
 * \brief The selective scan for n = 16 and 16-bit activations: every warp does every phase.
 *
 * Equation, phases, thread map and numerics: scan_tile.cuh. Grid: (channels / 128, batch); a block
 * is 4 warps that share nothing, one for each sub-partition of an SM, so that no barrier of the
 * block is ever taken. A warp owns 32 channels, a lane 2 channels x 8 states.
 *
 * Tensors (channels last, strides free, 16-byte aligned rows):
 *     u, delta, z, y [b, l, d] T; B, C [b, l, 16] T; A [16, d] fp32; D, bias [d]; state [b, 16, d]
 *
 * Shared memory of a warp, and the __syncwarp after which it may be read (1, 2, 3 in the loop):
 *     raw[s]     filled by cp.async, read in prepare after 1 and in finish after 3; refilled in the
 *                next round after 1
 *     prepared   written after 1, read after 2
 *     sums       over prepared; written after 2 once all lanes have read, read after 3
 *
 * Bytes: u, delta, z in and y out once, 8 per token and channel in fp16; B and C once per warp,
 * from L2. Limits: n = 16, d a multiple of 8, rows 16-byte aligned; others take scan_generic.
 */
#include "scan_elements.cuh"
#include "scan_tile.cuh"

namespace s6 {
namespace {

constexpr int kWarps = 4;  // Of a block, one per sub-partition; they share nothing.
//! Five blocks must fit an SM's registers and Orin's 164 KB, so that d = 5120 is one wave of 8 SMs.
constexpr int kBlocksPerSm = 5;
constexpr int kStages = 2;
constexpr int kAhead = 1;  // Tokens whose operands are read early.

using Shape = TileShape<1, 8, 2, 8, 0x0001>;

struct WarpShared {
  RawTile<Shape> raw[kStages];
  union {
    PreparedTile<Shape> prepared;
    SumTile<Shape> sums;
  };
  ChannelConstants<Shape> constants;
};
static_assert(kWarps * sizeof(WarpShared) <= 160 * 1024 / kBlocksPerSm - 1024,
              "five blocks fit Orin");

template <typename T>
__global__ void __launch_bounds__(32 * kWarps, kBlocksPerSm) scanTileKernel(const ScanArgs args) {
  __shared__ WarpShared shared_of_warp[kWarps];
  WarpShared& shared = shared_of_warp[threadIdx.x / 32];
  const int thread = threadIdx.x % 32;
  const int64_t row = blockIdx.y;
  const int first_channel = (blockIdx.x * kWarps + threadIdx.x / 32) * Shape::kChannels;
  if (first_channel >= args.d) return;
  const int length = args.lengths == nullptr ? args.l : min(args.l, max(0, args.lengths[row]));
  const bool with_softplus = args.delta_softplus != 0;

  TileLoader<Shape, 32> loader(args, row, first_channel, thread);
#pragma unroll
  for (int s = 0; s < kStages - 1; ++s) {
    loader.start(shared.raw[s], args, length - s * Shape::kTokens);
  }
  loadConstants(shared.constants, args, first_channel, thread, 32);
  LaneState<Shape> lane_state;
  lane_state.load(args, row, first_channel, thread);

  int stage = 0;
  for (int begin = 0; begin < length; begin += Shape::kTokens) {
    const int tokens = length - begin;
    waitCopies<kStages - 2>();
    __syncwarp();  // 1
    RawTile<Shape>& raw = shared.raw[stage];
    loader.start(shared.raw[stage == 0 ? kStages - 1 : stage - 1], args,
                 tokens - (kStages - 1) * Shape::kTokens);
    const bool beyond = prepareTile<T, Shape, 32>(raw, shared.prepared, shared.constants,
                                                  with_softplus, tokens, thread);
    const bool any_beyond = __any_sync(0xffffffffu, beyond);
    __syncwarp();  // 2
    if (any_beyond) {
      scanTile<Shape, 0, kAhead>(shared.prepared, shared.sums, lane_state, thread);
    } else {
      scanTile<Shape, Shape::kPolynomialMask, kAhead>(shared.prepared, shared.sums, lane_state,
                                                      thread);
    }
    __syncwarp();  // 3
    finishTile<T, Shape, 32>(shared.sums, raw, shared.constants, args, row, first_channel, begin,
                             tokens, thread);
    stage = stage + 1 == kStages ? 0 : stage + 1;
  }
  lane_state.store(args, row, first_channel, thread);
  clearRest<Shape, 32>(args, row, first_channel, length, thread);
}

}  // namespace

cudaError_t launchScanTile(const ScanArgs& args, bool is_bfloat16, cudaStream_t stream) {
  constexpr int kBlockChannels = kWarps * Shape::kChannels;
  const dim3 grid((args.d + kBlockChannels - 1) / kBlockChannels, args.b);
  if (is_bfloat16) {
    scanTileKernel<__nv_bfloat16><<<grid, 32 * kWarps, 0, stream>>>(args);
  } else {
    scanTileKernel<__half><<<grid, 32 * kWarps, 0, stream>>>(args);
  }
  return cudaGetLastError();
}

}  // namespace s6
