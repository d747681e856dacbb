// SPDX-License-Identifier: MIT
//! \file decode_int4.cu
//! \brief The decode kernels for blocks of 4-bit weights.
#include "decode_kernel.cuh"
#include "decode_launch.h"

namespace s6 {
namespace {

template <int kRows, int kDepth>
DecodeKernel kernelOf() {
  return {reinterpret_cast<const void*>(decodeKernel<4, kRows, kDepth>), kDepth};
}

}  // namespace

DecodeKernels decodeKernelsInt4() { return {kernelOf<1, 5>(), kernelOf<1, 3>()}; }
DecodeKernels decodeKernelsInt4Batch() { return {kernelOf<8, 3>(), kernelOf<8, 2>()}; }

}  // namespace s6
