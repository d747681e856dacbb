// SPDX-License-Identifier: MIT
/*!
 * \file shared_memory.cuh
 * \brief Addresses in shared memory, and copies into it that pass no registers (cp.async).
 */
#pragma once

#include <cstdint>

namespace s6 {

__device__ __forceinline__ uint32_t sharedAddress(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

template <int kBytes>
__device__ __forceinline__ void copyAsync(uint32_t to, const void* from) {
  if constexpr (kBytes == 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(to), "l"(from), "n"(kBytes)
                 : "memory");
  }
}

//! What a copy leaves on its way: nothing but itself in L2; its line in L1, where other warps want
//! the rest of it soon; the 256 bytes around it in L2, where the next copies take the rest.
enum class Leaving { kItself, kLine, kSurroundings };

//! 16 bytes, or zeros instead if there is nothing to copy.
template <Leaving kLeaving = Leaving::kItself>
__device__ __forceinline__ void copyOrZeroAsync(uint32_t to, const void* from, bool exists) {
  const int bytes = exists ? 16 : 0;
  if constexpr (kLeaving == Leaving::kSurroundings) {
    asm volatile("cp.async.cg.shared.global.L2::256B [%0], [%1], 16, %2;" ::"r"(to), "l"(from),
                 "r"(bytes)
                 : "memory");
  } else if constexpr (kLeaving == Leaving::kLine) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes)
                 : "memory");
  } else {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes)
                 : "memory");
  }
}

__device__ __forceinline__ void commitCopies() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}

//! Waits until at most kPending groups of this thread are still under way.
template <int kPending>
__device__ __forceinline__ void waitCopies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

}  // namespace s6
