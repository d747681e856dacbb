// SPDX-License-Identifier: MIT
/*!
 * \file scan_hand_over.cuh
 * \brief One warp gives another what it has written to shared memory.
 *
 * A named barrier of two warps at which only the taking one waits: the use of bar.arrive that the
 * PTX manual describes for producers and consumers. compute-sanitizer's racecheck does not follow
 * named barriers between some of a block's warps (docs/lab_note_scan.md); with S6_SANITIZE the
 * same hand-over goes through an mbarrier, which it does follow.
 */
#pragma once

#include <cstdint>

#ifdef S6_SANITIZE
#include "mbarrier.cuh"
#include "shared_memory.cuh"
#endif

namespace s6 {

#ifdef S6_SANITIZE

class HandOver {
 public:
  static constexpr int kCount = 16;

  //! For all threads of the block, before any of them gives or takes.
  static __device__ void start() {
    if (threadIdx.x == 0) {
      for (int i = 0; i < kCount; ++i) startBarrier(address(i), 32);
    }
    __syncthreads();
  }

  __device__ explicit HandOver(int barrier) : barrier_(address(barrier)) {}

  __device__ void give() const { arrive(barrier_); }
  __device__ void take() {
    awaitBarrier<0>(barrier_, parity_);
    parity_ ^= 1;
  }

 private:
  static __device__ uint32_t address(int barrier) {
    __shared__ uint64_t barriers[kCount];
    return sharedAddress(&barriers[barrier]);
  }

  uint32_t barrier_;
  int parity_ = 0;
};

#else

//! A block may use kCount of them, and no __syncthreads once one has been used.
class HandOver {
 public:
  static constexpr int kCount = 16;

  static __device__ __forceinline__ void start() {}

  __device__ __forceinline__ explicit HandOver(int barrier) : barrier_(barrier) {}

  __device__ __forceinline__ void give() const {
    asm volatile("bar.arrive %0, 64;" ::"r"(barrier_) : "memory");
  }
  __device__ __forceinline__ void take() {
    asm volatile("bar.sync %0, 64;" ::"r"(barrier_) : "memory");
  }

 private:
  int barrier_;
};

#endif

}  // namespace s6
