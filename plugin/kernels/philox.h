// SPDX-License-Identifier: MIT
/*!
 * \file philox.h
 * \brief Philox4x32-10: random numbers that are a function of a counter and a key.
 *
 * Salmon, Moraes, Dror, Shaw: Parallel Random Numbers: As Easy as 1, 2, 3 (SC 2011), section 3.3
 * and table 2. Host and device; a host test holds it to the authors' known answers.
 */
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define S6_ANYWHERE __host__ __device__ __forceinline__
#else
#define S6_ANYWHERE inline
#endif

namespace s6 {

struct Philox {
  uint32_t at[4];
};

//! Four random words for a counter of 128 and a key of 64 bits.
S6_ANYWHERE Philox philox(Philox counter, uint32_t key_low, uint32_t key_high) {
  constexpr uint64_t kMultiplier0 = 0xd2511f53u, kMultiplier1 = 0xcd9e8d57u;
  constexpr uint32_t kWeyl0 = 0x9e3779b9u, kWeyl1 = 0xbb67ae85u;
  for (int round = 0; round < 10; ++round) {
    const uint64_t product0 = kMultiplier0 * counter.at[0];
    const uint64_t product1 = kMultiplier1 * counter.at[2];
    counter = {{static_cast<uint32_t>(product1 >> 32) ^ counter.at[1] ^ key_low,
                static_cast<uint32_t>(product1),
                static_cast<uint32_t>(product0 >> 32) ^ counter.at[3] ^ key_high,
                static_cast<uint32_t>(product0)}};
    key_low += kWeyl0;
    key_high += kWeyl1;
  }
  return counter;
}

}  // namespace s6
