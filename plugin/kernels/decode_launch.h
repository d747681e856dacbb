// SPDX-License-Identifier: MIT
/*!
 * \file decode_launch.h
 * \brief The compiled decode kernels: by bits of the weights, one text or up to 8.
 */
#pragma once

namespace s6 {

//! \param b Texts.
const void* decodeKernelHalf(int b);
const void* decodeKernelInt8(int b);
const void* decodeKernelInt4(int b);

}  // namespace s6
