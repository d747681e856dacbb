// SPDX-License-Identifier: MIT
/*!
 * \file scan_tile.cuh
 * \brief The n = 16 half-precision scan of a block of channels over a tile of tokens, in phases.
 *
 * Equation, per channel c and state s, with a = A log2(e):
 *     dt = softplus(delta + bias);  h = 2^(dt a) h + (dt u) B;  y = (sum_s C h + D u) silu(z)
 *
 * Phases of a tile, each a function below; the kernels put barriers between them:
 *     TileLoader::start   cp.async of raw u, delta, z, B, C                  -> RawTile
 *     prepareTile         dt and dt u once per channel, B and C to fp32      -> PreparedTile
 *     scanTile            the recurrence, h and a in registers               -> SumTile
 *     finishTile          sum over state groups, skip, gate, store           -> y
 *
 * Thread map of the scan. TileShape<kLaneStates, kLaneChannels, ...>: kGroups = 16 / kLaneStates
 * neighbouring lanes share kLaneChannels channels, each lane holding kLaneStates states of each of
 * them. With as many channels as lanes the lanes trade partial sums among themselves; the slots of
 * a lane are numbered so that slot 0 is the channel it keeps (slot i is channel r ^ i, r being the
 * lane's rank), which leaves one shuffle and one addition and no selection. Other shapes write
 * their partial sums and let finishTile add them.
 *
 * Numerics. fp32 throughout. The elements in kPolynomialMask take 2^x from the FMA pipe instead of
 * the special-function unit; a tile in which some |dt a| leaves the polynomial's range runs
 * without them (uniform branch).
 */
#pragma once

#include "scan_args.cuh"
#include "scan_math.cuh"

namespace s6 {

constexpr int kTileState = 16;

template <int kWarpsValue, int kLaneStatesValue, int kLaneChannelsValue, int kTokensValue,
          int kPolynomialMaskValue>
struct TileShape {
  static constexpr int kWarps = kWarpsValue;  //!< Scanning warps that share a tile.
  static constexpr int kLaneStates = kLaneStatesValue;
  static constexpr int kLaneChannels = kLaneChannelsValue;
  static constexpr int kTokens = kTokensValue;
  //! Bit kLaneStates * slot + state sends that element of a lane to the polynomial.
  static constexpr int kPolynomialMask = kPolynomialMaskValue;
  static constexpr int kGroups = kTileState / kLaneStates;
  static constexpr int kWarpChannels = 32 / kGroups * kLaneChannels;
  static constexpr int kChannels = kWarps * kWarpChannels;
  //! Whether the lanes of a channel add up before they write.
  static constexpr bool kReduceInWarp = kLaneChannels == kGroups;
  static constexpr int kPartials = kReduceInWarp ? 1 : kGroups;
  static_assert(kReduceInWarp || kLaneChannels == 1, "partial sums are written for one channel");
  static_assert(kChannels % 8 == 0, "rows are copied 16 bytes at a time");
};

//! The tile as it lies in global memory, 16-bit values.
template <typename Shape>
struct RawTile {
  alignas(16) uint16_t u[Shape::kTokens][Shape::kChannels];
  alignas(16) uint16_t delta[Shape::kTokens][Shape::kChannels];
  alignas(16) uint16_t z[Shape::kTokens][Shape::kChannels];
  alignas(16) uint16_t B[Shape::kTokens][kTileState];
  alignas(16) uint16_t C[Shape::kTokens][kTileState];
};

//! What the scan reads.
template <typename Shape>
struct PreparedTile {
  alignas(16) float2 dt[Shape::kTokens][Shape::kChannels];  //!< dt, dt u
  //! kLaneStates values of B, then of C, for each group of states.
  alignas(16) float BC[Shape::kTokens][Shape::kGroups][2 * Shape::kLaneStates];
};

template <typename Shape>
struct SumTile {
  //! Rows of partial sums are padded: the lanes of a channel write one row each, in one access.
  static constexpr int kRow = Shape::kChannels + (Shape::kPartials > 1 ? 4 : 0);
  alignas(16) float sum[Shape::kTokens][Shape::kPartials][kRow];
};

//! Constants of the block's channels: in shared memory because registers are scarcer.
template <typename Shape>
struct ChannelConstants {
  alignas(16) float bias[Shape::kChannels];
  alignas(16) float limit[Shape::kChannels];  //!< Largest |dt| within the polynomial's range.
  alignas(16) float skip[Shape::kChannels];
};

template <typename Shape>
__device__ __forceinline__ void loadConstants(ChannelConstants<Shape>& out, const ScanArgs& args,
                                              int first_channel, int thread, int threads) {
  for (int i = thread; i < Shape::kChannels; i += threads) {
    const int channel = first_channel + i;
    const bool exists = channel < args.d;
    out.bias[i] = exists && args.delta_bias != nullptr ? args.delta_bias[channel] : 0.0f;
    out.skip[i] = exists && args.D != nullptr ? args.D[channel] : 0.0f;
    float fastest = 1e-30f;
    for (int s = 0; s < kTileState; ++s) {
      if (exists) fastest = fmaxf(fastest, fabsf(args.A[int64_t{s} * args.d + channel]));
    }
    out.limit[i] = kExp2Range / (kLog2E * fastest);
  }
}

//! Copies raw tiles one after the other; each of kThreads threads owns fixed 16-byte pieces.
template <typename Shape, int kThreads>
class TileLoader {
 public:
  __device__ TileLoader(const ScanArgs& args, int64_t row, int first_channel, int thread) {
    token_ = thread / kPieces;
    column_ = 8 * (thread % kPieces);
    in_channels_ = token_ < Shape::kTokens && first_channel + column_ < args.d;
    const int64_t channel = first_channel + column_;
    u_ = at(args.u, args.u_stride, row, token_) + channel;
    delta_ = at(args.delta, args.delta_stride, row, token_) + channel;
    z_ = at(args.z, args.z_stride, row, token_) + channel;
    // Two pieces of B, then two of C, for each token.
    is_c_ = thread % 4 >= 2;
    narrow_token_ = thread / 4;
    narrow_column_ = 8 * (thread % 2);
    narrow_ = (is_c_ ? at(args.C, args.C_stride, row, narrow_token_)
                     : at(args.B, args.B_stride, row, narrow_token_)) +
              narrow_column_;
  }

