// SPDX-License-Identifier: MIT
/*!
 * \file recorded_calls.h
 * \brief The S6 library without a GPU: its launches check their problem, as they always do, and
 *        write it down.
 */
#pragma once

#include <cstddef>
#include <variant>
#include <vector>

#include "s6/causal_conv1d.h"
#include "s6/decode.h"
#include "s6/prefill.h"
#include "s6/quant_linear.h"
#include "s6/selection.h"
#include "s6/selective_scan.h"

namespace s6::test {

struct Copy {
  void* to;
  const void* from;
  std::size_t bytes;
};
struct Clear {
  void* at;
  std::size_t bytes;
};

using Event =
    std::variant<Copy, Clear, S6CausalConv1d, S6SelectiveScan, S6QuantLinear, S6EmbeddingRows,
                 S6AddRmsNorm, S6SliceNorms, S6Selection, S6Dequantise, S6Convert, S6Decode>;

//! What was enqueued since somebody emptied it.
extern std::vector<Event> events;

//! While true, every launch is refused as by a GPU without room.
extern bool gpu_is_full;

}  // namespace s6::test
