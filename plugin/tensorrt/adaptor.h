// SPDX-License-Identifier: MIT
/*!
 * \file adaptor.h
 * \brief A node of an engine's graph, free of any version of TensorRT: what both shells wrap.
 *
 * Everything that can be refused throws a Refusal whose text says op, what was found and what is
 * allowed.
 */
#pragma once

#include <cstddef>
#include <vector>

#include "attributes.h"
#include "s6/types.h"
#include "tensor.h"

namespace s6::plugin {

class Adaptor {
 public:
  //! From the attributes of a graph's node.
  Adaptor(const OpRule& op, const std::vector<Field>& fields);
  //! From what `serialised` gave.
  Adaptor(const OpRule& op, const void* bytes, std::size_t size);

  const OpRule& op() const { return *op_; }
  std::vector<std::uint8_t> serialised() const;

  int outputCount() const { return static_cast<int>(op_->outputs.size()); }
  ElementType typeOfOutput(int output, const std::vector<ElementType>& inputs) const;
  //! Where the size of an output's axis comes from; attributes are looked up with `constant`.
  const std::vector<DimensionRule>& shapeOfOutput(int output, int input_count) const;
  std::int64_t constant(int attribute) const;

  //! See types.h.
  bool acceptsFormat(int position, const std::vector<Tensor>& tensors, int input_count) const;
  //! Build phase: shapes agree and the kernels take them; addresses are not looked at.
  void rehearse(std::vector<Tensor> inputs, std::vector<Tensor> outputs) const;
  //! Addresses are not looked at. Grows with every dimension.
  std::size_t workspaceBytes(const std::vector<Tensor>& inputs,
                             const std::vector<Tensor>& outputs) const;
  //! Enqueues the node's work and does not wait.
  void enqueue(const std::vector<Tensor>& inputs, const std::vector<Tensor>& outputs,
               void* workspace, S6Stream stream) const;

 private:
  void requireTypes(const std::vector<Tensor>& inputs, const std::vector<Tensor>& outputs) const;

  const OpRule* op_;
  Attributes attributes_;
};

}  // namespace s6::plugin
