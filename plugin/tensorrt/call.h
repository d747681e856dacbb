// SPDX-License-Identifier: MIT
/*!
 * \file call.h
 * \brief One run of one node, and how an op hands its parts to the kernels.
 *
 * A rehearsal is a run that stops before the GPU: it tells in the build phase whether the kernels
 * would take the sizes. Its addresses are stand-ins.
 */
#pragma once

#include <vector>

#include "attributes.h"
#include "refusal.h"
#include "s6/types.h"
#include "sizes.h"
#include "tensor.h"

namespace s6::plugin {

struct Call {
  const OpRule& op;
  const Attributes& attributes;
  const Sizes& sizes;
  const std::vector<Tensor>& inputs;
  const std::vector<Tensor>& outputs;
  void* workspace;
  S6Stream stream;
  bool is_rehearsal;

  bool hasInput(std::size_t i) const { return i < inputs.size(); }
  template <typename Value>
  Value* input(std::size_t i) const {
    return hasInput(i) ? static_cast<Value*>(inputs[i].address) : nullptr;
  }
  template <typename Value>
  Value* output(std::size_t i) const {
    return static_cast<Value*>(outputs.at(i).address);
  }
};

//! An address some elements further.
template <typename Pointer>
Pointer* advance(Pointer* address, ElementType type, std::int64_t elements) {
  using Byte = std::conditional_t<std::is_const_v<Pointer>, const char, char>;
  return static_cast<Byte*>(address) + elements * elementBytes(type);
}

//! S6DataType of an element type. \throws Refusal It has none.
S6DataType dataType(const Call& call, ElementType type);

/*!
 * \brief Refuses a slice of columns that a tensor does not have.
 * \param begin First column, in the tensor's last axis.
 */
void requireColumns(const Call& call, std::size_t input, std::int64_t begin, std::int64_t count);

//! Copies a tensor on the GPU unless it is already there. \throws Refusal CUDA does not.
void copyTensor(const Call& call, const Tensor& from, const Tensor& to);

//! Zeroes the first bytes of the workspace. \throws Refusal CUDA does not.
void clearWorkspace(const Call& call, std::size_t bytes);

//! The sentence for a status that is not S6_STATUS_OK, with the shapes of all tensors.
[[noreturn]] void refuseStatus(const Call& call, S6Status status);

//! Runs a problem, or in a rehearsal only checks it. \throws Refusal The kernels refuse it.
template <typename Problem>
void submit(const Call& call, Problem problem, S6Status (*check)(const Problem*),
            S6Status (*run)(const Problem*, S6Stream)) {
  problem.struct_size = sizeof(Problem);
  const S6Status status = call.is_rehearsal ? check(&problem) : run(&problem, call.stream);
  if (status != S6_STATUS_OK) refuseStatus(call, status);
}

}  // namespace s6::plugin
