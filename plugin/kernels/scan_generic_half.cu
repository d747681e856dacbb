// SPDX-License-Identifier: MIT
// Instantiates scan_generic.cuh for 16-bit tensors.
#include "scan_generic.cuh"

namespace s6 {

cudaError_t launchScanGenericHalf(const ScanArgs& args, bool is_bfloat16, cudaStream_t stream) {
  return is_bfloat16 ? launchScanGeneric<__nv_bfloat16, false>(args, stream)
                     : launchScanGeneric<__half, false>(args, stream);
}

}  // namespace s6
