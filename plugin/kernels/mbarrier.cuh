// SPDX-License-Identifier: MIT
/*!
 * \file mbarrier.cuh
 * \brief Barriers in shared memory that warps arrive at and wait for on their own.
 *
 * A barrier is named by its 32-bit shared address; its phases alternate between parity 0 and 1.
 */
#pragma once

#include <cstdint>

namespace s6 {

__device__ __forceinline__ void startBarrier(uint32_t barrier, int arrivals) {
  asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}

__device__ __forceinline__ bool isOver(uint32_t barrier, int parity) {
  uint32_t is_over;
  asm volatile(
      "{ .reg .pred p; mbarrier.test_wait.parity.shared.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
      : "=r"(is_over)
      : "r"(barrier), "r"(parity)
      : "memory");
  return is_over != 0;
}

//! Waits until the phase of this parity is over. A warp that has time sleeps between its looks:
//! each look takes an issue slot and a turn of the shared memory from those who compute.
template <int kSleepNanoseconds>
__device__ __forceinline__ void awaitBarrier(uint32_t barrier, int parity) {
  while (!isOver(barrier, parity)) {
    if constexpr (kSleepNanoseconds > 0) __nanosleep(kSleepNanoseconds);
  }
}

__device__ __forceinline__ void arrive(uint32_t barrier) {
  asm volatile("{ .reg .b64 t; mbarrier.arrive.shared.b64 t, [%0]; }" ::"r"(barrier) : "memory");
}

}  // namespace s6
