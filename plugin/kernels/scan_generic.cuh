// SPDX-License-Identifier: MIT
/*!
 * \file scan_generic.cuh
 * \brief The selective scan for any n up to S6_SCAN_MAX_STATE, any d and any stride.
 *
 * Equation: include/s6/selective_scan.h. Tensors: u, delta, z, y [b, l, d] T; B, C [b, l, n] T;
 * A [n, d], D, bias [d], state [b, n, d] fp32.
 *
 * Thread map. A block owns 16 channels of one batch row and walks its tokens in tiles of 16. In the
 * scan, lane = 8 c + s of a warp owns channel 4 warp + c and the states s, s + 8, s + 16, ...
 * (kStatesPerLane of them, in registers); the sum over states ends in three shuffles.
 *
 * Shared memory, in order of life within a tile; a __syncthreads separates each line:
 *     dt, dt_u, B, C   written by all threads (elementwise phase), read by the scan
 *     sum              written by the scan, read by the last phase (skip, gate, store)
 *
 * Numerics. kAccurate (fp32 tensors): the state advances by h += expm1(dt A) h + dt u B with a
 * carried compensation, because a float next to 1 cannot hold exp(dt A) of a slow state (1e-4
 * relative after 16384 steps at dt = 1e-6 without it). Otherwise ex2.approx and one FMA.
 */
#pragma once

#include "scan_args.cuh"
#include "scan_math.cuh"

