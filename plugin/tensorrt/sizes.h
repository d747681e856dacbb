// SPDX-License-Identifier: MIT
//! \file sizes.h
//! \brief The letters of a node's shapes, read from its inputs and attributes and found to agree.
#pragma once

#include <cstdint>
#include <vector>

#include "attributes.h"
#include "tensor.h"

namespace s6::plugin {

class Sizes {
 public:
  /*!
   * \brief Reads every letter.
   * \throws Refusal A rank or a size that the contract does not allow.
   */
  Sizes(const OpRule& op, const Attributes& attributes, const std::vector<Tensor>& inputs);

  //! A size by its letter in the contract.
  std::int32_t of(const char* symbol) const;

 private:
  const OpRule* op_;
  std::vector<std::int64_t> values_;
};

}  // namespace s6::plugin
