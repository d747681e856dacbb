// SPDX-License-Identifier: MIT
#include "sizes.h"

#include <cstring>

#include "refusal.h"

namespace s6::plugin {
namespace {

constexpr std::int64_t kUnknown = -1;

//! Exact dimensions first, then those that differ by a number, then those that may be larger: the
//! letter of a later kind is then known if anything states it.
enum class Pass { kExact, kOffset, kOrMore };

Pass passOf(const DimensionRule& rule) {
  if (rule.or_more) return Pass::kOrMore;
  return rule.offset == 0 ? Pass::kExact : Pass::kOffset;
}

}  // namespace

Sizes::Sizes(const OpRule& op, const Attributes& attributes, const std::vector<Tensor>& inputs)
    : op_(&op), values_(op.symbols.size(), kUnknown) {
  for (std::size_t i = 0; i < op.symbols.size(); ++i) {
    const int attribute = op.symbols[i].attribute;
    if (attribute >= 0) values_[i] = attributes.values().at(attribute).integers.at(0);
  }
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    const TensorRule& rule = op.inputs.at(i);
    if (inputs[i].rank != static_cast<int>(rule.dimensions.size())) {
      refuse(op.name, ": ", rule.name, " is ", describe(inputs[i]), "; wanted: [", rule.shape, "]");
    }
  }
  for (const Pass pass : {Pass::kExact, Pass::kOffset, Pass::kOrMore}) {
    for (std::size_t i = 0; i < inputs.size(); ++i) {
      const TensorRule& tensor = op.inputs[i];
      for (std::size_t axis = 0; axis < tensor.dimensions.size(); ++axis) {
        const DimensionRule& rule = tensor.dimensions[axis];
        if (passOf(rule) != pass) continue;
        std::int64_t& value = values_[rule.symbol];
        const std::int64_t found = inputs[i].dimensions[axis] - rule.offset;
        if (value == kUnknown) value = found;
        if (rule.or_more ? found < value : found != value) {
          refuse(op.name, ": ", tensor.name, " is ", describe(inputs[i]), "; wanted: [",
                 tensor.shape, "] where ", op.symbols[rule.symbol].name, " is ", value);
        }
      }
    }
  }
  for (std::size_t i = 0; i < values_.size(); ++i) {
    if (values_[i] > INT32_MAX) {
      refuse(op.name, ": ", op.symbols[i].name, " is ", values_[i], "; allowed: up to ", INT32_MAX);
    }
  }
}

std::int32_t Sizes::of(const char* symbol) const {
  for (std::size_t i = 0; i < values_.size(); ++i) {
    if (std::strcmp(op_->symbols[i].name, symbol) == 0) {
      return static_cast<std::int32_t>(values_[i]);
    }
  }
  refuse(op_->name, ": the contract has no size ", symbol);
}

}  // namespace s6::plugin
