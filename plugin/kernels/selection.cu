// SPDX-License-Identifier: MIT
/*!
 * \file selection.cu
 * \brief delta, B and C of 32 tokens a block: two products, of which the second takes the first's.
 *
 * Equation and tensors: include/s6/selection.h. Both products are skewed: the first has few rows
 * (r + 2 n, 80 in the smallest published model) and many columns, the second many rows and few
 * columns. So a block keeps the sums of its tokens in registers while W_x passes, then dt while
 * W_dt passes. Every weight goes to one warp only, so it goes there without shared memory: in the
 * first product each warp has an eighth of the columns, and the eight partial sums meet in shared
 * memory, in order; in the second an eighth of the rows.
 *
 * Columns of an `mma` may come in any order that both factors share. Here the places 2 c, 2 c + 1,
 * 2 c + 8 and 2 c + 9 of its 16 are four adjoining columns, so that lane c of four loads what it
 * needs in one piece, as it lies in memory.
 *
 * Bytes: a block reads W_x and W_dt whole, 2 d (2 r + 2 n), from the L2 cache, besides its tokens:
 * that is why two products of cuBLAS are faster for larger models, and on a GPU of many
 * multiprocessors. Registers: next to 80 sums (r = 48) a warp holds two steps of both factors.
 * Limits: any sm_80 or later.
 */
#include <cuda_runtime_api.h>

#include "s6/selection.h"
#include "scan_math.cuh"
#include "tensor_cores.cuh"

namespace s6 {
namespace {

constexpr int kWarp = 32;
constexpr int kWarps = 8;
constexpr int kThreads = kWarps * kWarp;
constexpr int kTokens = 32;  // Of a block.
constexpr int kTall = kTokens / 16;
constexpr int kColumns = 32;   // Of u and W_x that a warp multiplies at once.
constexpr int kChannels = 32;  // Rows of W_dt, likewise.
constexpr int kWide = kChannels / 8;
constexpr int kAhead = 2;  // Pieces of kChannels, loaded together.
constexpr int kState = S6_SELECTION_STATE;
static_assert(S6_SELECTION_CHANNELS % kColumns == 0 && S6_SELECTION_CHANNELS % kChannels == 0);

//! What follows from the rank r = 16 kRankSteps.
template <int kRankSteps>
struct Sizes {
  static constexpr int kRank = 16 * kRankSteps;
  static constexpr int kTiles = (kRank + 2 * kState) / 8;  // Of W_x, 8 rows each.
  static constexpr int kFragments = kTall * kTiles;        // 16 tokens x 8 rows each.
  static constexpr int kDtPitch = kRank + 8;               // Rows of dt start 4 banks apart.
  static constexpr int kPartialBytes = kWarps / 2 * kFragments * kWarp * 16;
  static constexpr int kSharedBytes = kPartialBytes + kTokens * kDtPitch * 2;
};

//! A lane's place in the tiles of an `mma`: a row of both factors, and a quarter of the columns.
struct Lane {
  int row, quarter;
  __device__ Lane() : row(threadIdx.x % kWarp / 4), quarter(threadIdx.x % 4) {}
};

template <typename Vector>
__device__ __forceinline__ Vector loadVector(const __half* at) {
  return __ldg(reinterpret_cast<const Vector*>(at));
}

__device__ __forceinline__ uint2 halfOf(const uint4& four, int half) {
  return half == 0 ? make_uint2(four.x, four.y) : make_uint2(four.z, four.w);
}

//! Sixteen bytes in one store; as an assignment the compiler may make several of it.
__device__ __forceinline__ void storeVector(__half* at, const uint32_t (&words)[4]) {
  asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(at), "r"(words[0]), "r"(words[1]),
               "r"(words[2]), "r"(words[3])
               : "memory");
}

// --- dt, B, C = W_x u ---

//! The first product: a warp's columns of it.
template <int kRankSteps>
class NarrowProduct {
 public:
  using S = Sizes<kRankSteps>;

