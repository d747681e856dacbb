// SPDX-License-Identifier: MIT
//! \file scan_args.cuh
//! \brief The scan's arguments as kernels see them (strides resolved), and the launchers' names.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "problem_checks.h"
#include "s6/selective_scan.h"

namespace s6 {

//! Pointers as in S6SelectiveScan; strides in elements, none of them 0 for "dense" any more.
struct ScanArgs {
  int32_t b, l, d, n;
  int32_t delta_softplus;
  const void* u;
  const void* delta;
  const float* A;
  const void* B;
  const void* C;
  const float* D;
  const void* z;
  const float* delta_bias;
  const float* state_in;
  float* state_out;
  void* y;
  const int32_t* lengths;
  TensorStrides u_stride, delta_stride, z_stride, B_stride, C_stride, y_stride;
};

inline ScanArgs makeScanArgs(const S6SelectiveScan& p) {
  return {p.b,
          p.l,
          p.d,
          p.n,
          p.delta_softplus,
          p.u,
          p.delta,
          p.A,
          p.B,
          p.C,
          p.D,
          p.z,
          p.delta_bias,
          p.state_in,
          p.state_out,
          p.y,
          p.lengths,
          resolveStrides(p.u_row, p.u_batch, p.d, p.l),
          resolveStrides(p.delta_row, p.delta_batch, p.d, p.l),
          resolveStrides(p.z_row, p.z_batch, p.d, p.l),
          resolveStrides(p.B_row, p.B_batch, p.n, p.l),
          resolveStrides(p.C_row, p.C_batch, p.n, p.l),
          resolveStrides(p.y_row, p.y_batch, p.d, p.l)};
}

cudaError_t launchScanGenericFp32(const ScanArgs& args, cudaStream_t stream);
cudaError_t launchScanGenericHalf(const ScanArgs& args, bool is_bfloat16, cudaStream_t stream);
//! The state size that the two tuned kernels below take.
constexpr int kTunedScanState = 16;
//! A lane holds a channel: for channels enough to fill the multiprocessors.
cudaError_t launchScanLane(const ScanArgs& args, bool is_bfloat16, cudaStream_t stream);
//! Warps take turns in time, for few channels on many multiprocessors.
cudaError_t launchScanRelay(const ScanArgs& args, bool is_bfloat16, int sm_count,
                            cudaStream_t stream);
cudaError_t launchScanStep(const ScanArgs& args, S6DataType dtype, cudaStream_t stream);

}  // namespace s6
