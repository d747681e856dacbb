// SPDX-License-Identifier: MIT
//! \file decode_plan.h
//! \brief Who does what in the decode kernel, decided on the host: see decode_plan.cpp.
#pragma once

#include "decode_args.cuh"

namespace s6 {

//! Texts that the kernel variant for b texts has room for.
inline int decodeRows(int b) { return b == 1 ? 1 : S6_DECODE_MAX_BATCH; }

/*!
 * The kernel's arguments; shared_bytes says what a block needs.
 *
 * \param problem Checked before.
 * \param blocks Blocks that run at once, one a multiprocessor; at most kMaxDecodeBlocks are used.
 * \param shared_bytes What a block may have. If that is too little, depth is below kLeastDepth.
 */
DecodeArgs planDecode(const S6Decode& problem, int blocks, int shared_bytes);

}  // namespace s6
