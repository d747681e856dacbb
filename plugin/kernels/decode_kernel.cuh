// SPDX-License-Identifier: MIT
/*!
 * \file decode_kernel.cuh
 * \brief One token through the whole model in one persistent launch; equation in s6/decode.h.
 *
 * Grid: one block an SM, all resident (cooperative launch), of 8 warps that compute and 4 or 8 that
 * fetch for them. Blocks own work for good (decode_args.cuh), get their weights from a stream that
 * runs ahead (decode_stream.cuh), multiply on the tensor cores (decode_product.cuh) and hand each
 * other values without barriers (decode_exchange.cuh). Three exchanges a block of the model:
 *
 *     channels    residual -> norm -> in_proj -> convolution -> u, gate; part of x_proj(u)   | sums
 *                 (gates after that where they are apart)
 *     scan        sums -> dt_proj -> recurrence -> gated output                              | y
 *     outputs     y -> out_proj + residual                                                   | x
 *
 * Numerics: as the header of s6/decode.h says; exp by ex2.approx, as in mamba-ssm.
 */
#pragma once

#include "decode_activations.cuh"
#include "decode_batches.cuh"
#include "decode_channels.cuh"
#include "decode_columns.cuh"
#include "decode_head.cuh"
#include "decode_outputs.cuh"
#include "decode_scan.cuh"

namespace s6 {

template <int kBits, int kRows>
__global__ void __launch_bounds__(2 * kDecodeThreads, 1)
    decodeKernel(const __grid_constant__ DecodeArgs args) {
  extern __shared__ __align__(128) uint8_t shared[];
  const BlockShare share(args, static_cast<int>(blockIdx.x));
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  if (threadIdx.x < kDecodeWarps) {
    Ring<kBits>(args, shared, threadIdx.x, 0).start(32 * args.fetchers / kDecodeWarps);
  }
  __syncthreads();
  if (warp >= kDecodeWarps) {
    const int fetcher = warp - kDecodeWarps;
    constexpr int kMostRings = sharesFetchers(kBits, kRows, false) ? 2 : 1;
    if (mayLimitCopies(kBits) && args.limits_copies) {
      WeightFetcher<kBits, kRows, mayLimitCopies(kBits), 1>(args, share, shared, fetcher, lane)
          .run();
    } else if (kMostRings == 1 || args.fetchers == kDecodeWarps) {
      WeightFetcher<kBits, kRows, false, 1>(args, share, shared, fetcher, lane).run();
    } else {
      WeightFetcher<kBits, kRows, false, kMostRings>(args, share, shared, fetcher, lane).run();
    }
  } else {
    const WeightQueue<kBits> queue(args, shared, warp, lane);
    DecodeBlock<kBits, kRows>(args, queue).run();
  }
}

}  // namespace s6
