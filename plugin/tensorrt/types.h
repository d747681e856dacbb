// SPDX-License-Identifier: MIT
//! \file types.h
//! \brief Which element types a node's tensors may have, by the letters of the contract.
#pragma once

#include <vector>

#include "attributes.h"
#include "tensor.h"

namespace s6::plugin {

/*!
 * \brief Whether a tensor may have its type and format, given those before it.
 * \param position Of the tensor among inputs, then outputs.
 * \param tensors Inputs, then outputs; those after `position` are not looked at.
 */
bool accepts(const OpRule& op, const Attributes& attributes, int position,
             const std::vector<Tensor>& tensors, int input_count);

//! Type of an output.
ElementType outputType(const OpRule& op, int output, const std::vector<ElementType>& inputs);

/*!
 * \brief Checks the number of tensors.
 * \throws Refusal Too few or too many.
 */
void requireCounts(const OpRule& op, int inputs, int outputs);

}  // namespace s6::plugin
