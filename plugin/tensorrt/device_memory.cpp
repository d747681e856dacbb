// SPDX-License-Identifier: MIT
#include "device_memory.h"

#include <cuda_runtime_api.h>

namespace s6::plugin {

bool copyOnDevice(void* to, const void* from, std::size_t bytes, S6Stream stream) {
  return cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, stream) == cudaSuccess;
}

bool clearOnDevice(void* at, std::size_t bytes, S6Stream stream) {
  return cudaMemsetAsync(at, 0, bytes, stream) == cudaSuccess;
}

}  // namespace s6::plugin
