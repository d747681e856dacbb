// SPDX-License-Identifier: MIT
/*!
 * \file scan_step.cu
 * \brief One token of the selective scan: the decode path, any type, any n, in place or not.
 *
 * Equation: include/s6/selective_scan.h with l = 1. Tensors as there; state [b, n, d] fp32.
 * Thread map: a block is 32 channels (threadIdx.x, so every state row is read in full sectors) by 8
 * state slots (threadIdx.y); slot s owns the states s, s + 8, ... and all of a thread's state loads
 * are independent. Shared memory: one partial sum per thread, written, one barrier, read by slot 0.
 * Numerics: exact exp and fp32 arithmetic everywhere: this kernel is bound by bytes.
 * Bytes: per channel 8 n for the state in and out, 4 n for A and 4 activations.
 * In place: each state is read and written by one thread, the read first.
 */
#include "scan_args.cuh"
#include "scan_math.cuh"

namespace s6 {
namespace {

constexpr int kStepChannels = 32;
constexpr int kStepSlots = 8;

template <typename T>
__global__ void __launch_bounds__(kStepChannels* kStepSlots) scanStepKernel(const ScanArgs args) {
  __shared__ float partial[kStepSlots][kStepChannels];
  const int64_t row = blockIdx.y;
  const int channel = blockIdx.x * kStepChannels + threadIdx.x;
  const bool exists = channel < args.d;
  const bool active = args.lengths == nullptr || args.lengths[row] > 0;
  const T* B = static_cast<const T*>(args.B) + row * args.B_stride.batch;
  const T* C = static_cast<const T*>(args.C) + row * args.C_stride.batch;
  float u = 0.0f, dt = 0.0f, sum = 0.0f;
  if (exists) {
    u = toFloat(static_cast<const T*>(args.u)[row * args.u_stride.batch + channel]);
    dt = toFloat(static_cast<const T*>(args.delta)[row * args.delta_stride.batch + channel]);
    if (args.delta_bias != nullptr) dt += args.delta_bias[channel];
    if (args.delta_softplus != 0) dt = softplusAccurate(dt);
#pragma unroll 4
    for (int state = threadIdx.y; state < args.n; state += kStepSlots) {
      const int64_t at = (row * args.n + state) * args.d + channel;
      const float before = args.state_in == nullptr ? 0.0f : args.state_in[at];
      const float rate = args.A[int64_t{state} * args.d + channel];
      // expm1 keeps the decay of slow states that 1 - 1e-8 would round away.
      const float after = before + fmaf(expm1f(dt * rate), before, dt * u * toFloat(B[state]));
      sum = fmaf(toFloat(C[state]), after, sum);
      if (args.state_out != nullptr) args.state_out[at] = active ? after : before;
    }
  }
  partial[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y != 0 || !exists) return;
  sum = 0.0f;
#pragma unroll
  for (int slot = 0; slot < kStepSlots; ++slot) sum += partial[slot][threadIdx.x];
  if (args.D != nullptr) sum = fmaf(args.D[channel], u, sum);
  if (args.z != nullptr) {
    sum *=
        siluAccurate(toFloat(static_cast<const T*>(args.z)[row * args.z_stride.batch + channel]));
  }
  static_cast<T*>(args.y)[row * args.y_stride.batch + channel] = fromFloat<T>(active ? sum : 0.0f);
}

}  // namespace

cudaError_t launchScanStep(const ScanArgs& args, S6DataType dtype, cudaStream_t stream) {
  const dim3 grid((args.d + kStepChannels - 1) / kStepChannels, args.b);
  const dim3 block(kStepChannels, kStepSlots);
  switch (dtype) {
    case S6_FLOAT32:
      scanStepKernel<float><<<grid, block, 0, stream>>>(args);
      break;
    case S6_FLOAT16:
      scanStepKernel<__half><<<grid, block, 0, stream>>>(args);
      break;
    case S6_BFLOAT16:
      scanStepKernel<__nv_bfloat16><<<grid, block, 0, stream>>>(args);
      break;
  }
  return cudaGetLastError();
}

}  // namespace s6
