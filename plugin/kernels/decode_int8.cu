// SPDX-License-Identifier: MIT
//! \file decode_int8.cu
//! \brief The decode kernels for blocks of 8-bit weights.
#include "decode_kernel.cuh"
#include "decode_launch.h"

namespace s6 {

const void* decodeKernelInt8(int b) {
  return b == 1 ? reinterpret_cast<const void*>(decodeKernel<8, 1>)
                : reinterpret_cast<const void*>(decodeKernel<8, 8>);
}

}  // namespace s6
