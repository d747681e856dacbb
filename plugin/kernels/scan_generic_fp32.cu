// SPDX-License-Identifier: MIT
// Instantiates scan_generic.cuh for fp32 tensors, with the compensated recurrence.
#include "scan_generic.cuh"

namespace s6 {

cudaError_t launchScanGenericFp32(const ScanArgs& args, cudaStream_t stream) {
  return launchScanGeneric<float, true>(args, stream);
}

}  // namespace s6
