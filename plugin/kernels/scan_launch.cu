// SPDX-License-Identifier: MIT
//! \file scan_launch.cu
//! \brief The scan's C API: checks the problem, chooses the kernel, launches, returns a status.
#include <cuda_runtime_api.h>

#include "scan_args.cuh"

namespace s6 {
namespace {

constexpr int kTunedState = 16;
constexpr int kBytesPerCopy = 16;  // cp.async of the tuned kernels.

//! Whether rows, base and batch stride of a 16-bit tensor allow 16-byte copies.
bool takesWideCopies(const void* pointer, const TensorStrides& stride, int32_t b) {
  constexpr int kElements = kBytesPerCopy / 2;
  return reinterpret_cast<uintptr_t>(pointer) % kBytesPerCopy == 0 && stride.row % kElements == 0 &&
         (b <= 1 || stride.batch % kElements == 0);
}

//! What the tuned kernels need beyond a valid problem.
bool fitsTuned(const S6SelectiveScan& p, const ScanArgs& args) {
  return p.dtype != S6_FLOAT32 && p.n == kTunedState && p.d % 8 == 0 &&
         takesWideCopies(p.u, args.u_stride, p.b) &&
         takesWideCopies(p.delta, args.delta_stride, p.b) &&
         (p.z == nullptr || takesWideCopies(p.z, args.z_stride, p.b)) &&
         takesWideCopies(p.B, args.B_stride, p.b) && takesWideCopies(p.C, args.C_stride, p.b) &&
         takesWideCopies(p.y, args.y_stride, p.b);
}

}  // namespace
}  // namespace s6

extern "C" S6ScanVariant s6_selective_scan_choose(const S6SelectiveScan* problem) {
  const s6::ScanArgs args = s6::makeScanArgs(*problem);
  if (!s6::fitsTuned(*problem, args) || problem->sm_count <= 0) return S6_SCAN_GENERIC;
  // Measured (docs/lab_note_scan.md): from about 96 channels an SM on, the sub-partitions are busy
  // with wide warps; below, narrow ones on more multiprocessors win.
  constexpr int64_t kChannelsThatFillAnSm = 96;
  const int64_t channels = int64_t{problem->d} * problem->b;
  return channels >= kChannelsThatFillAnSm * problem->sm_count ? S6_SCAN_TILE : S6_SCAN_PIPELINE;
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
  } else if (variant != S6_SCAN_GENERIC && !s6::fitsTuned(p, args)) {
    return S6_STATUS_BAD_VARIANT;
  }
  const bool is_bfloat16 = p.dtype == S6_BFLOAT16;
  cudaError_t error = cudaSuccess;
  switch (variant) {
    case S6_SCAN_TILE:
      error = s6::launchScanTile(args, is_bfloat16, stream);
      break;
    case S6_SCAN_PIPELINE:
      error = s6::launchScanPipeline(args, is_bfloat16, p.sm_count, stream);
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
