// SPDX-License-Identifier: MIT
/*!
 * \file tensor_cores.cuh
 * \brief PTX of the tensor cores: fragments from shared memory, products of 16 x 8 tiles.
 *
 * Fragments and which lane holds what: PTX ISA, "Matrix multiply-accumulate operation using mma
 * instruction". Both products are there on any sm_80 or later.
 */
#pragma once

#include <cstdint>

namespace s6 {

//! Four 8 x 8 tiles of 16-bit elements; lane i gives the address of row i % 8 of tile i / 8.
__device__ __forceinline__ void loadMatrices(uint32_t (&to)[4], uint32_t shared) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(shared));
}

//! d = a b + c in int32: 16 tokens x 8 rows over 32 columns of int8.
__device__ __forceinline__ void multiplyAdd(uint32_t (&d)[4], const uint32_t (&a)[4],
                                            const uint32_t* b, const uint32_t (&c)[4]) {
  asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%10, %11, %12, %13};"
      : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "r"(c[0]), "r"(c[1]),
        "r"(c[2]), "r"(c[3]));
}

//! d += a b in float32: 16 tokens x 8 rows over 16 columns of float16.
__device__ __forceinline__ void multiplyAdd(float (&d)[4], const uint32_t (&a)[4],
                                            const uint32_t* b) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

/*!
 * Which of 8 kTiles rows of a matrix is column `column` of the product's tile `tile`: dealt so that
 * the two results of a lane in each tile belong to adjoining rows.
 */
template <int kTiles = 2>
__device__ __forceinline__ int dealtRow(int tile, int column) {
  return (column >> 1) * 2 * kTiles + tile * 2 + (column & 1);
}

}  // namespace s6
