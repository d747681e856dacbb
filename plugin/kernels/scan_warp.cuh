// SPDX-License-Identifier: MIT
/*!
 * \file scan_warp.cuh
 * \brief What the warps of the tuned scans use: matrix moves that transpose, and ways to keep the
 * compiler from moving things.
 *
 * Shared memory is named by its 32-bit address: the kernels compute each offset once, because the
 * compiler, short of registers, would compute them anew in every tile.
 */
#pragma once

#include <cstdint>

namespace s6 {

//! Keeps a value in its register: the compiler no longer knows how to compute it again.
__device__ __forceinline__ void keepInRegister(uint32_t& value) { asm volatile("" : "+r"(value)); }

/*!
 * Four 8x8 matrices of 16-bit values, transposed on the way: each lane names a row of 16 bytes
 * (lanes 0-7 those of the first matrix, and so on) and gets column lane / 4, rows 2 (lane % 4) and
 * the next, of each.
 */
__device__ __forceinline__ void loadTransposed(uint32_t (&out)[4], uint32_t row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(row)
               : "memory");
}

//! The same for two matrices; lanes 0-15 name the rows.
__device__ __forceinline__ void loadTransposed(uint32_t (&out)[2], uint32_t row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
               : "=r"(out[0]), "=r"(out[1])
               : "r"(row)
               : "memory");
}

//! Transposes an 8x8 matrix that lies in the lanes: row lane / 4, columns 2 (lane % 4) and the
//! next.
__device__ __forceinline__ uint32_t transposeMatrix(uint32_t values) {
  uint32_t transposed;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(transposed) : "r"(values));
  return transposed;
}

//! 1, as a number that the compiler does not know: a loop of so many rounds keeps instructions
//! from moving into or out of it.
__device__ __forceinline__ int opaqueOne() {
  int one = 1;
  asm volatile("" : "+r"(one));
  return one;
}

}  // namespace s6
