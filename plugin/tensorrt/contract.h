// SPDX-License-Identifier: MIT
/*!
 * \file contract.h
 * \brief What plugin/ops.json says of the engine forms, as tables: see write_contract.py.
 */
#pragma once

#include <cstdint>
#include <limits>
#include <string>
#include <vector>

namespace s6::plugin {

enum class AttributeType { kInteger, kIntegers, kNumber };

constexpr double kNoMinimum = -std::numeric_limits<double>::infinity();

struct AttributeRule {
  const char* name;
  AttributeType type;
  bool required;
  double otherwise;                   //!< Its value where it is absent and not required.
  int length;                         //!< Values of kIntegers; 1 for the others.
  double minimum;                     //!< Of each value.
  std::vector<std::int64_t> allowed;  //!< Empty: any value from the minimum up.
};

//! Element types by their letters in the contract.
enum class TypeRule { kActivation, kState, kWeight, kFloat32, kFloat16, kInt32 };

//! A size that several dimensions of a node share.
struct SymbolRule {
  const char* name;
  int attribute;  //!< Number of the attribute that states it, or -1.
};

//! Where the size of an output comes from: an input's axis, or an attribute; the other is -1.
struct DimensionSource {
  int input, axis, attribute;
};

struct DimensionRule {
  int symbol;
  int offset;              //!< The dimension is the symbol plus this.
  bool or_more;            //!< It may be larger.
  DimensionSource source;  //!< Of outputs only.
};

struct TensorRule {
  const char* name;
  TypeRule type;
  bool optional;
  const char* shape;  //!< As the contract writes it.
  std::vector<DimensionRule> dimensions;
};

struct OpRule {
  const char* name;
  std::vector<AttributeRule> attributes;
  std::vector<SymbolRule> symbols;
  std::vector<TensorRule> inputs, outputs;
};

//! The version of the contract that this plugin was built for.
int contractVersion();

//! All ops, in the order of the contract.
const std::vector<OpRule>& contractOps();

/*!
 * \brief The rules of one op.
 * \throws Refusal The contract has no such op.
 */
const OpRule& findOp(const std::string& name);

}  // namespace s6::plugin
