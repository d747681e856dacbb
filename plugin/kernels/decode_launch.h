// SPDX-License-Identifier: MIT
/*!
 * \file decode_launch.h
 * \brief The compiled decode kernels: by bits of the weights, one text or up to 8, depth of ring.
 */
#pragma once

#include <array>

namespace s6 {

struct DecodeKernel {
  const void* function;
  int depth;  //!< Slots of a warp's ring.
};

//! Deepest ring first. The first fits the 227 KB of Hopper, the last the 163 KB of Orin, in the
//! largest published model.
using DecodeKernels = std::array<DecodeKernel, 2>;

DecodeKernels decodeKernelsHalf();
DecodeKernels decodeKernelsHalfBatch();
DecodeKernels decodeKernelsInt8();
DecodeKernels decodeKernelsInt8Batch();
DecodeKernels decodeKernelsInt4();
DecodeKernels decodeKernelsInt4Batch();

}  // namespace s6
