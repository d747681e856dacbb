// SPDX-License-Identifier: MIT
/*!
 * \file sample.h
 * \brief The next token of each text, drawn from its logits: temperature, top-k, top-p, a seed.
 *
 * Tokens stand in the order of falling logits, equal ones by rising id. Kept are the first top_k of
 * them, and of these the fewest whose weights exp(logit / temperature) reach top_p of the sum. One
 * of the kept is drawn in proportion to its weight. Weights are integers, 2^40 for the largest, so
 * that sums do not depend on the order of addition and a seed repeats to the token; the random
 * numbers are Philox4x32-10 (Salmon et al., Parallel Random Numbers: As Easy as 1, 2, 3, 2011) with
 * the seed as key and the number of draws as counter. Call rules as in selective_scan.h.
 */
#ifndef S6_SAMPLE_H_
#define S6_SAMPLE_H_

#include "s6/types.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct S6Sample {
  size_t struct_size;  //!< sizeof(S6Sample).
  int32_t b;           //!< Texts; may be 0.
  int32_t vocab;       //!< Tokens that may be chosen.

  const float* logits;       //!< [b, vocab]; NaN counts as minus infinity.
  const float* temperature;  //!< [b]; 0 takes the most likely token, below 1e-6 counts as 1e-6.
  const int32_t* top_k;      //!< [b]; 0 keeps all.
  const float* top_p;        //!< [b]; 1 keeps all.
  const uint64_t* seed;      //!< [b]
  uint64_t* draws;           //!< [b] tokens drawn with this seed so far; each call adds one.
  int32_t* next_ids;         //!< [b]
  int64_t logits_row;        //!< Elements from one row of logits to the next; 0 means vocab.
} S6Sample;

//! Checks a problem on the host, without a device.
S6_API S6Status s6_sample_check(const S6Sample* problem);

//! Draws one token of each text.
S6_API S6Status s6_sample(const S6Sample* problem, S6Stream stream);

#ifdef __cplusplus
}
#endif
#endif  // S6_SAMPLE_H_
