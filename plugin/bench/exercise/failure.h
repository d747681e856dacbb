// SPDX-License-Identifier: MIT
//! \file failure.h
//! \brief How the exercise says that something is not as it should be: one exception, one sentence.
#pragma once

#include <sstream>
#include <stdexcept>

namespace s6::exercise {

class Failure : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

//! Throws a Failure with its parts written one after the other, unless the condition holds.
template <typename... Parts>
void require(bool holds, const Parts&... parts) {
  if (holds) return;
  std::ostringstream text;
  (text << ... << parts);
  throw Failure(text.str());
}

}  // namespace s6::exercise
