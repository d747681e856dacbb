// SPDX-License-Identifier: MIT
/*!
 * \file scan_relay.cu
 * \brief The selective scan for few channels on many multiprocessors: warps take turns in time.
 *
 * Equation, per channel c and state s, with a = A log2(e):
 *     dt = softplus(delta + bias);  h = 2^(dt a) h + (dt u) B;  y = (sum_s C h + D u) silu(z)
 *
 * A block owns a few channels, and its warps take tiles of tokens in turn, so that every
 * sub-partition has work although the block's recurrences would fill only one or two warps. What
 * a tile does to the state is h -> P h + g, with P = 2^(a sum dt) and g its end from h = 0. A warp
 * computes decays, P and g of its tile, waits for the state at the tile's first token, hands
 * P h + g to the next warp at once, and then runs the recurrence for its outputs: that one FMA,
 * two accesses to shared memory and a barrier are all that is sequential.
 *
 * Tensors (channels last, strides free, 16-byte aligned rows):
 *     u, delta, z, y [b, l, d] T; B, C [b, l, 16] T; A [16, d] fp32; D, bias [d]; state [b, 16, d]
 *
 * Thread map. Grid: (channels / (8 kSlots), batch). A slot is 8 neighbouring channels; a lane
 *     in the recurrence holds, of each slot, channel lane % 8 and the states from 4 (lane / 8);
 *     elsewhere holds, of each slot, channel lane / 4 and the tokens 2 (lane % 4) and the next,
 *     which is how ldmatrix deals a tile of 8 tokens.
 * The recurrence has lanes of a quarter-warp share their B and C: 16-byte loads from shared
 * memory take 2 clocks then, and 4 otherwise, and they are what the kernel has least to spare of.
 *
 * Shared memory of a warp, and the __syncwarp after which it may be read (1-4 in the loop):
 *     raw[2]   filled by cp.async, read after 1 (into registers), refilled in the next round
 *     BC       B and C in fp32; written after 1, read after 2
 *     steps    dt and dt u of the tile; written after 1, read after 2
 *     sums     sums over a lane's states; written, 3, read, 4 (before the next slot's)
 * Between warps: handed[warp][2], the state that this warp takes; a lane reads what the same lane
 * of the warp before has written, ordered by that warp's HandOver. They use the two in turn, so
 * that the HandOver between them also orders this writing after the reading two turns ago.
 *
 * Numerics: fp32 throughout; ex2.approx for the decays, a polynomial in softplus, tanh.approx in
 * the gate. Bytes: u, delta, z in and y out once; B and C once per block, from L2.
 * Limits: n = 16, d a multiple of 8 and at least 8 kSlots, rows 16-byte aligned.
 */
#include <type_traits>

#include "scan_args.cuh"
#include "scan_hand_over.cuh"
#include "scan_math.cuh"
#include "scan_warp.cuh"
#include "shared_memory.cuh"

