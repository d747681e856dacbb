// SPDX-License-Identifier: MIT
//! \file host_device.h
//! \brief S6_HOST_DEVICE: functions that kernels and plain host code both call.
#pragma once

#if defined(__CUDACC__)
#define S6_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define S6_HOST_DEVICE inline
#endif
