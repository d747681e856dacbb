// SPDX-License-Identifier: MIT
/*!
 * \file quant_linear.cu
 * \brief A few rows of activations times a matrix of 16, 8 or 4 bits, bound by the weights' bytes.
 *
 * Equation and tensors: include/s6/quant_linear.h. A warp computes kRows outputs of all tokens; its
 * lanes deal the columns in vectors of eight, so that the loads of a row adjoin and those of kRows
 * rows are independent. x is small and stays in the L1 cache. Sums are made by lane and then by a
 * butterfly, in an order that does not depend on the number of tokens.
 */
#include "s6/quant_linear.h"

#include <cuda_runtime_api.h>

#include "packed_weights.cuh"

namespace s6 {
namespace {

constexpr int kWarp = 32;
constexpr int kWarps = 4;
constexpr int kRows = 4;
constexpr int kEight = 8;  // Columns of a vector.

struct LinearArgs {
  int32_t rows, columns, group_size, tokens;
  bool wide, add;
  const void *weight, *scales, *x;
  void* y;
  int64_t scale_group, x_row, y_row;
};

template <int kBits, int kTokens>
__global__ void __launch_bounds__(kWarp* kWarps) linearKernel(const LinearArgs args) {
  const int lane = threadIdx.x;
  const int first = (blockIdx.x * kWarps + threadIdx.y) * kRows;
  if (first >= args.rows) return;
  const int64_t row_bytes = int64_t{args.columns} * kBits / 8;
  const char* weight = static_cast<const char*>(args.weight);
  const __half* scales = static_cast<const __half*>(args.scales);
  const __half* x = static_cast<const __half*>(args.x);
  // Rows past the end repeat the last one and are not stored.
  int row[kRows];
#pragma unroll
  for (int r = 0; r < kRows; ++r) row[r] = min(first + r, args.rows - 1);

  float sum[kRows][kTokens] = {};
  for (int i = lane; i < args.columns / kEight; i += kWarp) {
    EightHalves w[kRows];
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      __half scale{};
      if constexpr (kBits != 16) {
        scale = scales[(i * kEight / args.group_size) * args.scale_group + row[r]];
      }
      w[r] = loadEight<kBits>(weight + row[r] * row_bytes, i, scale);
    }
#pragma unroll
    for (int t = 0; t < kTokens; ++t) {
      if (t >= args.tokens) break;
      const EightHalves input = reinterpret_cast<const EightHalves*>(x + t * args.x_row)[i];
#pragma unroll
      for (int j = 0; j < kEight / 2; ++j) {
        const float2 two = __half22float2(input.at[j]);
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
          const float2 factor = __half22float2(w[r].at[j]);
          sum[r][t] = fmaf(factor.x, two.x, sum[r][t]);
          sum[r][t] = fmaf(factor.y, two.y, sum[r][t]);
        }
      }
    }
  }
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
#pragma unroll
    for (int t = 0; t < kTokens; ++t) {
#pragma unroll
      for (int step = kWarp / 2; step > 0; step /= 2) {
        sum[r][t] += __shfl_xor_sync(~0u, sum[r][t], step);
      }
    }
  }
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
#pragma unroll
    for (int t = 0; t < kTokens; ++t) {
      if (lane != r * kTokens + t || first + r >= args.rows || t >= args.tokens) continue;
      const int64_t at = t * args.y_row + first + r;
      if (args.wide) {
        float* y = static_cast<float*>(args.y) + at;
        *y = args.add ? *y + sum[r][t] : sum[r][t];
      } else {
        static_cast<__half*>(args.y)[at] = __float2half_rn(sum[r][t]);
      }
    }
  }
}
static_assert(kRows * S6_QUANT_LINEAR_MAX_TOKENS <= kWarp, "a lane stores one result");

template <int kBits>
void launchLinear(const LinearArgs& args, cudaStream_t stream) {
  constexpr int kRowsOfBlock = kWarps * kRows;
  const dim3 grid((args.rows + kRowsOfBlock - 1) / kRowsOfBlock), block(kWarp, kWarps);
  if (args.tokens == 1) {
    linearKernel<kBits, 1><<<grid, block, 0, stream>>>(args);
  } else if (args.tokens <= 4) {
    linearKernel<kBits, 4><<<grid, block, 0, stream>>>(args);
  } else {
    linearKernel<kBits, S6_QUANT_LINEAR_MAX_TOKENS><<<grid, block, 0, stream>>>(args);
  }
}

}  // namespace
}  // namespace s6

extern "C" S6Status s6_quant_linear(const S6QuantLinear* problem, S6Stream stream) {
  const S6Status status = s6_quant_linear_check(problem);
  if (status != S6_STATUS_OK || problem->tokens == 0) return status;
  const S6QuantLinear& p = *problem;
  const s6::LinearArgs args{p.rows,
                            p.columns,
                            p.group_size,
                            p.tokens,
                            p.y_dtype == S6_FLOAT32,
                            p.add != 0,
                            p.weight,
                            p.scales,
                            p.x,
                            p.y,
                            p.scale_group == 0 ? p.rows : p.scale_group,
                            p.x_row == 0 ? p.columns : p.x_row,
                            p.y_row == 0 ? p.rows : p.y_row};
  switch (p.bits) {
    case 16:
      s6::launchLinear<16>(args, stream);
      break;
    case 8:
      s6::launchLinear<8>(args, stream);
      break;
    default:
      s6::launchLinear<4>(args, stream);
  }
  return cudaGetLastError() == cudaSuccess ? S6_STATUS_OK : S6_STATUS_LAUNCH_FAILED;
}
