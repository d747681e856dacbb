// SPDX-License-Identifier: MIT
#include "adaptor.h"

#include "operators.h"
#include "refusal.h"
#include "serialisation.h"
#include "sizes.h"
#include "types.h"

namespace s6::plugin {
namespace {

//! For rehearsals: aligned as TensorRT aligns, and never read or written.
alignas(256) char stand_in[256];

}  // namespace

Adaptor::Adaptor(const OpRule& op, const std::vector<Field>& fields)
    : op_(&op), attributes_(Attributes::read(op, fields)) {}

Adaptor::Adaptor(const OpRule& op, const void* bytes, std::size_t size)
    : op_(&op), attributes_(restore(op, bytes, size)) {}

std::vector<std::uint8_t> Adaptor::serialised() const { return serialise(*op_, attributes_); }

ElementType Adaptor::typeOfOutput(int output, const std::vector<ElementType>& inputs) const {
  return outputType(*op_, output, inputs);
}

const std::vector<DimensionRule>& Adaptor::shapeOfOutput(int output, int input_count) const {
  requireCounts(*op_, input_count, outputCount());
  return op_->outputs.at(output).dimensions;
}

std::int64_t Adaptor::constant(int attribute) const {
  return attributes_.values().at(attribute).integers.at(0);
}

bool Adaptor::acceptsFormat(int position, const std::vector<Tensor>& tensors,
                            int input_count) const {
  return accepts(*op_, attributes_, position, tensors, input_count);
}

void Adaptor::rehearse(std::vector<Tensor> inputs, std::vector<Tensor> outputs) const {
  requireTypes(inputs, outputs);
  for (std::vector<Tensor>* tensors : {&inputs, &outputs}) {
    for (Tensor& tensor : *tensors) tensor.address = stand_in;
  }
  const Sizes sizes(*op_, attributes_, inputs);
  codeOf(*op_).run({*op_, attributes_, sizes, inputs, outputs, stand_in, nullptr, true});
}

std::size_t Adaptor::workspaceBytes(const std::vector<Tensor>& inputs,
                                    const std::vector<Tensor>& outputs) const {
  const OpCode& code = codeOf(*op_);
  if (code.workspace == nullptr) return 0;
  requireCounts(*op_, static_cast<int>(inputs.size()), static_cast<int>(outputs.size()));
  const Sizes sizes(*op_, attributes_, inputs);
  return code.workspace({*op_, attributes_, sizes, inputs, outputs, nullptr, nullptr, true});
}

void Adaptor::enqueue(const std::vector<Tensor>& inputs, const std::vector<Tensor>& outputs,
                      void* workspace, S6Stream stream) const {
  requireTypes(inputs, outputs);
  const Sizes sizes(*op_, attributes_, inputs);
  codeOf(*op_).run({*op_, attributes_, sizes, inputs, outputs, workspace, stream, false});
}

void Adaptor::requireTypes(const std::vector<Tensor>& inputs,
                           const std::vector<Tensor>& outputs) const {
  std::vector<Tensor> all = inputs;
  all.insert(all.end(), outputs.begin(), outputs.end());
  const auto input_count = static_cast<int>(inputs.size());
  for (int i = 0; i < static_cast<int>(all.size()); ++i) {
    if (acceptsFormat(i, all, input_count)) continue;
    const TensorRule& rule = i < input_count ? op_->inputs[i] : op_->outputs[i - input_count];
    refuse(op_->name, ": ", rule.name, " is ", describe(all[i]),
           all[i].is_linear ? ", a type that does not fit the others" : " in a blocked format");
  }
}

}  // namespace s6::plugin