  __device__ NarrowProduct(const S6Selection& p, int first_token) : d_(p.d) {
    const Lane lane;
#pragma unroll
    for (int i = 0; i < 2 * kTall; ++i) {
      // Rows past the end repeat the last one: their results are not stored.
      const int token = min(first_token + i * 8 + lane.row, p.tokens - 1);
      u_[i] = static_cast<const __half*>(p.u) + int64_t{token} * p.d + lane.quarter * 8;
    }
    w_ = static_cast<const __half*>(p.x_proj) + int64_t{lane.row} * p.d + lane.quarter * 8;
  }

  /*!
   * The next columns are loaded while these are multiplied. All loads count on one scoreboard, on
   * which a warp waits until none is left; so the first product, which waits for its own columns,
   * comes before the next loads, and a condition between keeps the compiler from moving either.
   */
  __device__ __forceinline__ void run(int warp) {
    constexpr int kStride = kWarps * kColumns;
    Factors even, odd;
    int column = warp * kColumns;
    if (column < d_) load(even, column);
    for (; column < d_; column += 2 * kStride) {
      multiply<0, 1>(even);
      if (column + kStride < d_) load(odd, column + kStride);
      multiply<1, 2 * S::kTiles>(even);
      if (column + kStride >= d_) break;
      multiply<0, 1>(odd);
      if (column + 2 * kStride < d_) load(even, column + 2 * kStride);
      multiply<1, 2 * S::kTiles>(odd);
    }
  }

  //! Of fragment i a lane has tokens row and row + 8, two rows of W_x each.
  __device__ float4 fragment(int i) const {
    const float (&f)[4] = sums_[i / S::kTiles][i % S::kTiles];
    return make_float4(f[0], f[1], f[2], f[3]);
  }

 private:
  struct Factors {
    uint4 u[2 * kTall];  // Of tokens row, row + 8, row + 16, row + 24.
    uint4 w[S::kTiles];
  };

  __device__ __forceinline__ void load(Factors& to, int column) const {
#pragma unroll
    for (int i = 0; i < 2 * kTall; ++i) to.u[i] = loadVector<uint4>(u_[i] + column);
#pragma unroll
    for (int tile = 0; tile < S::kTiles; ++tile) {
      to.w[tile] = loadVector<uint4>(w_ + column + tile * 8 * d_);
    }
  }

  //! Some of the products of two steps of 16 columns, each with all rows of W_x.
  template <int kBegin, int kEnd>
  __device__ __forceinline__ void multiply(const Factors& from) {
#pragma unroll
    for (int i = kBegin; i < kEnd; ++i) {
      const int step = i / S::kTiles, tile = i % S::kTiles;
      const uint2 b = halfOf(from.w[tile], step);
      const uint32_t of_tile[2] = {b.x, b.y};
#pragma unroll
      for (int tall = 0; tall < kTall; ++tall) {
        const uint2 low = halfOf(from.u[2 * tall], step), high = halfOf(from.u[2 * tall + 1], step);
        const uint32_t of_tokens[4] = {low.x, high.x, low.y, high.y};
        multiplyAdd(sums_[tall][tile], of_tokens, of_tile);
      }
    }
  }

  const __half *u_[2 * kTall], *w_;
  int d_;
  float sums_[kTall][S::kTiles][4] = {};
};

__device__ __forceinline__ float4 operator+(const float4& a, const float4& b) {
  return make_float4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w);
}

/*!
 * Adds the warps' sums, always in the same order, and hands them on: dt to shared memory, B and C
 * to their places. `partial` has room for half of the warps.
 */
