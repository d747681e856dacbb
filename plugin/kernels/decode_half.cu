// SPDX-License-Identifier: MIT
//! \file decode_half.cu
//! \brief The decode kernels for blocks of float16 weights.
#include "decode_kernel.cuh"
#include "decode_launch.h"

namespace s6 {
namespace {

template <int kRows, int kDepth>
DecodeKernel kernelOf() {
  return {reinterpret_cast<const void*>(decodeKernel<16, kRows, kDepth>), kDepth};
}

}  // namespace

DecodeKernels decodeKernelsHalf() { return {kernelOf<1, 6>(), kernelOf<1, 4>()}; }
DecodeKernels decodeKernelsHalfBatch() { return {kernelOf<8, 3>(), kernelOf<8, 2>()}; }

}  // namespace s6
