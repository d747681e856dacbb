// SPDX-License-Identifier: MIT
//! \file scan_launch.cu
//! \brief The scan's C API: checks the problem, chooses the kernel, launches, returns a status.
#include <cuda_runtime_api.h>

#include "scan_args.cuh"

namespace s6 {
namespace {

constexpr int kBytesPerCopy = 16;         //!< cp.async of the tuned kernels.
constexpr int64_t kLargestRow = 1 << 24;  //!< So that a step of a kernel fits 32 bits.
constexpr int kRelayChannels = 8;         //!< What scan_relay takes a multiple of.
constexpr int kLaneChannels = 32;         //!< What scan_lane takes a multiple of.

//! Whether rows, base and batch stride of a 16-bit tensor allow 16-byte copies.
bool takesWideCopies(const void* pointer, const TensorStrides& stride, int32_t b) {
  constexpr int kElements = kBytesPerCopy / 2;
  return reinterpret_cast<uintptr_t>(pointer) % kBytesPerCopy == 0 && stride.row % kElements == 0 &&
         stride.row <= kLargestRow && (b <= 1 || stride.batch % kElements == 0);
}

//! What the tuned kernels need beyond a valid problem.
bool fitsTuned(const S6SelectiveScan& p, const ScanArgs& args) {
  return p.dtype != S6_FLOAT32 && p.n == kTunedScanState && p.d % kRelayChannels == 0 &&
         takesWideCopies(p.u, args.u_stride, p.b) &&
         takesWideCopies(p.delta, args.delta_stride, p.b) &&
         (p.z == nullptr || takesWideCopies(p.z, args.z_stride, p.b)) &&
         takesWideCopies(p.B, args.B_stride, p.b) && takesWideCopies(p.C, args.C_stride, p.b) &&
         takesWideCopies(p.y, args.y_stride, p.b);
}

//! Whether a kernel that is asked for by name can run this problem.
bool fitsVariant(const S6SelectiveScan& p, const ScanArgs& args, S6ScanVariant variant) {
  if (variant == S6_SCAN_GENERIC) return true;
  return fitsTuned(p, args) && (variant != S6_SCAN_LANE || p.d % kLaneChannels == 0);
}

}  // namespace
}  // namespace s6

extern "C" S6ScanVariant s6_selective_scan_choose(const S6SelectiveScan* problem) {
  const s6::ScanArgs args = s6::makeScanArgs(*problem);
  if (!s6::fitsTuned(*problem, args) || problem->sm_count <= 0) return S6_SCAN_GENERIC;
  // Measured (docs/lab_note_scan.md): from about 160 channels an SM on, a warp for each 32 of them
  // keeps the sub-partitions busy; below, warps that take turns do.
  constexpr int64_t kChannelsThatFillAnSm = 160;
  const int64_t channels = int64_t{problem->d} * problem->b;
  return s6::fitsVariant(*problem, args, S6_SCAN_LANE) &&
                 channels >= kChannelsThatFillAnSm * problem->sm_count
             ? S6_SCAN_LANE
             : S6_SCAN_RELAY;
}

extern "C" S6Status s6_selective_scan(const S6SelectiveScan* problem, S6Stream stream) {
  const S6Status status = s6_selective_scan_check(problem);
  if (status != S6_STATUS_OK) return status;
  S6SelectiveScan p = *problem;
  if (p.b == 0) return S6_STATUS_OK;
  if (p.sm_count == 0) {
    int device = 0;
    if (cudaGetDevice(&device) != cudaSuccess ||
        cudaDeviceGetAttribute(&p.sm_count, cudaDevAttrMultiProcessorCount, device) !=
            cudaSuccess) {
      return S6_STATUS_NO_DEVICE;
    }
  }
  const s6::ScanArgs args = s6::makeScanArgs(p);
  S6ScanVariant variant = p.variant;
  if (variant == S6_SCAN_AUTO) {
    variant = s6_selective_scan_choose(&p);
  } else if (!s6::fitsVariant(p, args, variant)) {
    return S6_STATUS_BAD_VARIANT;
  }
  const bool is_bfloat16 = p.dtype == S6_BFLOAT16;
  cudaError_t error = cudaSuccess;
  switch (variant) {
    case S6_SCAN_LANE:
      error = s6::launchScanLane(args, is_bfloat16, stream);
      break;
    case S6_SCAN_RELAY:
      error = s6::launchScanRelay(args, is_bfloat16, p.sm_count, stream);
      break;
    default:
      error = p.dtype == S6_FLOAT32 ? s6::launchScanGenericFp32(args, stream)
                                    : s6::launchScanGenericHalf(args, is_bfloat16, stream);
  }
  return error == cudaSuccess ? S6_STATUS_OK : S6_STATUS_LAUNCH_FAILED;
}

extern "C" S6Status s6_selective_scan_step(const S6SelectiveScan* problem, S6Stream stream) {
  const S6Status status = s6_selective_scan_check(problem);
  if (status != S6_STATUS_OK) return status;
  if (problem->l != 1) return S6_STATUS_BAD_SIZE;
  if (problem->b == 0) return S6_STATUS_OK;
  const cudaError_t error = s6::launchScanStep(s6::makeScanArgs(*problem), problem->dtype, stream);
  return error == cudaSuccess ? S6_STATUS_OK : S6_STATUS_LAUNCH_FAILED;
}
