// SPDX-License-Identifier: MIT
/*!
 * \file scan_lane.cu
 * \brief The selective scan for n = 16 and 16-bit activations: a lane is a channel.
 *
 * Equation, per channel c and state s, with a = A log2(e):
 *     dt = softplus(delta + bias);  h = 2^(dt a) h + (dt u) B;  y = (sum_s C h + D u) silu(z)
 *
 * For channels enough to fill the multiprocessors. A lane holds all 16 states of its channel: dt,
 * dt u and the sum over states never leave it, and B and C are the same for all lanes, so that a
 * shared-memory load serves 32 channels.
 *
 * Tensors (channels last, strides free, 16-byte aligned rows):
 *     u, delta, z, y [b, l, d] T; B, C [b, l, 16] T; A [16, d] fp32; D, bias [d]; state [b, 16, d]
 *
 * Thread map. Grid: (channels / 128, batch); a block is 4 warps that share nothing, one for each
 * sub-partition of an SM. Lane i owns channel 8 (i % 4) + i / 4 of its warp's 32: that is how
 * ldmatrix, given pairs of tokens as rows, deals them.
 *
 * Shared memory of a warp, and the __syncwarp after which it may be read (1, 2 in the loop):
 *     raw[2]   8 tokens of u, delta and z, then of B and C, 64 bytes a row;
 *              filled by cp.async, read after 1, refilled in the next round after 1
 *     BC       B and C in fp32; written after 1, read after 2
 *
 * Numerics: fp32 throughout; ex2.approx for the decays, a polynomial in softplus, tanh.approx in
 * the gate. Bytes: u, delta, z in and y out once, 8 per token and channel; B and C once per warp,
 * from L2. Limits: n = 16, d a multiple of 32, rows 16-byte aligned.
 */
#include "scan_args.cuh"
#include "scan_math.cuh"
#include "scan_warp.cuh"
#include "shared_memory.cuh"

