// SPDX-License-Identifier: MIT
//! \file operators.h
//! \brief What each op does with its tensors: a call of the S6 library or a few.
#pragma once

#include <cstddef>

#include "call.h"

namespace s6::plugin {

void runCausalConv1d(const Call& call);
std::size_t causalConv1dWorkspace(const Call& call);
void runSelectiveScan(const Call& call);
void runQuantLinear(const Call& call);
void runQuantEmbedding(const Call& call);
void runQuantMatrix(const Call& call);
void runAddRmsNorm(const Call& call);
void runSliceNorms(const Call& call);
void runSelection(const Call& call);
void runMambaStep(const Call& call);
std::size_t mambaStepWorkspace(const Call& call);

struct OpCode {
  const char* name;
  void (*run)(const Call&);
  std::size_t (*workspace)(const Call&);  //!< Bytes; null: none.
};

//! The code of an op of the contract.
const OpCode& codeOf(const OpRule& op);

}  // namespace s6::plugin
