// SPDX-License-Identifier: MIT
//! \file packed_matrix.h
//! \brief A matrix that a node reads as it is stored: its weights, its scales, and their shapes.
#pragma once

#include "call.h"

namespace s6::plugin {

struct PackedMatrix {
  std::int32_t bits;
  std::int32_t group_size;  //!< 0 for 16 bits.
  const void* data;
  const void* scales;  //!< Null for 16 bits.
};

/*!
 * \brief The matrix of a node with the attributes bits and group_size.
 * \param weight Number of the input with its weights or words; its scales are the next input.
 * \throws Refusal The shapes do not fit a matrix of so many columns.
 */
PackedMatrix packedMatrix(const Call& call, std::size_t weight, std::int64_t columns);

}  // namespace s6::plugin
