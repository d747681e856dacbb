// SPDX-License-Identifier: MIT
//! \file phases.h
//! \brief What TensorRT does with a plugin, in its order: while it builds, and while it runs.
#pragma once

#include <memory>

#include "case.h"
#include "library.h"
#include "node.h"

namespace s6::exercise {

//! The tensors of a case when it runs, open sizes multiplied by a number.
Descriptions descriptionsOf(const std::vector<TensorSpec>& tensors, Integer factor = 1);
//! The same as an optimisation profile, open sizes up to twice those of the case.
Ranges rangesOf(const std::vector<TensorSpec>& tensors);
std::vector<TensorSpec> inputsOf(const Case& of);
std::vector<TensorSpec> outputsOf(const Case& of);

struct Built {
  Bytes engine_bytes;
  std::size_t workspace_bytes;
  int combinations;  //!< Of types that the plugin accepts.
};

/*!
 * \brief Types, shapes, formats, profile, workspace, bytes for the engine.
 * \throws Failure Something is not as the case says, or the plugin complains.
 */
Built build(const Library& library, const Case& of);

/*!
 * \brief An engine's node, at the shapes of a case.
 * \throws Failure It is refused, or its bytes are not those it was made from.
 */
std::unique_ptr<Node> load(const Library& library, const Case& of, const Built& built);

/*!
 * \brief Enqueues a node and the case's call of the C API: directly, and from a CUDA graph.
 * \return Bytes of the outputs, which are equal.
 * \throws Failure They are not.
 */
std::size_t run(Node& node, const Case& of, std::size_t workspace_bytes);

}  // namespace s6::exercise