  //! Starts the copies of the next tile, of which `tokens` (may be <= 0) exist; one copy group.
  //! Rows past the end become zeros.
  __device__ __forceinline__ void start(RawTile<Shape>& tile, const ScanArgs& args, int tokens) {
    if (tokens > 0) {
      if (token_ < Shape::kTokens) {
        const bool valid = in_channels_ && token_ < tokens;
        copyAsync16(&tile.u[token_][column_], u_, valid);
        copyAsync16(&tile.delta[token_][column_], delta_, valid);
        if (args.z != nullptr) copyAsync16(&tile.z[token_][column_], z_, valid);
      }
      if (narrow_token_ < Shape::kTokens) {
        copyAsync16(
            is_c_ ? &tile.C[narrow_token_][narrow_column_] : &tile.B[narrow_token_][narrow_column_],
            narrow_, narrow_token_ < tokens);
      }
      u_ += Shape::kTokens * args.u_stride.row;
      delta_ += Shape::kTokens * args.delta_stride.row;
      z_ += Shape::kTokens * args.z_stride.row;
      narrow_ += Shape::kTokens * (is_c_ ? args.C_stride.row : args.B_stride.row);
    }
    commitCopies();
  }

 private:
  static constexpr int kPieces = Shape::kChannels / 8;  //!< 16-byte pieces of a row.
  static_assert(kPieces * Shape::kTokens <= kThreads, "one piece of each tensor a thread");
  static_assert(4 * Shape::kTokens <= kThreads, "one piece of B or C a thread");

  static __device__ const uint16_t* at(const void* base, const TensorStrides& stride, int64_t row,
                                       int token) {
    return static_cast<const uint16_t*>(base) + row * stride.batch + token * stride.row;
  }

  const uint16_t *u_, *delta_, *z_, *narrow_;
  int token_, column_, narrow_token_, narrow_column_;
  bool in_channels_, is_c_;
};

//! kFloats consecutive floats in as few shared-memory accesses as alignment allows.
template <int kFloats>
__device__ __forceinline__ void loadFloats(float (&out)[kFloats], const float* from) {
  static_assert(kFloats == 1 || kFloats == 2 || kFloats % 4 == 0, "whole accesses");
  if constexpr (kFloats % 4 == 0) {
#pragma unroll
    for (int i = 0; i < kFloats; i += 4) {
      const float4 v = *reinterpret_cast<const float4*>(from + i);
      out[i] = v.x, out[i + 1] = v.y, out[i + 2] = v.z, out[i + 3] = v.w;
    }
  } else if constexpr (kFloats == 2) {
    const float2 v = *reinterpret_cast<const float2*>(from);
    out[0] = v.x, out[1] = v.y;
  } else {
    out[0] = *from;
  }
}

//! The registers of a scanning lane, and where they belong in A and the state.
template <typename Shape>
struct LaneState {
  float a[Shape::kLaneChannels][Shape::kLaneStates];
  float h[Shape::kLaneChannels][Shape::kLaneStates];

  //! Channel of a slot, counted from the block's first.
  static __device__ __forceinline__ int column(int thread, int slot) {
    const int warp = thread / 32, lane = thread % 32;
    const int team = lane / Shape::kGroups, member = lane % Shape::kGroups;
    const int rank = Shape::kReduceInWarp ? member : 0;
    return warp * Shape::kWarpChannels + team * Shape::kLaneChannels + (rank ^ slot);
  }
  static __device__ __forceinline__ int firstState(int thread) {
    return thread % Shape::kGroups * Shape::kLaneStates;
  }