namespace s6 {
namespace {

constexpr int kState = kTunedScanState;
constexpr int kChannels = 32;
constexpr int kWarps = 4;
constexpr int kTokens = 8;          //!< Of a tile.
constexpr int kStraightTokens = 4;  //!< Scanned in one straight line of code.
//! Five blocks must fit an SM's registers and Orin's 164 KB, so that d = 5120 is one wave of 8 SMs.
constexpr int kBlocksPerSm = 5;

constexpr int kRow = 2 * kChannels;      //!< Bytes of a token in a raw tile.
constexpr int kTensor = kTokens * kRow;  //!< u, delta, z, then B and C.
constexpr int kRaw = 4 * kTensor;
static_assert(kRow == 4 * kState, "a token's B and C are as long as its channels");

struct WarpShared {
  alignas(16) unsigned char raw[2][kRaw];
  alignas(16) float BC[kTokens][2 * kState];
};
static_assert(kWarps * sizeof(WarpShared) <= 160 * 1024 / kBlocksPerSm - 1024,
              "five blocks fit Orin");

//! The recurrence over kStraightTokens tokens; y gets the sums over states.
__device__ __forceinline__ void scanTokens(const float (&dt)[kStraightTokens],
                                           const float (&input)[kStraightTokens],
                                           const float (*BC)[2 * kState], const float (&a)[kState],
                                           float (&h)[kState], float (&y)[kStraightTokens]) {
#pragma unroll
  for (int t = 0; t < kStraightTokens; ++t) {
#pragma unroll
    for (int q = 0; q < kState; q += 4) {
      const float4 b = *reinterpret_cast<const float4*>(&BC[t][q]);
      const float4 c = *reinterpret_cast<const float4*>(&BC[t][kState + q]);
      const float B[4] = {b.x, b.y, b.z, b.w}, C[4] = {c.x, c.y, c.z, c.w};
      // The products first: the four sums then share an operand, which spares register reads.
      float kept[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) kept[i] = h[q + i] * exp2Unit(dt[t] * a[q + i]);
#pragma unroll
      for (int i = 0; i < 4; ++i) h[q + i] = fmaf(input[t], B[i], kept[i]);
#pragma unroll
      for (int i = 0; i < 4; ++i) y[t] = q + i == 0 ? C[0] * h[0] : fmaf(C[i], h[q + i], y[t]);
    }
  }
}

template <typename T>
__global__ void __launch_bounds__(32 * kWarps, kBlocksPerSm) scanLaneKernel(const ScanArgs args) {
  __shared__ WarpShared shared_of_warp[kWarps];
  WarpShared& shared = shared_of_warp[threadIdx.x / 32];
  const uint32_t raw_at = sharedAddress(shared.raw);
  const int lane = threadIdx.x % 32;
  const int64_t row = blockIdx.y;
  const int first = (blockIdx.x * kWarps + threadIdx.x / 32) * kChannels;
  if (first >= args.d) return;
  const int channel = first + 8 * (lane % 4) + lane / 4;
  const int length = args.lengths == nullptr ? args.l : min(args.l, max(0, args.lengths[row]));
  const bool with_softplus = args.delta_softplus != 0, with_gate = args.z != nullptr;

  // Copies. Two lanes copy a row, 16 + 16 bytes each: of u (lower half of the warp) or delta, and
  // of z or B and C.
  const int copy_token = lane / 2 % kTokens;
  const bool upper = lane >= 16;
  const auto at = [&](const void* base, const TensorStrides& stride, int column) {
    return static_cast<const uint16_t*>(base) + row * stride.batch + copy_token * stride.row +
           column + 8 * (lane % 2);
  };
  // Without a gate, u is copied where z would lie, and not read.
  const void* gate = with_gate ? args.z : args.u;
  const TensorStrides gate_stride = with_gate ? args.z_stride : args.u_stride;
  const uint16_t* wide =
      upper ? at(args.delta, args.delta_stride, first) : at(args.u, args.u_stride, first);
  const uint16_t* third = upper ? at(args.B, args.B_stride, 0) : at(gate, gate_stride, first);
  const uint16_t* fourth = upper ? at(args.C, args.C_stride, 0) : third + kChannels / 2;
  // A row stride fits 24 bits (scan_launch.cu).
  const int wide_step =
      kTokens * static_cast<int>(upper ? args.delta_stride.row : args.u_stride.row);
  const int third_step = kTokens * static_cast<int>(upper ? args.B_stride.row : gate_stride.row);
  const int fourth_step = kTokens * static_cast<int>(upper ? args.C_stride.row : gate_stride.row);
  const uint32_t copy_to = raw_at + kRow * (lane / 2) + 16 * (lane % 2);
  const auto startCopies = [&](uint32_t stage, int tokens) {
    if (tokens > 0) {
      const bool valid = copy_token < tokens;
      const uint32_t to = copy_to + stage;
      copyOrZeroAsync(to, wide, valid);
      copyOrZeroAsync(to + kRow / 2, wide + kChannels / 2, valid);
      copyOrZeroAsync(to + 2 * kTensor, third, valid);
      copyOrZeroAsync(to + 2 * kTensor + kRow / 2, fourth, valid);
      wide += wide_step;
      third += third_step;
      fourth += fourth_step;
    }
    commitCopies();
  };
  startCopies(0, length);

  float a[kState], h[kState];
  const auto stateAt = [&](int s) { return (row * kState + s) * args.d + channel; };
#pragma unroll
  for (int s = 0; s < kState; ++s) {
    a[s] = args.A[int64_t{s} * args.d + channel] * kLog2E;
    h[s] = args.state_in != nullptr ? args.state_in[stateAt(s)] : 0.0f;
  }
  const float bias = args.delta_bias != nullptr ? args.delta_bias[channel] : 0.0f;
  const float skip = args.D != nullptr ? args.D[channel] : 0.0f;

  // Matrix m of delta (lanes 0-15) and u: row r is token 2 m + r % 2, channels from 8 (r / 2).
  const uint32_t load_from =
      raw_at + (upper ? 0 : kTensor) + kRow * (2 * (lane / 8 % 2) + lane % 2) + 16 * (lane % 8 / 2);
  // y leaves transposed: a lane stores two channels of one of two tokens.
  const int out_token = lane / 4 % 2, out_channel = first + 8 * (lane / 8) + 2 * (lane % 4);
  uint16_t* y_to = static_cast<uint16_t*>(args.y) + row * args.y_stride.batch +
                   out_token * args.y_stride.row + out_channel;

  uint32_t stage = 0;
  for (int tokens = length; tokens > 0; tokens -= kTokens) {
    waitCopies<0>();
    __syncwarp();  // 1
    startCopies(stage ^ kRaw, tokens - kTokens);
    {
      const unsigned char* narrow = shared.raw[0] + stage + 3 * kTensor + 8 * lane;
      float* to = &shared.BC[0][4 * lane];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const uint2 v = *reinterpret_cast<const uint2*>(narrow + half * kTensor / 2);
        const float2 low = unpackPair<T>(v.x), high = unpackPair<T>(v.y);
        *reinterpret_cast<float4*>(to + half * kTokens * kState) =
            make_float4(low.x, low.y, high.x, high.y);
      }
    }
    __syncwarp();  // 2
    uint32_t from = load_from + stage;
    const float (*BC)[2 * kState] = shared.BC;
#pragma unroll 1
    for (int begin = 0; begin < kTokens; begin += kStraightTokens) {
      uint32_t delta_u[4], gates[2];
      loadTransposed(delta_u, from);
      loadTransposed(gates, from + kTensor);
      from += kRow * kStraightTokens;
      float dt[kStraightTokens], u[kStraightTokens], input[kStraightTokens], y[kStraightTokens];
#pragma unroll
      for (int m = 0; m < 2; ++m) {
        const float2 delta = unpackPair<T>(delta_u[m]), pair = unpackPair<T>(delta_u[2 + m]);
        dt[2 * m] = delta.x + bias, dt[2 * m + 1] = delta.y + bias;
        u[2 * m] = pair.x, u[2 * m + 1] = pair.y;
      }
      if (with_softplus) {
#pragma unroll
        for (int t = 0; t < kStraightTokens; ++t) dt[t] = softplusFast(dt[t]);
      }
      // Tokens past the end must leave the state alone: dt = 0 decays by 2^0 = 1 and adds 0.
      if (tokens < kTokens) {
#pragma unroll
        for (int t = 0; t < kStraightTokens; ++t) {
          if (begin + t >= tokens) dt[t] = 0.0f;
        }
      }
#pragma unroll
      for (int t = 0; t < kStraightTokens; ++t) input[t] = dt[t] * u[t];
      scanTokens(dt, input, BC, a, h, y);
      BC += kStraightTokens;
#pragma unroll
      for (int t = 0; t < kStraightTokens; ++t) y[t] = fmaf(skip, u[t], y[t]);
      if (with_gate) {
#pragma unroll
        for (int m = 0; m < 2; ++m) {
          const float2 z = unpackPair<T>(gates[m]);
          y[2 * m] *= siluByTanh(z.x), y[2 * m + 1] *= siluByTanh(z.y);
        }
      }
#pragma unroll
      for (int m = 0; m < 2; ++m) {
        const uint32_t pair = transposeMatrix(packPair<T>(y[2 * m], y[2 * m + 1]));
        if (out_token + begin + 2 * m < tokens) *reinterpret_cast<uint32_t*>(y_to) = pair;
        y_to += 2 * args.y_stride.row;
      }
    }
    stage ^= kRaw;
  }

  if (args.state_out != nullptr) {
#pragma unroll
    for (int s = 0; s < kState; ++s) args.state_out[stateAt(s)] = h[s];
  }
  // Tokens past a short row's end are written as zero.
  uint16_t* y = static_cast<uint16_t*>(args.y) + row * args.y_stride.batch + channel;
#pragma unroll 1
  for (int64_t t = length; t < args.l; ++t) y[t * args.y_stride.row] = 0;
}

}  // namespace

cudaError_t launchScanLane(const ScanArgs& args, bool is_bfloat16, cudaStream_t stream) {
  constexpr int kBlockChannels = kWarps * kChannels;
  const dim3 grid((args.d + kBlockChannels - 1) / kBlockChannels, args.b);
  if (is_bfloat16) {
    scanLaneKernel<__nv_bfloat16><<<grid, 32 * kWarps, 0, stream>>>(args);
  } else {
    scanLaneKernel<__half><<<grid, 32 * kWarps, 0, stream>>>(args);
  }
  return cudaGetLastError();
}

}  // namespace s6
