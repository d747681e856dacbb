// SPDX-License-Identifier: MIT
#include "attributes.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "refusal.h"

namespace s6::plugin {
namespace {

template <typename Value>
Value valueAt(const Field& field, int i) {
  Value value;
  std::memcpy(&value, static_cast<const char*>(field.data) + i * sizeof(Value), sizeof(Value));
  return value;
}

const char* nameOf(AttributeType type) {
  switch (type) {
    case AttributeType::kInteger:
      return "a whole number";
    case AttributeType::kIntegers:
      return "whole numbers";
    default:
      return "a number";
  }
}

const char* nameOf(FieldType type) {
  switch (type) {
    case FieldType::kInt32:
      return "int32";
    case FieldType::kInt64:
      return "int64";
    case FieldType::kFloat32:
      return "float32";
    case FieldType::kFloat64:
      return "float64";
    default:
      return "another type";
  }
}

AttributeValue valueOf(const OpRule& op, const AttributeRule& rule, const Field& field) {
  const bool is_whole = field.type == FieldType::kInt32 || field.type == FieldType::kInt64;
  const bool is_number = field.type == FieldType::kFloat32 || field.type == FieldType::kFloat64;
  const bool fits = rule.type == AttributeType::kNumber ? is_number : is_whole;
  if (!fits || field.length != rule.length || field.data == nullptr) {
    refuse(op.name, ": attribute ", rule.name, " has ", field.length, " values of ",
           nameOf(field.type), "; wanted: ", nameOf(rule.type), ", ", rule.length, " of them");
  }
  AttributeValue value;
  for (int i = 0; i < field.length; ++i) {
    switch (field.type) {
      case FieldType::kInt32:
        value.integers.push_back(valueAt<std::int32_t>(field, i));
        break;
      case FieldType::kInt64:
        value.integers.push_back(valueAt<std::int64_t>(field, i));
        break;
      case FieldType::kFloat32:
        value.number = valueAt<float>(field, i);
        break;
      default:
        value.number = valueAt<double>(field, i);
    }
  }
  return value;
}

AttributeValue defaultOf(const OpRule& op, const AttributeRule& rule) {
  if (rule.required) {
    refuse(op.name, ": attribute ", rule.name, " is missing, and has no default");
  }
  AttributeValue value;
  if (rule.type == AttributeType::kNumber) {
    value.number = rule.otherwise;
  } else {
    value.integers.assign(rule.length, static_cast<std::int64_t>(rule.otherwise));
  }
  return value;
}

void requireNumber(const OpRule& op, const AttributeRule& rule, double number) {
  // Written so that NaN fails.
  if (!(number >= rule.minimum) || std::isinf(number)) {
    refuse(op.name, ": attribute ", rule.name, " is ", number, "; allowed: ", rule.minimum,
           " or more");
  }
}

void requireInteger(const OpRule& op, const AttributeRule& rule, std::int64_t integer) {
  if (!rule.allowed.empty() &&
      std::find(rule.allowed.begin(), rule.allowed.end(), integer) == rule.allowed.end()) {
    std::ostringstream allowed;
    for (const std::int64_t value : rule.allowed) allowed << " " << value;
    refuse(op.name, ": attribute ", rule.name, " is ", integer, "; allowed:", allowed.str());
  }
  if (integer > INT32_MAX) {
    refuse(op.name, ": attribute ", rule.name, " is ", integer, "; allowed: up to ", INT32_MAX);
  }
  requireNumber(op, rule, static_cast<double>(integer));
}

void requireKnown(const OpRule& op, const std::vector<Field>& fields) {
  for (const Field& field : fields) {
    const bool known = std::any_of(
        op.attributes.begin(), op.attributes.end(),
        [&](const AttributeRule& rule) { return std::strcmp(rule.name, field.name) == 0; });
    if (known || std::strcmp(field.name, kContractVersionField) == 0) continue;
    std::ostringstream names;
    for (const AttributeRule& rule : op.attributes) names << " " << rule.name;
    refuse(op.name, ": attribute ", field.name, " is unknown; there are:", names.str());
  }
}

const Field* findField(const std::vector<Field>& fields, const char* name) {
  for (const Field& field : fields) {
    if (std::strcmp(field.name, name) == 0) return &field;
  }
  return nullptr;
}

}  // namespace

void requireContractVersion(const OpRule& op, const char* origin, std::int64_t found) {
  if (found == contractVersion()) return;
  refuse(op.name, ": ", origin, " has version ", found,
         " of the operators' contract, this plugin has version ", contractVersion(), ": ",
         found > contractVersion() ? "build the plugin again from the newer sources"
                                   : "build the engine again with this plugin");
}

Attributes Attributes::read(const OpRule& op, const std::vector<Field>& fields) {
  const Field* version = findField(fields, kContractVersionField);
  if (version == nullptr) {
    refuse(op.name, ": the node does not say which version of the contract it follows (attribute ",
           kContractVersionField, "): it is not of an engine's graph");
  }
  const AttributeRule rule = {
      kContractVersionField, AttributeType::kInteger, true, 0, 1, kNoMinimum, {}};
  requireContractVersion(op, "the graph", valueOf(op, rule, *version).integers.at(0));
  requireKnown(op, fields);
  std::vector<AttributeValue> values;
  for (const AttributeRule& attribute : op.attributes) {
    const Field* field = findField(fields, attribute.name);
    values.push_back(field == nullptr ? defaultOf(op, attribute) : valueOf(op, attribute, *field));
  }
  return take(op, std::move(values));
}

Attributes Attributes::take(const OpRule& op, std::vector<AttributeValue> values) {
  for (std::size_t i = 0; i < op.attributes.size(); ++i) {
    const AttributeRule& rule = op.attributes[i];
    if (rule.type == AttributeType::kNumber) {
      requireNumber(op, rule, values.at(i).number);
      continue;
    }
    for (const std::int64_t integer : values.at(i).integers) requireInteger(op, rule, integer);
  }
  return Attributes(op, std::move(values));
}

const AttributeValue& Attributes::find(const char* name) const {
  for (std::size_t i = 0; i < op_->attributes.size(); ++i) {
    if (std::strcmp(op_->attributes[i].name, name) == 0) return values_[i];
  }
  refuse(op_->name, ": the contract has no attribute ", name);
}

}  // namespace s6::plugin
