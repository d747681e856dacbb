// SPDX-License-Identifier: MIT
//! \file refusal.h
//! \brief How the adaptor says no: one exception with a sentence for the log; shells catch it.
#pragma once

#include <sstream>
#include <stdexcept>

namespace s6::plugin {

class Refusal : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

//! Throws a Refusal with its arguments written one after the other.
template <typename... Parts>
[[noreturn]] void refuse(const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  throw Refusal(text.str());
}

}  // namespace s6::plugin
