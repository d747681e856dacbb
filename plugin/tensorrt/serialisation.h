// SPDX-License-Identifier: MIT
//! \file serialisation.h
//! \brief A node's attributes as bytes of an engine file, and back.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "attributes.h"

namespace s6::plugin {

//! Bytes that `restore` reads.
std::vector<std::uint8_t> serialise(const OpRule& op, const Attributes& attributes);

/*!
 * \brief The attributes in some bytes.
 * \throws Refusal Not ours, of another contract version, of another op, cut short or damaged.
 */
Attributes restore(const OpRule& op, const void* bytes, std::size_t size);

}  // namespace s6::plugin
