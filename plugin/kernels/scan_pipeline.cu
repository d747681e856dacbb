// SPDX-License-Identifier: MIT
/*!
 * \file scan_pipeline.cu
 * \brief The selective scan for few channels on many multiprocessors: phases overlap.
 *
 * Equation, phases, thread map and numerics: scan_tile.cuh. Where the channels do not fill the
 * GPU, a warp is alone on its sub-partition and waits out every latency. Here a lane holds 2 or 4
 * recurrences, so that more SMs take part, and scanning and elementwise warps are apart. In round
 * i the scanning warps run tile i, while the others finish tile i - 1, prepare tile i + 1 and
 * start the copies of tile i + kStages - 2: one barrier a round.
 *
 * Tensors: as in scan_tile.cu. Shared memory, rounds counted by i:
 *     raw[i % kStages]     copied during the rounds before i - 1, prepared in round i - 1, read
 *                          again by finish in round i + 1, refilled from round i + 2 on
 *     prepared[i % 2]      written in round i - 1, read in round i
 *     sums[i % 2]          written in round i, read in round i + 1
 *
 * Bytes: as scan_tile.cu. No polynomials: the sub-partition waits on latency, not on exponentials.
 */
#include "scan_elements.cuh"
#include "scan_tile.cuh"

namespace s6 {
namespace {

constexpr int kAhead = 2;  // Tokens whose operands are read early.
constexpr int kStages = 6;

template <typename Shape>
struct PipelineShared {
  RawTile<Shape> raw[kStages];
  PreparedTile<Shape> prepared[2];
  SumTile<Shape> sums[2];
  ChannelConstants<Shape> constants;
};

template <typename Shape>
constexpr int kScanThreads = 32 * Shape::kWarps;
template <typename Shape>
constexpr int kElementThreads = Shape::kChannels * Shape::kTokens / 2;  // Two channels each.

template <typename T, typename Shape>
__global__ void __launch_bounds__(kScanThreads<Shape> + kElementThreads<Shape>, 1)
    scanPipelineKernel(const ScanArgs args) {
  extern __shared__ __align__(16) unsigned char shared_bytes[];
  auto& shared = *reinterpret_cast<PipelineShared<Shape>*>(shared_bytes);
  constexpr int kThreads = kElementThreads<Shape>;
  const bool scans = threadIdx.x < kScanThreads<Shape>;
  const int thread = scans ? threadIdx.x : threadIdx.x - kScanThreads<Shape>;
  const int64_t row = blockIdx.y;
  const int first_channel = blockIdx.x * Shape::kChannels;
  const int length = args.lengths == nullptr ? args.l : min(args.l, max(0, args.lengths[row]));
  const int tiles = (length + Shape::kTokens - 1) / Shape::kTokens;

  if (scans) {
    LaneState<Shape> lane_state;
    lane_state.load(args, row, first_channel, thread);
    __syncthreads();
    for (int round = 0; round <= tiles; ++round) {
      __syncthreads();
      if (round < tiles) {
        scanTile<Shape, 0, kAhead>(shared.prepared[round % 2], shared.sums[round % 2], lane_state,
                                   thread);
      }
    }
    lane_state.store(args, row, first_channel, thread);
    return;
  }

  const bool with_softplus = args.delta_softplus != 0;
  TileLoader<Shape, kThreads> loader(args, row, first_channel, thread);
  int next_stage = 0, prepare_stage = 0, finish_stage = 0, copied = 0;
  const auto startCopies = [&] {
    loader.start(shared.raw[next_stage], args, length - copied * Shape::kTokens);
    next_stage = next_stage + 1 == kStages ? 0 : next_stage + 1;
    ++copied;
  };
  const auto prepare = [&](int tile) {
    prepareTile<T, Shape, kThreads>(shared.raw[prepare_stage], shared.prepared[tile % 2],
                                    shared.constants, with_softplus, length - tile * Shape::kTokens,
                                    thread);
    prepare_stage = prepare_stage + 1 == kStages ? 0 : prepare_stage + 1;
  };
  // kStages - 2 tiles are on their way: one more stage holds the tile in the scan, one the tile
  // being finished.
#pragma unroll
  for (int s = 0; s < kStages - 2; ++s) startCopies();
  loadConstants(shared.constants, args, first_channel, thread, kThreads);
  waitCopies<kStages - 3>();
  __syncthreads();
  if (tiles > 0) prepare(0);
  for (int round = 0; round <= tiles; ++round) {
    // The copies of the tile prepared in this round, before the barrier that shows them to all.
    waitCopies<kStages - 4>();
    __syncthreads();
    startCopies();
    if (round + 1 < tiles) prepare(round + 1);
    if (round > 0) {
      finishTile<T, Shape, kThreads>(shared.sums[(round - 1) % 2], shared.raw[finish_stage],
                                     shared.constants, args, row, first_channel,
                                     (round - 1) * Shape::kTokens,
                                     length - (round - 1) * Shape::kTokens, thread);
      finish_stage = finish_stage + 1 == kStages ? 0 : finish_stage + 1;
    }
  }
  waitCopies<0>();
  clearRest<Shape, kThreads>(args, row, first_channel, length, thread);
}

template <typename T, typename Shape>
cudaError_t launch(const ScanArgs& args, cudaStream_t stream) {
  constexpr int kBytes = static_cast<int>(sizeof(PipelineShared<Shape>));
  static_assert(kBytes <= 160 * 1024, "fits an SM of Orin");
  const cudaError_t error = cudaFuncSetAttribute(
      scanPipelineKernel<T, Shape>, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes);
  if (error != cudaSuccess) return error;
  const dim3 grid((args.d + Shape::kChannels - 1) / Shape::kChannels, args.b);
  scanPipelineKernel<T, Shape>
      <<<grid, kScanThreads<Shape> + kElementThreads<Shape>, kBytes, stream>>>(args);
  return cudaGetLastError();
}

//! The smallest block with which every block still has an SM of its own, else the largest.
template <typename T>
cudaError_t launchFor(const ScanArgs& args, int sm_count, cudaStream_t stream) {
  const auto fits = [&](int channels) {
    return static_cast<int64_t>((args.d + channels - 1) / channels) * args.b <= sm_count;
  };
  if (fits(16)) return launch<T, TileShape<4, 2, 1, 32, 0>>(args, stream);
  if (fits(24)) return launch<T, TileShape<6, 2, 1, 32, 0>>(args, stream);
  if (fits(32)) return launch<T, TileShape<8, 2, 1, 16, 0>>(args, stream);
  return launch<T, TileShape<5, 4, 1, 16, 0>>(args, stream);
}

}  // namespace

cudaError_t launchScanPipeline(const ScanArgs& args, bool is_bfloat16, int sm_count,
                               cudaStream_t stream) {
  return is_bfloat16 ? launchFor<__nv_bfloat16>(args, sm_count, stream)
                     : launchFor<__half>(args, sm_count, stream);
}

}  // namespace s6