template <int kRankSteps>
__device__ __forceinline__ void meet(const S6Selection& p, int first_token,
                                     const NarrowProduct<kRankSteps>& product, float4* partial,
                                     __half* dt) {
  using S = Sizes<kRankSteps>;
  const int warp = threadIdx.x / kWarp;
  const Lane lane;
  float4* of_lane = partial + threadIdx.x % kWarp;
  float4* mine = of_lane + warp % (kWarps / 2) * S::kFragments * kWarp;
  if (warp >= kWarps / 2) {
#pragma unroll
    for (int i = 0; i < S::kFragments; ++i) mine[i * kWarp] = product.fragment(i);
  }
  __syncthreads();
  if (warp < kWarps / 2) {
#pragma unroll
    for (int i = 0; i < S::kFragments; ++i) mine[i * kWarp] = product.fragment(i) + mine[i * kWarp];
  }
  __syncthreads();
  for (int i = warp; i < S::kFragments; i += kWarps) {
    float4 sum = of_lane[i * kWarp];
#pragma unroll
    for (int part = 1; part < kWarps / 2; ++part) {
      sum = sum + of_lane[(part * S::kFragments + i) * kWarp];
    }
    const int column = i % S::kTiles * 8 + lane.quarter * 2;
    const uint32_t pair[2] = {packPair<__half>(sum.x, sum.y), packPair<__half>(sum.z, sum.w)};
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int token = i / S::kTiles * 16 + half * 8 + lane.row;
      if (column < S::kRank) {
        *reinterpret_cast<uint32_t*>(dt + token * S::kDtPitch + column) = pair[half];
      } else if (first_token + token < p.tokens) {
        void* matrix = column < S::kRank + kState ? p.B : p.C;
        __half* to = static_cast<__half*>(matrix) + int64_t{first_token + token} * kState;
        *reinterpret_cast<uint32_t*>(to + (column - S::kRank) % kState) = pair[half];
      }
    }
  }
  __syncthreads();
}

// --- delta = W_dt dt ---

/*!
 * The second product: a warp's channels of it. A warp's load or store touches eight rows, one clock
 * each, however little of a row is used; so a lane takes 16 bytes of a row of W_dt, two steps,
 * where there are two left, and stores 16 bytes of a row of delta.
 */
template <int kRankSteps>
class WideProduct {
 public:
  using S = Sizes<kRankSteps>;
  static constexpr int kPieceStride = kWarps * kChannels;
  static constexpr int kStride = kAhead * kPieceStride;

  //! Some rows of W_dt, kAhead pieces.
  struct Rows {
    uint2 w[kAhead][kWide][kRankSteps];
  };

  __device__ explicit WideProduct(const S6Selection& p, int first_token)
      : d_(p.d),
        tokens_left_(p.tokens - first_token),
        w_(static_cast<const __half*>(p.dt_proj)),
        delta_(static_cast<__half*>(p.delta) + int64_t{first_token} * p.d + Lane().quarter * 8) {}

  __device__ __forceinline__ void load(Rows& to, int first) const {
    const Lane lane;
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      const int channel = first + i * kPieceStride;
      if (channel >= d_) break;
#pragma unroll
      for (int tile = 0; tile < kWide; ++tile) {
        const __half* row = w_ + (channel + dealtRow<kWide>(tile, lane.row)) * S::kRank;
        uint2(&of_row)[kRankSteps] = to.w[i][tile];
#pragma unroll
        for (int step = 0; step + 1 < kRankSteps; step += 2) {
          const uint4 four = loadVector<uint4>(row + firstColumn(step, lane.quarter));
          of_row[step] = halfOf(four, 0), of_row[step + 1] = halfOf(four, 1);
        }
        if (kRankSteps % 2 == 1) {
          constexpr int kLast = kRankSteps - 1;
          of_row[kLast] = loadVector<uint2>(row + firstColumn(kLast, lane.quarter));
        }
      }
    }
  }

  //! `rows` are those of the first pieces, already on their way.
  __device__ void run(int warp, const __half* dt, Rows& rows) {
    takeDt(dt);
    // In the order of `NarrowProduct::run`, for the same reason.
    Rows following;
    for (int first = warp * kChannels; first < d_; first += 2 * kStride) {
      multiply<0, 1>(rows, first);
      if (first + kStride < d_) load(following, first + kStride);
      multiply<1, kAhead>(rows, first);
      if (first + kStride >= d_) break;
      multiply<0, 1>(following, first + kStride);
      if (first + 2 * kStride < d_) load(rows, first + 2 * kStride);
      multiply<1, kAhead>(following, first + kStride);
    }
  }

 private:
  //! Where a lane's four columns of a step begin: next to those of its neighbour step, if any.
  static __device__ __forceinline__ int firstColumn(int step, int quarter) {
    const bool is_left = step % 2 == 0 && step + 1 == kRankSteps;
    return step / 2 * 32 + (is_left ? quarter * 4 : quarter * 8 + step % 2 * 4);
  }

  __device__ __forceinline__ void takeDt(const __half* dt) {
    const Lane lane;
#pragma unroll
    for (int i = 0; i < 2 * kTall; ++i) {
#pragma unroll
      for (int step = 0; step < kRankSteps; ++step) {
        const __half* at = dt + (i * 8 + lane.row) * S::kDtPitch + firstColumn(step, lane.quarter);
        const uint2 two = *reinterpret_cast<const uint2*>(at);
        dt_[i / 2][step][i % 2] = two.x, dt_[i / 2][step][i % 2 + 2] = two.y;
      }
    }
  }

  //! Some of the pieces.
  template <int kBegin, int kEnd>
  __device__ __forceinline__ void multiply(const Rows& rows, int first) const {
#pragma unroll
    for (int i = kBegin; i < kEnd; ++i) {
      const int channel = first + i * kPieceStride;
      if (channel >= d_) break;
      float sums[kTall][kWide][4] = {};
#pragma unroll
      for (int step = 0; step < kRankSteps; ++step) {
#pragma unroll
        for (int tile = 0; tile < kWide; ++tile) {
          const uint32_t b[2] = {rows.w[i][tile][step].x, rows.w[i][tile][step].y};
#pragma unroll
          for (int tall = 0; tall < kTall; ++tall)
            multiplyAdd(sums[tall][tile], dt_[tall][step], b);
        }
      }
#pragma unroll
      for (int j = 0; j < 2 * kTall; ++j) {
        const int token = j * 8 + Lane().row;
        if (token >= tokens_left_) continue;
        uint32_t pairs[kWide];
#pragma unroll
        for (int tile = 0; tile < kWide; ++tile) {
          const float* two = sums[j / 2][tile] + j % 2 * 2;
          pairs[tile] = packPair<__half>(two[0], two[1]);
        }
        storeVector(delta_ + int64_t{token} * d_ + channel, pairs);
      }
    }
  }

  int d_, tokens_left_;
  const __half* w_;
  __half* delta_;
  uint32_t dt_[kTall][kRankSteps][4];
};

