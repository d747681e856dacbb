// SPDX-License-Identifier: MIT
//! \file decode_launch.cu
//! \brief The decode step's C API: checks the problem, fits the ring into shared memory, launches.
#include <cuda_runtime_api.h>

#include "decode_launch.h"
#include "decode_plan.h"

namespace s6 {
namespace {

struct Device {
  int multiprocessors, shared_bytes;
};

S6Status readDevice(Device* device) {
  int id = 0;
  if (cudaGetDevice(&id) != cudaSuccess ||
      cudaDeviceGetAttribute(&device->multiprocessors, cudaDevAttrMultiProcessorCount, id) !=
          cudaSuccess ||
      cudaDeviceGetAttribute(&device->shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, id) !=
          cudaSuccess) {
    return S6_STATUS_NO_DEVICE;
  }
  return S6_STATUS_OK;
}

const void* kernelFor(int bits, int b) {
  switch (bits) {
    case 16:
      return decodeKernelHalf(b);
    case 8:
      return decodeKernelInt8(b);
    default:
      return decodeKernelInt4(b);
  }
}

cudaError_t launch(const void* kernel, DecodeArgs& args, cudaStream_t stream) {
  const cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, args.shared_bytes);
  if (error != cudaSuccess) return error;
  cudaLaunchAttribute cooperative;
  cooperative.id = cudaLaunchAttributeCooperative;
  cooperative.val.cooperative = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(args.blocks);
  config.blockDim = dim3(kDecodeThreads + 32 * args.fetchers);
  config.dynamicSmemBytes = args.shared_bytes;
  config.stream = stream;
  config.attrs = &cooperative;
  config.numAttrs = 1;
  void* parameters[] = {&args};
  return cudaLaunchKernelExC(&config, kernel, parameters);
}

}  // namespace
}  // namespace s6

extern "C" S6Status s6_decode(const S6Decode* problem, S6Stream stream) {
  S6Status status = s6_decode_check(problem);
  if (status != S6_STATUS_OK) return status;
  s6::Device device;
  status = s6::readDevice(&device);
  if (status != S6_STATUS_OK) return status;
  const int blocks = problem->sm_count > 0 ? problem->sm_count : device.multiprocessors;
  s6::DecodeArgs args = s6::planDecode(*problem, blocks, device.shared_bytes);
  if (args.depth < s6::kLeastDepth) return S6_STATUS_BAD_VARIANT;
  const void* kernel = s6::kernelFor(problem->in_proj.bits, problem->b);
  const cudaError_t error = s6::launch(kernel, args, stream);
  return error == cudaSuccess ? S6_STATUS_OK : S6_STATUS_LAUNCH_FAILED;
}