  __device__ __forceinline__ void load(const ScanArgs& args, int64_t row, int first_channel,
                                       int thread) {
#pragma unroll
    for (int slot = 0; slot < Shape::kLaneChannels; ++slot) {
      const int channel = first_channel + column(thread, slot);
#pragma unroll
      for (int s = 0; s < Shape::kLaneStates; ++s) {
        const bool exists = channel < args.d;
        const int64_t at = int64_t{firstState(thread) + s} * args.d + channel;
        a[slot][s] = exists ? args.A[at] * kLog2E : 0.0f;
        h[slot][s] = exists && args.state_in != nullptr
                         ? args.state_in[row * kTileState * args.d + at]
                         : 0.0f;
      }
    }
  }

  __device__ __forceinline__ void store(const ScanArgs& args, int64_t row, int first_channel,
                                        int thread) const {
    if (args.state_out == nullptr) return;
#pragma unroll
    for (int slot = 0; slot < Shape::kLaneChannels; ++slot) {
      const int channel = first_channel + column(thread, slot);
      if (channel >= args.d) continue;
#pragma unroll
      for (int s = 0; s < Shape::kLaneStates; ++s) {
        args.state_out[(row * kTileState + firstState(thread) + s) * args.d + channel] = h[slot][s];
      }
    }
  }
};

//! What a lane reads from shared memory for one token.
template <typename Shape>
struct TokenOperands {
  float bc[2 * Shape::kLaneStates];
  float2 dt[Shape::kLaneChannels];

  __device__ __forceinline__ void load(const PreparedTile<Shape>& in, int token, int thread) {
    loadFloats(bc, in.BC[token][thread % Shape::kGroups]);
#pragma unroll
    for (int slot = 0; slot < Shape::kLaneChannels; ++slot) {
      dt[slot] = in.dt[token][LaneState<Shape>::column(thread, slot)];
    }
  }
};

/*!
 * The recurrence over one tile; `thread` counts the scanning warps. Operands are read
 * kAhead tokens before their use: a lone warp has nothing else to do while shared memory answers.
 */
template <typename Shape, int kPolynomialMask, int kAhead>
__device__ __forceinline__ void scanTile(const PreparedTile<Shape>& in, SumTile<Shape>& out,
                                         LaneState<Shape>& lane_state, int thread) {
  constexpr int kStates = Shape::kLaneStates;
  // Held until the tile ends: a store between two tokens would keep the loads of the next behind
  // the arithmetic of the last.
  float sums[Shape::kTokens];
  TokenOperands<Shape> ahead[kAhead + 1];
#pragma unroll
  for (int t = 0; t < kAhead; ++t) ahead[t].load(in, t, thread);
#pragma unroll
  for (int t = 0; t < Shape::kTokens; ++t) {
    if (t + kAhead < Shape::kTokens) {
      ahead[(t + kAhead) % (kAhead + 1)].load(in, t + kAhead, thread);
    }
    const TokenOperands<Shape>& operands = ahead[t % (kAhead + 1)];
    const float (&bc)[2 * kStates] = operands.bc;
    float sum[Shape::kLaneChannels];
#pragma unroll
    for (int slot = 0; slot < Shape::kLaneChannels; ++slot) {
      const float2 dt = operands.dt[slot];
      float (&a)[kStates] = lane_state.a[slot];
      float (&h)[kStates] = lane_state.h[slot];
#pragma unroll
      for (int s = 0; s < kStates; ++s) {
        const bool polynomial = ((kPolynomialMask >> (kStates * slot + s)) & 1) != 0;
        const float keep = polynomial ? exp2Polynomial(dt.x, a[s]) : exp2Unit(dt.x * a[s]);
        h[s] = fmaf(keep, h[s], dt.y * bc[s]);
        sum[slot] = s == 0 ? bc[kStates] * h[0] : fmaf(bc[kStates + s], h[s], sum[slot]);
      }
    }
    if constexpr (Shape::kReduceInWarp) {
      int count = Shape::kLaneChannels;
#pragma unroll
      for (int lanes = Shape::kGroups / 2; lanes > 0; lanes /= 2) {
        count /= 2;
#pragma unroll
        for (int i = 0; i < count; ++i) {
          sum[i] += __shfl_xor_sync(0xffffffffu, sum[i + count], lanes);
        }
      }
    }
    sums[t] = sum[0];
  }
  // A lone warp's sums may lie where its operands were.
  if constexpr (Shape::kWarps == 1) __syncwarp();
#pragma unroll
  for (int t = 0; t < Shape::kTokens; ++t) {
    out.sum[t][Shape::kReduceInWarp ? 0 : thread % Shape::kGroups]
           [LaneState<Shape>::column(thread, 0)] = sums[t];
  }
}

}  // namespace s6
