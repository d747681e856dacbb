// SPDX-License-Identifier: MIT
//! \file refusals.h
//! \brief What a plugin must not take, and must say in the log. Needs no GPU.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "library.h"

namespace s6::exercise {

struct Refusal {
  std::string op, title;
  std::function<bool()> is_refused;
  std::vector<std::string> words;  //!< All in one line of the log.
};

//! \param library Outlives what is returned.
std::vector<Refusal> refusals(const Library& library);

/*!
 * \brief Tries one.
 * \return The line in the log.
 * \throws Failure It is not refused, or the log does not say why.
 */
std::string tryRefusal(const Library& library, const Refusal& refusal);

}  // namespace s6::exercise