namespace s6 {
namespace {

constexpr int kState = kTunedScanState;
constexpr int kTokens = 8;
constexpr int kSlotChannels = 8;
constexpr int kLaneStates = 4;
constexpr int kParts = kState / kLaneStates;  //!< Lanes of a channel in the recurrence.

//! Where things lie in shared memory, in bytes. The strides of BC, steps and sums keep the accesses
//! of a quarter-warp in different banks.
template <int kSlots, int kWarps>
struct Layout {
  static constexpr int kWide = 3 * kTokens * 16;  //!< delta, u and z of a slot, 16 bytes a token.
  static constexpr int kNarrow = kSlots * kWide;  //!< Where B and C of a raw tile begin.
  static constexpr int kRaw = kNarrow + kTokens * 4 * kState;
  static constexpr int kC = 32, kOddParts = 544, kToken = 64;
  static constexpr int kBC = 1088;
  static constexpr int kStepsRow = 80;  //!< 8 dt, 8 dt u, 4 unused.
  static constexpr int kSteps = kSlotChannels * kStepsRow;
  static constexpr int kSumsRow = 160, kSumsPart = 32;
  static constexpr int kSums = kSlotChannels * kSumsRow;
  static constexpr int kRest = kBC + kSlots * kSteps + kSums;
  static constexpr int kHandedSlot = 32 * 4 * kLaneStates;
  //! A power of two, for its bit to flip.
  static constexpr int kHanded = (kSlots > 2 ? 4 : kSlots) * kHandedSlot;
  static_assert(kSlots <= 4);
  static constexpr int kHandedAt =
      (kWarps * (2 * kRaw + kRest) + 2 * kHanded - 1) / (2 * kHanded) * (2 * kHanded);
  static constexpr int kBytes = kHandedAt + kWarps * 2 * kHanded;
  static_assert(kBytes <= 160 * 1024, "fits an SM of Orin");
};

//! The state of four recurrences after a token. The products first: the four sums then share an
//! operand, which spares register reads.
__device__ __forceinline__ float4 advanced(const float4& h, const float (&keep)[kLaneStates],
                                           float input, const float4& B) {
  const float4 kept = make_float4(keep[0] * h.x, keep[1] * h.y, keep[2] * h.z, keep[3] * h.w);
  return make_float4(fmaf(input, B.x, kept.x), fmaf(input, B.y, kept.y), fmaf(input, B.z, kept.z),
                     fmaf(input, B.w, kept.w));
}

template <typename T, int kSlots, int kWarps>
__global__ void __launch_bounds__(32 * kWarps, 1) scanRelayKernel(const ScanArgs args) {
  using L = Layout<kSlots, kWarps>;
  constexpr int kChannels = kSlots * kSlotChannels;
  extern __shared__ __align__(16) unsigned char shared[];
  HandOver::start();
  const uint32_t shared_at = sharedAddress(shared);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int64_t row = blockIdx.y;
  const int length = args.lengths == nullptr ? args.l : min(args.l, max(0, args.lengths[row]));
  // The last block moves back to whole slots and leaves what it shares with the one before alone.
  const int owned = blockIdx.x * kChannels;
  const int first = min(owned, args.d - kChannels);
  const int first_slot = (owned - first) / kSlotChannels;
  const bool with_softplus = args.delta_softplus != 0, with_gate = args.z != nullptr;
  const int channel = lane % 8, part = lane / 8;
  const int element_channel = lane / 4, element_token = 2 * (lane % 4);

  uint32_t raw = warp * 2 * L::kRaw + 16 * lane;
  const uint32_t rest = kWarps * 2 * L::kRaw + warp * L::kRest;
  uint32_t bc_to = rest + 16 * lane;
  uint32_t bc_from = rest + part / 2 * 16 + part % 2 * L::kOddParts;
  uint32_t steps_to = rest + L::kBC + element_channel * L::kStepsRow + 4 * element_token;
  uint32_t steps_from = rest + L::kBC + channel * L::kStepsRow;
  const uint32_t sums = rest + L::kBC + kSlots * L::kSteps;
  // Tokens 0-3 and 4-7 change places in the upper four channels.
  uint32_t sums_to = sums + channel * L::kSumsRow + part * L::kSumsPart + channel / 4 * 16;
  uint32_t sums_from = sums + element_channel * L::kSumsRow +
                       ((element_token / 4) ^ (element_channel / 4)) * 16 + element_token % 4 * 4;
  const int next_warp = warp + 1 == kWarps ? 0 : warp + 1;
  uint32_t give_to = L::kHandedAt + next_warp * 2 * L::kHanded + 16 * lane;
  // The first warp takes once more than is given to it: the initial state, from the other half.
  uint32_t take_from =
      L::kHandedAt + warp * 2 * L::kHanded + 16 * lane + (warp == 0 ? L::kHanded : 0);
  keepInRegister(raw), keepInRegister(bc_to), keepInRegister(bc_from), keepInRegister(steps_to);
  keepInRegister(steps_from), keepInRegister(sums_to), keepInRegister(sums_from);
  const auto at4 = [&](uint32_t offset) -> float4& {
    return *reinterpret_cast<float4*>(shared + offset);
  };
  const auto at2 = [&](uint32_t offset) -> float2& {
    return *reinterpret_cast<float2*>(shared + offset);
  };
  const auto loadRow = [&](float (&out)[kTokens], uint32_t from) {
#pragma unroll
    for (int q = 0; q < kTokens; q += 4) {
      const float4 v = at4(from + 4 * q);
      out[q] = v.x, out[q + 1] = v.y, out[q + 2] = v.z, out[q + 3] = v.w;
    }
  };

  // Copies. Lanes 0-7 rows of delta, 8-15 of u, 16-23 of z; B and C: token lane / 4, piece lane
  // % 4.
  const int tensor = lane / 8;
  const TensorStrides wide_stride = tensor == 0   ? args.delta_stride
                                    : tensor == 1 ? args.u_stride
                                                  : args.z_stride;
  const void* wide_base = tensor == 0 ? args.delta : tensor == 1 ? args.u : args.z;
  const bool copies_wide = tensor < 3 && wide_base != nullptr;
  const uint16_t* wide_from = static_cast<const uint16_t*>(wide_base) + row * wide_stride.batch +
                              (warp * kTokens + lane % 8) * wide_stride.row + first;
  const bool is_c = lane % 4 >= 2;
  const TensorStrides narrow_stride = is_c ? args.C_stride : args.B_stride;
  const uint16_t* narrow_from = static_cast<const uint16_t*>(is_c ? args.C : args.B) +
                                row * narrow_stride.batch +
                                (warp * kTokens + lane / 4) * narrow_stride.row + 8 * (lane % 2);
  // A row stride fits 24 bits (scan_launch.cu).
  const int wide_step = static_cast<int>(wide_stride.row) * kTokens * kWarps;
  const int narrow_step = static_cast<int>(narrow_stride.row) * kTokens * kWarps;
  const auto startCopies = [&](int tokens) {
    if (tokens > 0) {
      if (copies_wide) {
#pragma unroll
        for (int i = 0; i < kSlots; ++i) {
          copyOrZeroAsync(shared_at + raw + L::kWide * i, wide_from + kSlotChannels * i,
                          lane % 8 < tokens);
        }
      }
      copyOrZeroAsync(shared_at + raw + L::kNarrow, narrow_from, lane / 4 < tokens);
      wide_from += wide_step;
      narrow_from += narrow_step;
    }
    commitCopies();
  };
  startCopies(length - warp * kTokens);

  float a[kSlots][kLaneStates], bias[kSlots], skip[kSlots];
  const auto stateAt = [&](int slot, int s) {
    return (row * kState + part * kLaneStates + s) * args.d + first + kSlotChannels * slot +
           channel;
  };
  const auto storeState = [&](int slot, const float4& state) {
    if (args.state_out == nullptr || slot < first_slot) return;
    args.state_out[stateAt(slot, 0)] = state.x, args.state_out[stateAt(slot, 1)] = state.y;
    args.state_out[stateAt(slot, 2)] = state.z, args.state_out[stateAt(slot, 3)] = state.w;
  };
#pragma unroll
  for (int i = 0; i < kSlots; ++i) {
    const int mine = first + kSlotChannels * i + channel;
    const int element = first + kSlotChannels * i + element_channel;
    float state[kLaneStates];
#pragma unroll
    for (int s = 0; s < kLaneStates; ++s) {
      a[i][s] = args.A[int64_t{part * kLaneStates + s} * args.d + mine] * kLog2E;
      state[s] = warp == 0 && args.state_in != nullptr ? args.state_in[stateAt(i, s)] : 0.0f;
    }
    if (warp == 0) {
      at4(take_from + L::kHandedSlot * i) = make_float4(state[0], state[1], state[2], state[3]);
    }
    bias[i] = args.delta_bias != nullptr ? args.delta_bias[element] : 0.0f;
    skip[i] = args.D != nullptr ? args.D[element] : 0.0f;
  }

  const int out_token = lane / 4;
  uint16_t* y_to = static_cast<uint16_t*>(args.y) + row * args.y_stride.batch +
                   (warp * kTokens + out_token) * args.y_stride.row + first + 2 * (lane % 4);
  const int y_step = static_cast<int>(args.y_stride.row) * kTokens * kWarps;
  static_assert(kWarps <= HandOver::kCount, "one for each warp that takes");
  HandOver from_last(warp), to_next(next_warp);
  const int one = opaqueOne();

  // The first tile takes the state that this warp has put down above.
  bool takes = warp > 0;
#pragma unroll 1
  for (int tokens = length - warp * kTokens; tokens > 0; tokens -= kWarps * kTokens) {
    waitCopies<0>();
    __syncwarp();                  // 1
    uint32_t matrices[kSlots][4];  // delta, u, z; the fourth is not used.
#pragma unroll
    for (int i = 0; i < kSlots; ++i) {
      loadTransposed(matrices[i], shared_at + raw + L::kWide * i);
    }
    {
      const uint4 v = *reinterpret_cast<const uint4*>(shared + raw + L::kNarrow);
      const float2 v0 = unpackPair<T>(v.x), v1 = unpackPair<T>(v.y);
      const float2 v2 = unpackPair<T>(v.z), v3 = unpackPair<T>(v.w);
      at4(bc_to) = make_float4(v0.x, v0.y, v1.x, v1.y);
      at4(bc_to + L::kOddParts) = make_float4(v2.x, v2.y, v3.x, v3.y);
    }
    raw = raw < warp * 2 * L::kRaw + L::kRaw ? raw + L::kRaw : raw - L::kRaw;
    startCopies(tokens - kWarps * kTokens);
#pragma unroll
    for (int i = 0; i < kSlots; ++i) {
      const float2 u = unpackPair<T>(matrices[i][1]);
      float2 dt = unpackPair<T>(matrices[i][0]);
      dt.x += bias[i], dt.y += bias[i];
      if (with_softplus) dt.x = softplusFast(dt.x), dt.y = softplusFast(dt.y);
      // Tokens past the end must leave the state alone: dt = 0 decays by 2^0 = 1 and adds 0.
      if (tokens < kTokens) {
        if (element_token >= tokens) dt.x = 0.0f;
        if (element_token + 1 >= tokens) dt.y = 0.0f;
      }
      at2(steps_to + L::kSteps * i) = dt;
      at2(steps_to + L::kSteps * i + 4 * kTokens) = make_float2(dt.x * u.x, dt.y * u.y);
    }
    __syncwarp();  // 2

    float h[kSlots][kTokens][kLaneStates];  // First the decays, then the states.
    float4 P[kSlots], g[kSlots];
#pragma unroll
    for (int i = 0; i < kSlots; ++i) {
      float dt[kTokens], sum_dt = 0.0f;
      loadRow(dt, steps_from + L::kSteps * i);
#pragma unroll
      for (int t = 0; t < kTokens; ++t) {
        sum_dt += dt[t];
#pragma unroll
        for (int s = 0; s < kLaneStates; ++s) h[i][t][s] = exp2Unit(dt[t] * a[i][s]);
      }
      P[i] = make_float4(exp2Unit(sum_dt * a[i][0]), exp2Unit(sum_dt * a[i][1]),
                         exp2Unit(sum_dt * a[i][2]), exp2Unit(sum_dt * a[i][3]));
      g[i] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    }
    const auto runRecurrence = [&](float4(&state)[kSlots], auto keepStates) {
      float input[kSlots][kTokens];
#pragma unroll
      for (int i = 0; i < kSlots; ++i) {
        loadRow(input[i], steps_from + L::kSteps * i + 4 * kTokens);
      }
#pragma unroll
      for (int t = 0; t < kTokens; ++t) {
        const float4 B = at4(bc_from + L::kToken * t);
#pragma unroll
        for (int i = 0; i < kSlots; ++i) {
          state[i] = advanced(state[i], h[i][t], input[i][t], B);
          if constexpr (decltype(keepStates)::value) {
            h[i][t][0] = state[i].x, h[i][t][1] = state[i].y;
            h[i][t][2] = state[i].z, h[i][t][3] = state[i].w;
          }
        }
      }
    };
    runRecurrence(g, std::false_type{});

    float4 state[kSlots];
#pragma unroll 1
    for (int round = 0; round < one; ++round) {  // Nothing of the above moves behind the wait.
      if (takes) from_last.take();
#pragma unroll
      for (int i = 0; i < kSlots; ++i) state[i] = at4(take_from + L::kHandedSlot * i);
#pragma unroll
      for (int i = 0; i < kSlots; ++i) {
        g[i] = make_float4(fmaf(P[i].x, state[i].x, g[i].x), fmaf(P[i].y, state[i].y, g[i].y),
                           fmaf(P[i].z, state[i].z, g[i].z), fmaf(P[i].w, state[i].w, g[i].w));
        at4(give_to + L::kHandedSlot * i) = g[i];
      }
      if (tokens > kTokens) to_next.give();
    }
    if (tokens <= kTokens) {
#pragma unroll
      for (int i = 0; i < kSlots; ++i) storeState(i, g[i]);
    }
    take_from ^= L::kHanded;
    give_to ^= L::kHanded;
    takes = true;

    runRecurrence(state, std::true_type{});

    float sum[kSlots][kTokens];
#pragma unroll
    for (int t = 0; t < kTokens; ++t) {
      const float4 v = at4(bc_from + L::kToken * t + L::kC);
      const float C[kLaneStates] = {v.x, v.y, v.z, v.w};
#pragma unroll
      for (int s = 0; s < kLaneStates; ++s) {
#pragma unroll
        for (int i = 0; i < kSlots; ++i) {
          sum[i][t] = s == 0 ? C[0] * h[i][t][0] : fmaf(C[s], h[i][t][s], sum[i][t]);
        }
      }
    }
#pragma unroll
    for (int i = 0; i < kSlots; ++i) {
      if (i > 0) __syncwarp();  // 4
      at4(sums_to) = make_float4(sum[i][0], sum[i][1], sum[i][2], sum[i][3]);
      at4(sums_to ^ 16) = make_float4(sum[i][4], sum[i][5], sum[i][6], sum[i][7]);
      __syncwarp();  // 3
      float2 y = at2(sums_from);
#pragma unroll
      for (int p = 1; p < kParts; ++p) {
        const float2 v = at2(sums_from + L::kSumsPart * p);
        y.x += v.x, y.y += v.y;
      }
      const float2 u = unpackPair<T>(matrices[i][1]);
      y.x = fmaf(skip[i], u.x, y.x), y.y = fmaf(skip[i], u.y, y.y);
      if (with_gate) {
        const float2 z = unpackPair<T>(matrices[i][2]);
        y.x *= siluByTanh(z.x), y.y *= siluByTanh(z.y);
      }
      const uint32_t pair = transposeMatrix(packPair<T>(y.x, y.y));
      if (out_token < tokens && i >= first_slot) {
        *reinterpret_cast<uint32_t*>(y_to + kSlotChannels * i) = pair;
      }
    }
    y_to += y_step;
  }

  if (length == 0 && warp == 0) {
#pragma unroll
    for (int i = 0; i < kSlots; ++i) storeState(i, at4(take_from + L::kHandedSlot * i));
  }
  // Tokens past a short row's end are written as zero.
  uint16_t* y = static_cast<uint16_t*>(args.y) + row * args.y_stride.batch + first;
#pragma unroll 1
  for (int64_t t = length + warp; t < args.l; t += kWarps) {
    for (int pair = lane; pair < kChannels / 2; pair += 32) {
      *reinterpret_cast<uint32_t*>(y + t * args.y_stride.row + 2 * pair) = 0u;
    }
  }
}

template <typename T, int kSlots, int kWarps>
cudaError_t launch(const ScanArgs& args, cudaStream_t stream) {
  constexpr int kChannels = kSlots * kSlotChannels;
  constexpr int kBytes = Layout<kSlots, kWarps>::kBytes;
  const cudaError_t error = cudaFuncSetAttribute(
      scanRelayKernel<T, kSlots, kWarps>, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes);
  if (error != cudaSuccess) return error;
  const dim3 grid((args.d + kChannels - 1) / kChannels, args.b);
  scanRelayKernel<T, kSlots, kWarps><<<grid, 32 * kWarps, kBytes, stream>>>(args);
  return cudaGetLastError();
}

template <typename T>
cudaError_t launchFor(const ScanArgs& args, int sm_count, cudaStream_t stream) {
  // Measured (docs/lab_note_scan.md): the widest blocks with which each has an SM of its own; where
  // there are more channels than that, two slots.
  const int64_t slots = int64_t{args.d / kSlotChannels} * args.b;
  if (slots <= sm_count || args.d < 2 * kSlotChannels) return launch<T, 1, 16>(args, stream);
  if (slots <= 2 * sm_count || slots > 3 * sm_count || args.d < 3 * kSlotChannels) {
    return launch<T, 2, 12>(args, stream);
  }
  return launch<T, 3, 8>(args, stream);
}

}  // namespace

cudaError_t launchScanRelay(const ScanArgs& args, bool is_bfloat16, int sm_count,
                            cudaStream_t stream) {
  return is_bfloat16 ? launchFor<__nv_bfloat16>(args, sm_count, stream)
                     : launchFor<__half>(args, sm_count, stream);
}

}  // namespace s6