template <int kRankSteps>
__global__ void __launch_bounds__(kThreads) selectionKernel(const S6Selection p) {
  extern __shared__ __align__(128) unsigned char shared_bytes[];
  float4* partial = reinterpret_cast<float4*>(shared_bytes);
  __half* dt = reinterpret_cast<__half*>(shared_bytes + Sizes<kRankSteps>::kPartialBytes);
  const int first_token = blockIdx.x * kTokens, warp = threadIdx.x / kWarp;
  NarrowProduct<kRankSteps> narrow(p, first_token);
  narrow.run(warp);
  // W_dt's first rows are on their way while the sums meet.
  WideProduct<kRankSteps> wide(p, first_token);
  typename WideProduct<kRankSteps>::Rows rows;
  wide.load(rows, warp * kChannels);
  meet(p, first_token, narrow, partial, dt);
  wide.run(warp, dt, rows);
}

template <int kRankSteps>
cudaError_t launchSelection(const S6Selection& p, cudaStream_t stream) {
  constexpr int kSharedBytes = Sizes<kRankSteps>::kSharedBytes;
  static_assert(kSharedBytes <= 48 * 1024, "needs no opting in");
  const int blocks = (p.tokens + kTokens - 1) / kTokens;
  selectionKernel<kRankSteps><<<blocks, kThreads, kSharedBytes, stream>>>(p);
  return cudaGetLastError();
}

cudaError_t launchOfRank(const S6Selection& p, cudaStream_t stream) {
  static_assert(S6_SELECTION_RANK_MULTIPLE == 16 && S6_SELECTION_MAX_RANK == 48);
  switch (p.r / 16) {
    case 1:
      return launchSelection<1>(p, stream);
    case 2:
      return launchSelection<2>(p, stream);
    default:
      return launchSelection<3>(p, stream);
  }
}

}  // namespace
}  // namespace s6

extern "C" S6Status s6_selection(const S6Selection* problem, S6Stream stream) {
  const S6Status status = s6_selection_check(problem);
  if (status != S6_STATUS_OK || problem->tokens == 0) return status;
  return s6::launchOfRank(*problem, stream) == cudaSuccess ? S6_STATUS_OK : S6_STATUS_LAUNCH_FAILED;
}
