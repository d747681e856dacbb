// SPDX-License-Identifier: MIT
#include "types.h"

#include <algorithm>

#include "refusal.h"

namespace s6::plugin {
namespace {

constexpr auto kNone = ElementType::kOther;

//! Type of the first input with a rule, or kNone.
ElementType firstWith(const OpRule& op, TypeRule rule, const std::vector<ElementType>& inputs) {
  const std::size_t count = std::min(inputs.size(), op.inputs.size());
  for (std::size_t i = 0; i < count; ++i) {
    if (op.inputs[i].type == rule) return inputs[i];
  }
  return kNone;
}

bool isFloating(ElementType type) {
  return type == ElementType::kFloat32 || type == ElementType::kFloat16 ||
         type == ElementType::kBfloat16;
}

//! `before`: types of the inputs before this tensor.
bool obeys(const OpRule& op, const Attributes& attributes, TypeRule rule, ElementType type,
           const std::vector<ElementType>& before) {
  switch (rule) {
    case TypeRule::kActivation: {
      const ElementType first = firstWith(op, TypeRule::kActivation, before);
      return first == kNone ? isFloating(type) : type == first;
    }
    case TypeRule::kState: {
      const ElementType first = firstWith(op, TypeRule::kState, before);
      if (first != kNone) return type == first;
      const ElementType activation = firstWith(op, TypeRule::kActivation, before);
      if (type == activation) return isFloating(type);
      // No kernel narrows float32 to bfloat16.
      return type == ElementType::kFloat32 && activation == ElementType::kFloat16;
    }
    case TypeRule::kWeight:
      return type ==
             (attributes.integer("bits") == 16 ? ElementType::kFloat16 : ElementType::kInt32);
    case TypeRule::kFloat32:
      return type == ElementType::kFloat32;
    case TypeRule::kFloat16:
      return type == ElementType::kFloat16;
    case TypeRule::kInt32:
      return type == ElementType::kInt32;
  }
  return false;
}

}  // namespace

bool accepts(const OpRule& op, const Attributes& attributes, int position,
             const std::vector<Tensor>& tensors, int input_count) {
  const int output_count = static_cast<int>(tensors.size()) - input_count;
  requireCounts(op, input_count, output_count);
  const Tensor& tensor = tensors.at(position);
  const bool is_input = position < input_count;
  const TensorRule& rule =
      is_input ? op.inputs.at(position) : op.outputs.at(position - input_count);
  std::vector<ElementType> before;
  for (int i = 0; i < std::min(position, input_count); ++i) before.push_back(tensors[i].type);
  return tensor.is_linear && obeys(op, attributes, rule.type, tensor.type, before);
}

ElementType outputType(const OpRule& op, int output, const std::vector<ElementType>& inputs) {
  const TypeRule rule = op.outputs.at(output).type;
  switch (rule) {
    case TypeRule::kFloat32:
      return ElementType::kFloat32;
    case TypeRule::kFloat16:
      return ElementType::kFloat16;
    case TypeRule::kInt32:
      return ElementType::kInt32;
    default: {
      const ElementType type = firstWith(op, rule, inputs);
      if (type == kNone) {
        refuse(op.name, ": nothing says which type the output ", op.outputs[output].name, " has");
      }
      return type;
    }
  }
}

void requireCounts(const OpRule& op, int inputs, int outputs) {
  const auto most = static_cast<int>(op.inputs.size());
  const auto needed = static_cast<int>(std::count_if(
      op.inputs.begin(), op.inputs.end(), [](const TensorRule& rule) { return !rule.optional; }));
  if (inputs < needed || inputs > most) {
    refuse(op.name, ": has ", inputs, " inputs; allowed: ", needed, " to ", most);
  }
  if (outputs != static_cast<int>(op.outputs.size())) {
    refuse(op.name, ": has ", outputs, " outputs; allowed: ", op.outputs.size());
  }
}

}  // namespace s6::plugin
