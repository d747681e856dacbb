// SPDX-License-Identifier: MIT
//! \file shell_entry.h
//! \brief What the entry points of the library share, whichever interface it has.
#pragma once

#include <memory>
#include <vector>

#include "contract.h"
#include "shell_log.h"

//! The few symbols that leave the library; exports.map lists them too.
#define S6_ENTRY_POINT extern "C" __attribute__((visibility("default")))

namespace s6::plugin {

/*!
 * \brief One creator for each op, for as long as the process lives.
 * \tparam Creator Made from an OpRule.
 * \tparam Interface What TensorRT calls it by.
 */
template <typename Creator, typename Interface>
const std::vector<Interface*>& creators() {
  static const std::vector<Interface*> all = [] {
    static std::vector<std::unique_ptr<Creator>> owned;
    std::vector<Interface*> found;
    for (const OpRule& op : contractOps()) {
      owned.push_back(std::make_unique<Creator>(op));
      found.push_back(owned.back().get());
    }
    return found;
  }();
  return all;
}

//! The library's first line in the log: versions of all that must fit.
void logVersions() noexcept;

}  // namespace s6::plugin
