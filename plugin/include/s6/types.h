// SPDX-License-Identifier: MIT
/*!
 * \file types.h
 * \brief What every S6 call shares: element types, status codes, the stream, symbol visibility.
 *
 * Sizes use one alphabet everywhere: b batch, l length, d channels, n state size, k conv width.
 * All strides are in elements, not bytes.
 */
#ifndef S6_TYPES_H_
#define S6_TYPES_H_

#include <stddef.h>
#include <stdint.h>

#if defined(S6_BUILDING_LIBRARY)
#define S6_API __attribute__((visibility("default")))
#else
#define S6_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

//! The same type as cudaStream_t, so that this header needs no CUDA to be read.
typedef struct CUstream_st* S6Stream;

//! Element type of the activations; the scan state, A, D and the biases are float32 always.
typedef enum S6DataType { S6_FLOAT32 = 0, S6_FLOAT16 = 1, S6_BFLOAT16 = 2 } S6DataType;

typedef enum S6Status {
  S6_STATUS_OK = 0,
  S6_STATUS_NULL_POINTER = 1,   //!< A required pointer (or the problem itself) is null.
  S6_STATUS_BAD_SIZE = 2,       //!< A size is negative, zero where it must not be, or too large.
  S6_STATUS_BAD_STRIDE = 3,     //!< A stride is negative or shorter than the row it steps over.
  S6_STATUS_BAD_DTYPE = 4,      //!< An element type outside S6DataType.
  S6_STATUS_MISALIGNED = 5,     //!< A pointer is not aligned to its element.
  S6_STATUS_BAD_ABI = 6,        //!< struct_size does not match this library.
  S6_STATUS_BAD_VARIANT = 7,    //!< The named variant cannot run this problem.
  S6_STATUS_LAUNCH_FAILED = 8,  //!< CUDA refused the launch; see cudaGetLastError's text.
  S6_STATUS_NO_DEVICE = 9       //!< No usable CUDA device.
} S6Status;

//! A static sentence for a status; never null, also for numbers outside the enum.
S6_API const char* s6_status_text(S6Status status);

//! Library version, "major.minor.patch".
S6_API const char* s6_version(void);

#ifdef __cplusplus
}
#endif
#endif  // S6_TYPES_H_
