// SPDX-License-Identifier: MIT
//! \file device_memory.h
//! \brief The two things that the adaptor asks of CUDA itself. Enqueued; nothing waits.
#pragma once

#include <cstddef>

#include "s6/types.h"

namespace s6::plugin {

//! Copies on the GPU. \return Whether CUDA took it.
bool copyOnDevice(void* to, const void* from, std::size_t bytes, S6Stream stream);

//! Writes zeros on the GPU. \return Whether CUDA took it.
bool clearOnDevice(void* at, std::size_t bytes, S6Stream stream);

}  // namespace s6::plugin
