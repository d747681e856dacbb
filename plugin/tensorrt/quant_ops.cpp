// SPDX-License-Identifier: MIT
//! \file quant_ops.cpp
//! \brief The ops on matrices as they are stored: product, rows of a table, the whole as float16.
#include <algorithm>

#include "operators.h"
#include "packed_matrix.h"
#include "s6/prefill.h"
#include "s6/quant_linear.h"

namespace s6::plugin {

void runQuantLinear(const Call& call) {
  enum { kX, kWeight };
  const std::int32_t tokens = call.sizes.of("t"), outputs = call.sizes.of("outputs");
  S6QuantLinear p = {};
  p.rows = outputs, p.columns = call.sizes.of("columns");
  p.scale_group = call.sizes.of("rows");
  if (outputs > p.scale_group) {
    refuse(call.op.name, ": ", outputs, " outputs of a matrix with ", p.scale_group, " rows");
  }
  const PackedMatrix matrix = packedMatrix(call, kWeight, p.columns);
  p.bits = matrix.bits, p.group_size = matrix.group_size;
  p.weight = matrix.data, p.scales = matrix.scales;
  p.y_dtype = S6_FLOAT32;
  for (std::int32_t first = 0; first < tokens; first += S6_QUANT_LINEAR_MAX_TOKENS) {
    p.tokens = std::min(tokens - first, S6_QUANT_LINEAR_MAX_TOKENS);
    p.x =
        advance(call.input<const void>(kX), ElementType::kFloat16, std::int64_t{first} * p.columns);
    p.y = advance(call.output<void>(0), ElementType::kFloat32, std::int64_t{first} * outputs);
    submit(call, p, s6_quant_linear_check, s6_quant_linear);
  }
}

void runQuantEmbedding(const Call& call) {
  enum { kTokenIds, kTable };
  S6EmbeddingRows p = {};
  const std::int64_t tokens = std::int64_t{call.sizes.of("b")} * call.sizes.of("l");
  if (tokens > INT32_MAX) refuse(call.op.name, ": ", tokens, " tokens");
  p.tokens = static_cast<std::int32_t>(tokens);
  p.m = call.sizes.of("m"), p.vocab_rows = call.sizes.of("vocab");
  const PackedMatrix table = packedMatrix(call, kTable, p.m);
  p.bits = table.bits, p.group_size = table.group_size;
  p.table = table.data, p.scales = table.scales;
  p.token_ids = call.input<const std::int32_t>(kTokenIds);
  p.x = call.output<float>(0);
  submit(call, p, s6_embedding_rows_check, s6_embedding_rows);
}

void runQuantMatrix(const Call& call) {
  enum { kWords };
  S6Dequantise p = {};
  p.rows = call.sizes.of("rows"), p.columns = call.sizes.of("columns");
  const PackedMatrix matrix = packedMatrix(call, kWords, p.columns);
  p.bits = matrix.bits, p.group_size = matrix.group_size;
  p.words = matrix.data, p.scales = matrix.scales;
  p.y = call.output<void>(0);
  submit(call, p, s6_dequantise_check, s6_dequantise);
}

}  // namespace s6::plugin
