// SPDX-License-Identifier: MIT
#include "s6/types.h"

extern "C" const char* s6_status_text(S6Status status) {
  switch (status) {
    case S6_STATUS_OK:
      return "ok";
    case S6_STATUS_NULL_POINTER:
      return "a required pointer is null";
    case S6_STATUS_BAD_SIZE:
      return "a size is negative, zero where it must not be, or beyond what the kernels accept";
    case S6_STATUS_BAD_STRIDE:
      return "a stride is negative or shorter than the row it steps over";
    case S6_STATUS_BAD_DTYPE:
      return "the element type is not float32, float16 or bfloat16";
    case S6_STATUS_MISALIGNED:
      return "a pointer is not aligned to its element";
    case S6_STATUS_BAD_ABI:
      return "struct_size does not match this library: rebuild the caller or the library";
    case S6_STATUS_BAD_VARIANT:
      return "the named kernel variant cannot run this problem";
    case S6_STATUS_LAUNCH_FAILED:
      return "CUDA refused the launch";
    case S6_STATUS_NO_DEVICE:
      return "no usable CUDA device";
  }
  return "unknown status";
}

extern "C" const char* s6_version(void) { return "0.1.0"; }
