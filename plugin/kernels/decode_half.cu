// SPDX-License-Identifier: MIT
//! \file decode_half.cu
//! \brief The decode kernels for blocks of float16 weights.
#include "decode_kernel.cuh"
#include "decode_launch.h"

namespace s6 {

const void* decodeKernelHalf(int b) {
  return b == 1 ? reinterpret_cast<const void*>(decodeKernel<16, 1>)
                : reinterpret_cast<const void*>(decodeKernel<16, 8>);
}

}  // namespace s6