namespace s6 {

constexpr int kGenericChannels = 16;
constexpr int kGenericTokens = 16;
constexpr int kGenericThreads = 128;
constexpr int kGenericLanesPerChannel = 8;
constexpr int kGenericStateTile = 256;  // S6_SCAN_MAX_STATE: rows of B and C in shared memory.
static_assert(kGenericStateTile == S6_SCAN_MAX_STATE, "shared rows hold every allowed state");
static_assert(kGenericThreads / kGenericLanesPerChannel == kGenericChannels, "one lane group each");

template <typename T, int kStatesPerLane, bool kAccurate>
__global__ void __launch_bounds__(kGenericThreads, kStatesPerLane > 8 ? 2 : 4)
    scanGenericKernel(const ScanArgs args) {
  constexpr int kMaxState = kStatesPerLane * kGenericLanesPerChannel;
  __shared__ float dt_tile[kGenericTokens][kGenericChannels];
  __shared__ float dt_u_tile[kGenericTokens][kGenericChannels];
  __shared__ float sum_tile[kGenericTokens][kGenericChannels];
  __shared__ float B_tile[kGenericTokens][kMaxState];
  __shared__ float C_tile[kGenericTokens][kMaxState];

  const int64_t row = blockIdx.y;
  const int first_channel = blockIdx.x * kGenericChannels;
  const int length = args.lengths == nullptr ? args.l : min(args.l, max(0, args.lengths[row]));
  const T* u = static_cast<const T*>(args.u) + row * args.u_stride.batch;
  const T* delta = static_cast<const T*>(args.delta) + row * args.delta_stride.batch;
  const T* z = static_cast<const T*>(args.z) + (args.z == nullptr ? 0 : row * args.z_stride.batch);
  const T* B = static_cast<const T*>(args.B) + row * args.B_stride.batch;
  const T* C = static_cast<const T*>(args.C) + row * args.C_stride.batch;
  T* y = static_cast<T*>(args.y) + row * args.y_stride.batch;

  // Elementwise phases: this thread's channel and first token.
  const int column = threadIdx.x % kGenericChannels;
  const int first_token = threadIdx.x / kGenericChannels;
  constexpr int kTokenStep = kGenericThreads / kGenericChannels;
  const int channel = first_channel + column;
  const bool exists = channel < args.d;
  const float bias = exists && args.delta_bias != nullptr ? args.delta_bias[channel] : 0.0f;
  const float skip = exists && args.D != nullptr ? args.D[channel] : 0.0f;

  // Scan: this thread's channel and states.
  const int slot = threadIdx.x % kGenericLanesPerChannel;
  const int scan_column = threadIdx.x / kGenericLanesPerChannel;
  const int scan_channel = first_channel + scan_column;
  float a[kStatesPerLane], h[kStatesPerLane], carry[kStatesPerLane];
#pragma unroll
  for (int i = 0; i < kStatesPerLane; ++i) {
    const int state = slot + i * kGenericLanesPerChannel;
    const bool held = scan_channel < args.d && state < args.n;
    const float rate = held ? args.A[int64_t{state} * args.d + scan_channel] : 0.0f;
    a[i] = kAccurate ? rate : rate * kLog2E;
    h[i] = held && args.state_in != nullptr
               ? args.state_in[(row * args.n + state) * args.d + scan_channel]
               : 0.0f;
    carry[i] = 0.0f;
  }

  for (int start = 0; start < length; start += kGenericTokens) {
    const int tokens = min(kGenericTokens, length - start);
#pragma unroll
    for (int t = first_token; t < kGenericTokens; t += kTokenStep) {
      float dt = 0.0f, dt_u = 0.0f;
      if (exists && t < tokens) {
        dt = toFloat(delta[(start + t) * args.delta_stride.row + channel]) + bias;
        if (args.delta_softplus != 0) dt = kAccurate ? softplusAccurate(dt) : softplusFast(dt);
        dt_u = dt * toFloat(u[(start + t) * args.u_stride.row + channel]);
      }
      dt_tile[t][column] = dt;
      dt_u_tile[t][column] = dt_u;
    }
    for (int i = threadIdx.x; i < kGenericTokens * kMaxState; i += kGenericThreads) {
      const int t = i / kMaxState, state = i % kMaxState;
      const bool held = t < tokens && state < args.n;
      B_tile[t][state] = held ? toFloat(B[(start + t) * args.B_stride.row + state]) : 0.0f;
      C_tile[t][state] = held ? toFloat(C[(start + t) * args.C_stride.row + state]) : 0.0f;
    }
    __syncthreads();

    for (int t = 0; t < tokens; ++t) {
      const float dt = dt_tile[t][scan_column], dt_u = dt_u_tile[t][scan_column];
      float sum = 0.0f;
#pragma unroll
      for (int i = 0; i < kStatesPerLane; ++i) {
        const int state = slot + i * kGenericLanesPerChannel;
        if constexpr (kAccurate) {
          const float change = fmaf(expm1f(dt * a[i]), h[i], dt_u * B_tile[t][state]) + carry[i];
          const float next = h[i] + change;
          carry[i] = change - (next - h[i]);
          h[i] = next;
        } else {
          h[i] = fmaf(exp2Unit(dt * a[i]), h[i], dt_u * B_tile[t][state]);
        }
        sum = fmaf(C_tile[t][state], h[i], sum);
      }
#pragma unroll
      for (int lanes = kGenericLanesPerChannel / 2; lanes > 0; lanes /= 2) {
        sum += __shfl_xor_sync(0xffffffffu, sum, lanes);
      }
      if (slot == 0) sum_tile[t][scan_column] = sum;
    }
    __syncthreads();

    for (int t = first_token; t < tokens; t += kTokenStep) {
      if (!exists) break;
      float out =
          fmaf(skip, toFloat(u[(start + t) * args.u_stride.row + channel]), sum_tile[t][column]);
      if (args.z != nullptr) {
        const float gate = toFloat(z[(start + t) * args.z_stride.row + channel]);
        out *= kAccurate ? siluAccurate(gate) : siluFast(gate);
      }
      y[(start + t) * args.y_stride.row + channel] = fromFloat<T>(out);
    }
    // No barrier: the next elementwise phase writes dt, dt_u, B and C, last read before the
    // barrier above, and sum is next written after the barrier below it.
  }

#pragma unroll
  for (int i = 0; i < kStatesPerLane; ++i) {
    const int state = slot + i * kGenericLanesPerChannel;
    if (args.state_out != nullptr && scan_channel < args.d && state < args.n) {
      args.state_out[(row * args.n + state) * args.d + scan_channel] = h[i];
    }
  }
  // Tokens past a short row's end are written as zero.
  for (int t = length + first_token; exists && t < args.l; t += kTokenStep) {
    y[t * args.y_stride.row + channel] = fromFloat<T>(0.0f);
  }
}

//! Smallest instantiation whose lanes hold n states.
template <typename T, bool kAccurate>
cudaError_t launchScanGeneric(const ScanArgs& args, cudaStream_t stream) {
  const dim3 grid((args.d + kGenericChannels - 1) / kGenericChannels, args.b);
  const int per_lane = (args.n + kGenericLanesPerChannel - 1) / kGenericLanesPerChannel;
  if (per_lane <= 1) {
    scanGenericKernel<T, 1, kAccurate><<<grid, kGenericThreads, 0, stream>>>(args);
  } else if (per_lane <= 2) {
    scanGenericKernel<T, 2, kAccurate><<<grid, kGenericThreads, 0, stream>>>(args);
  } else if (per_lane <= 8) {
    scanGenericKernel<T, 8, kAccurate><<<grid, kGenericThreads, 0, stream>>>(args);
  } else {
    scanGenericKernel<T, 32, kAccurate><<<grid, kGenericThreads, 0, stream>>>(args);
  }
  return cudaGetLastError();
}

}  // namespace s6
