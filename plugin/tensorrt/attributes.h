// SPDX-License-Identifier: MIT
//! \file attributes.h
//! \brief The attributes of one node: read from fields, checked against the contract.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "contract.h"

namespace s6::plugin {

//! The field that every node has beside its attributes.
constexpr const char* kContractVersionField = "contract_version";

enum class FieldType { kInt32, kInt64, kFloat32, kFloat64, kOther };

//! A field as TensorRT's parser or a Python caller hands it over.
struct Field {
  const char* name;
  FieldType type;
  const void* data;
  int length;  //!< Values.
};

//! Values of one attribute: whole numbers, or one number.
struct AttributeValue {
  std::vector<std::int64_t> integers;
  double number = 0.0;
};

class Attributes {
 public:
  /*!
   * \brief Reads the attributes of a node in an engine's graph.
   * \throws Refusal Of another contract version, missing, unknown, of a wrong type or value.
   */
  static Attributes read(const OpRule& op, const std::vector<Field>& fields);

  /*!
   * \brief Takes values in the order of the contract.
   * \throws Refusal A value is not allowed.
   */
  static Attributes take(const OpRule& op, std::vector<AttributeValue> values);

  //! The names below are those of the contract; another is a mistake of this library's.
  std::int64_t integer(const char* name) const { return find(name).integers.at(0); }
  const std::vector<std::int64_t>& integers(const char* name) const { return find(name).integers; }
  float number(const char* name) const { return static_cast<float>(find(name).number); }

  const std::vector<AttributeValue>& values() const { return values_; }

 private:
  Attributes(const OpRule& op, std::vector<AttributeValue> values)
      : op_(&op), values_(std::move(values)) {}
  const AttributeValue& find(const char* name) const;

  const OpRule* op_;
  std::vector<AttributeValue> values_;
};

/*!
 * \brief Refuses a contract version that is not this plugin's.
 * \param origin What has that version, for the sentence.
 */
void requireContractVersion(const OpRule& op, const char* origin, std::int64_t found);

}  // namespace s6::plugin
