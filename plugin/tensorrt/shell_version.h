// SPDX-License-Identifier: MIT
//! \file shell_version.h
//! \brief TensorRT's headers, and which of its interfaces they have.
#pragma once

#include <NvInfer.h>

#if NV_TENSORRT_MAJOR < 8 || (NV_TENSORRT_MAJOR == 8 && NV_TENSORRT_MINOR < 5) || \
    NV_TENSORRT_MAJOR == 9
#error "no JetPack has this TensorRT: build against 8.5, 8.6, 10 or 11"
#endif

//! IPluginV3, bfloat16, and int64 fields came with 10.
#define S6_HAS_PLUGIN_V3 (NV_TENSORRT_MAJOR >= 10)

//! IPluginRegistry::loadLibrary came with 8.6.
#define S6_HAS_PLUGIN_LIBRARIES (S6_HAS_PLUGIN_V3 || NV_TENSORRT_MINOR >= 6)

//! Whether the library registers its plugins when it is loaded like any other, for which it must be
//! linked to libnvinfer. For 8.5, and by hand for 8.6.0, whose loadLibrary has another place in the
//! registry's interface than the Python bindings of 8.6.1 expect.
#ifndef S6_REGISTER_ON_LOAD
#define S6_REGISTER_ON_LOAD (!S6_HAS_PLUGIN_LIBRARIES)
#endif
