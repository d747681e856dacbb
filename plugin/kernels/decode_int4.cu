// SPDX-License-Identifier: MIT
//! \file decode_int4.cu
//! \brief The decode kernels for blocks of 4-bit weights.
#include "decode_kernel.cuh"
#include "decode_launch.h"

namespace s6 {

const void* decodeKernelInt4(int b) {
  return b == 1 ? reinterpret_cast<const void*>(decodeKernel<4, 1>)
                : reinterpret_cast<const void*>(decodeKernel<4, 8>);
}

}  // namespace s6
