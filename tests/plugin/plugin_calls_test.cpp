// SPDX-License-Identifier: MIT
// What each op of the plugin asks of the kernels: addresses, strides, sizes, order. No GPU needed.
#include <string>
#include <vector>

#include "plugin_node.h"
#include "recorded_calls.h"

namespace {

using namespace s6::test;

char* const kWorkspace = address(99);

void run(const Adaptor& adaptor, const std::vector<Tensor>& inputs,
         const std::vector<Tensor>& outputs) {
  events.clear();
  adaptor.rehearse(inputs, outputs);
  S6_EXPECT(events.empty());  // A rehearsal enqueues nothing.
  adaptor.enqueue(inputs, outputs, kWorkspace, nullptr);
}

//! The i-th thing that was enqueued, if it is of the kind.
template <typename Kind>
Kind event(std::size_t i) {
  const Kind* found = i < events.size() ? std::get_if<Kind>(&events[i]) : nullptr;
  S6_EXPECT(found != nullptr);
  return found == nullptr ? Kind{} : *found;
}

void convolutionWithStatesOfItsType() {
  const Adaptor adaptor = Fields().integer("x_begin", 96).adaptor("CausalConv1d");
  const std::vector<Tensor> inputs = {tensor(kHalf, {2, 7, 200}, 1), tensor(kFloat, {4, 96}, 2),
                                      tensor(kFloat, {96}, 3), tensor(kHalf, {2, 3, 96}, 4)};
  const std::vector<Tensor> outputs = {tensor(kHalf, {2, 7, 96}, 5), tensor(kHalf, {2, 3, 96}, 6)};
  S6_EXPECT(adaptor.workspaceBytes(inputs, outputs) == 0);
  run(adaptor, inputs, outputs);
  S6_EXPECT(events.size() == 1);
  const auto p = event<S6CausalConv1d>(0);
  S6_EXPECT(p.dtype == S6_FLOAT16 && p.weight_dtype == S6_FLOAT32 && p.silu == 1);
  S6_EXPECT(p.b == 2 && p.l == 7 && p.d == 96 && p.k == 4);
  S6_EXPECT(p.x == address(1) + 2 * 96 && p.x_row == 200);
  S6_EXPECT(p.weight == address(2) && p.bias == address(3));
  S6_EXPECT(p.state_in == address(4) && p.y == address(5) && p.state_out == address(6));
  EXPECT_REFUSAL(run(Fields().integer("x_begin", 105).adaptor("CausalConv1d"), inputs, outputs),
                 "x has 200 columns", "105 to 201");
}

void convolutionWithStatesInFloat32() {
  const Adaptor adaptor = Fields().adaptor("CausalConv1d");
  const std::vector<Tensor> inputs = {tensor(kHalf, {2, 7, 96}, 1), tensor(kFloat, {4, 96}, 2),
                                      tensor(kFloat, {96}, 3), tensor(kFloat, {2, 3, 96}, 4)};
  const std::vector<Tensor> outputs = {tensor(kHalf, {2, 7, 96}, 5), tensor(kFloat, {2, 3, 96}, 6)};
  S6_EXPECT(adaptor.workspaceBytes(inputs, outputs) == 2 * 2 * 3 * 96);
  run(adaptor, inputs, outputs);
  S6_EXPECT(events.size() == 3);
  const auto narrow = event<S6Convert>(0);
  S6_EXPECT(narrow.from_dtype == S6_FLOAT32 && narrow.to_dtype == S6_FLOAT16);
  S6_EXPECT(narrow.count == 2 * 3 * 96 && narrow.x == address(4) && narrow.y == kWorkspace);
  const auto p = event<S6CausalConv1d>(1);
  S6_EXPECT(p.state_in == kWorkspace && p.state_out == kWorkspace);
  const auto widen = event<S6Convert>(2);
  S6_EXPECT(widen.from_dtype == S6_FLOAT16 && widen.to_dtype == S6_FLOAT32);
  S6_EXPECT(widen.count == 2 * 3 * 96 && widen.x == kWorkspace && widen.y == address(6));
}

void scan() {
  const Adaptor adaptor = Fields()
                              .integer("B_begin", 6)
                              .integer("C_begin", 22)
                              .integer("z_begin", 96)
                              .integer("sm_count", 8)
                              .adaptor("SelectiveScan");
  std::vector<Tensor> inputs = {
      tensor(kHalf, {2, 7, 96}, 1),  tensor(kHalf, {2, 7, 96}, 2), tensor(kFloat, {16, 96}, 3),
      tensor(kHalf, {2, 7, 40}, 4),  tensor(kHalf, {2, 7, 40}, 4), tensor(kFloat, {96}, 6),
      tensor(kHalf, {2, 7, 192}, 7), tensor(kFloat, {96}, 8),      tensor(kFloat, {2, 16, 96}, 9)};
  const std::vector<Tensor> outputs = {tensor(kHalf, {2, 7, 96}, 10),
                                       tensor(kFloat, {2, 16, 96}, 9)};
  run(adaptor, inputs, outputs);
  const auto p = event<S6SelectiveScan>(0);
  S6_EXPECT(p.dtype == S6_FLOAT16 && p.delta_softplus == 1 && p.sm_count == 8);
  S6_EXPECT(p.b == 2 && p.l == 7 && p.d == 96 && p.n == 16);
  S6_EXPECT(p.u == address(1) && p.delta == address(2));
  S6_EXPECT(reinterpret_cast<const char*>(p.A) == address(3));
  S6_EXPECT(p.B == address(4) + 2 * 6 && p.B_row == 40);
  S6_EXPECT(p.C == address(4) + 2 * 22 && p.C_row == 40);
  S6_EXPECT(p.z == address(7) + 2 * 96 && p.z_row == 192);
  S6_EXPECT(reinterpret_cast<const char*>(p.D) == address(6));
  S6_EXPECT(reinterpret_cast<const char*>(p.delta_bias) == address(8));
  S6_EXPECT(p.state_in == p.state_out && p.y == address(10));
  inputs[4] = tensor(kHalf, {2, 7, 37}, 4);
  EXPECT_REFUSAL(run(adaptor, inputs, outputs), "C has 37 columns", "22 to 38");
  inputs[4] = tensor(kHalf, {2, 7, 15}, 4);
  EXPECT_REFUSAL(run(adaptor, inputs, outputs), "C is float16 (2, 7, 15)", "[b l n+]", "n is 16");
  inputs[4] = tensor(kHalf, {2, 8, 40}, 4);
  EXPECT_REFUSAL(run(adaptor, inputs, outputs), "C is float16 (2, 8, 40)", "l is 7");
  inputs[4] = tensor(kHalf, {2, 40}, 4);
  EXPECT_REFUSAL(run(adaptor, inputs, outputs), "C is float16 (2, 40)", "[b l n+]");
}

void linearInParts() {
  const std::vector<Tensor> outputs = {tensor(kFloat, {19, 24}, 4)};
  std::vector<Tensor> inputs = {tensor(kHalf, {19, 64}, 1), tensor(kInt, {40, 8}, 2),
                                tensor(kHalf, {2, 40}, 3)};
  run(linearFields(4).adaptor("QuantLinear"), inputs, outputs);
  S6_EXPECT(events.size() == 3);
  int first = 0;
  for (std::size_t i = 0; i < events.size(); ++i) {
    const auto p = event<S6QuantLinear>(i);
    S6_EXPECT(p.tokens == (i < 2 ? 8 : 3) && p.rows == 24 && p.columns == 64);
    S6_EXPECT(p.bits == 4 && p.group_size == 32 && p.scale_group == 40);
    S6_EXPECT(p.weight == address(2) && p.scales == address(3));
    S6_EXPECT(p.y_dtype == S6_FLOAT32 && p.add == 0);
    S6_EXPECT(p.x == address(1) + 2 * 64 * first && p.y == address(4) + 4 * 24 * first);
    first += p.tokens;
  }
  inputs[2] = tensor(kHalf, {4, 40}, 3);
  EXPECT_REFUSAL(run(linearFields(4).adaptor("QuantLinear"), inputs, outputs), "scales is",
                 "groups of 32");
  inputs.pop_back();
  EXPECT_REFUSAL(run(linearFields(4).adaptor("QuantLinear"), inputs, outputs), "need scales");
  EXPECT_REFUSAL(run(linearFields(8).adaptor("QuantLinear"), inputs, outputs), "rows of 64",
                 "16 elements");
  inputs[1] = tensor(kHalf, {40, 64}, 2);
  run(linearFields(16).adaptor("QuantLinear"), inputs, outputs);
  S6_EXPECT(event<S6QuantLinear>(0).scales == nullptr);
  inputs[1] = tensor(kHalf, {20, 64}, 2);
  EXPECT_REFUSAL(run(linearFields(16).adaptor("QuantLinear"), inputs, outputs),
                 "24 outputs of a matrix with 20 rows");
}

void tablesAndMatrices() {
  const auto fields = [] { return Fields().integer("bits", 8).integer("group_size", 16); };
  const Adaptor embedding = fields().integer("m", 64).adaptor("QuantEmbedding");
  run(embedding, {tensor(kInt, {2, 7}, 1), tensor(kInt, {300, 16}, 2), tensor(kHalf, {4, 300}, 3)},
      {tensor(kFloat, {2, 7, 64}, 4)});
  const auto rows = event<S6EmbeddingRows>(0);
  S6_EXPECT(rows.tokens == 14 && rows.m == 64 && rows.vocab_rows == 300);
  S6_EXPECT(rows.bits == 8 && rows.group_size == 16);
  S6_EXPECT(rows.table == address(2) && rows.scales == address(3));
  S6_EXPECT(reinterpret_cast<const char*>(rows.token_ids) == address(1));
  S6_EXPECT(reinterpret_cast<const char*>(rows.x) == address(4));

  const Adaptor matrix = fields().integer("columns", 64).adaptor("QuantMatrix");
  run(matrix, {tensor(kInt, {40, 16}, 1), tensor(kHalf, {4, 40}, 2)}, {tensor(kHalf, {40, 64}, 3)});
  const auto p = event<S6Dequantise>(0);
  S6_EXPECT(p.rows == 40 && p.columns == 64 && p.bits == 8 && p.group_size == 16);
  S6_EXPECT(p.words == address(1) && p.scales == address(2) && p.y == address(3));
}

void norms() {
  const Adaptor norm = Fields().number("eps", 1e-5f).adaptor("AddRmsNorm");
  std::vector<Tensor> inputs = {tensor(kFloat, {7, 64}, 1), tensor(kFloat, {64}, 2)};
  const std::vector<Tensor> outputs = {tensor(kHalf, {7, 64}, 4), tensor(kFloat, {7, 64}, 5)};
  run(norm, inputs, outputs);
  S6_EXPECT(event<S6AddRmsNorm>(0).delta == nullptr);
  inputs.push_back(tensor(kHalf, {7, 64}, 3));
  run(norm, inputs, outputs);
  const auto p = event<S6AddRmsNorm>(0);
  S6_EXPECT(p.rows == 7 && p.m == 64 && p.eps == 1e-5f && p.x_row == 0);
  S6_EXPECT(reinterpret_cast<const char*>(p.x) == address(1));
  S6_EXPECT(reinterpret_cast<const char*>(p.weight) == address(2));
  S6_EXPECT(p.delta == address(3) && p.y == address(4));
  S6_EXPECT(reinterpret_cast<const char*>(p.sum) == address(5));

  const Adaptor slices =
      Fields().integer("r", 8).integer("n", 16).number("eps", 0).adaptor("SliceNorms");
  run(slices, {tensor(kHalf, {7, 48}, 1)}, {tensor(kHalf, {7, 48}, 2)});
  S6_EXPECT(events.size() == 2);
  const auto copy = event<Copy>(0);
  S6_EXPECT(copy.from == address(1) && copy.to == address(2) && copy.bytes == 2 * 7 * 48);
  const auto q = event<S6SliceNorms>(1);
  S6_EXPECT(q.x == address(2) && q.x_row == 48 && q.rows == 7 && q.r == 8 && q.n == 16);
  run(slices, {tensor(kHalf, {7, 48}, 2)}, {tensor(kHalf, {7, 48}, 2)});
  S6_EXPECT(events.size() == 1);
  EXPECT_REFUSAL(run(slices, {tensor(kHalf, {7, 39}, 1)}, {tensor(kHalf, {7, 39}, 2)}),
                 "39 columns", "0 to 40");
}

void selection() {
  const Adaptor node = Fields().integer("n", 16).adaptor("Selection");
  const std::vector<Tensor> inputs = {tensor(kHalf, {7, 256}, 1), tensor(kHalf, {64, 256}, 2),
                                      tensor(kHalf, {256, 32}, 3)};
  const std::vector<Tensor> outputs = {tensor(kHalf, {7, 256}, 4), tensor(kHalf, {7, 16}, 5),
                                       tensor(kHalf, {7, 16}, 6)};
  run(node, inputs, outputs);
  S6_EXPECT(events.size() == 1);
  const auto p = event<S6Selection>(0);
  S6_EXPECT(p.tokens == 7 && p.d == 256 && p.r == 32 && p.n == 16);
  S6_EXPECT(p.u == address(1) && p.x_proj == address(2) && p.dt_proj == address(3));
  S6_EXPECT(p.delta == address(4) && p.B == address(5) && p.C == address(6));
  std::vector<Tensor> short_of_rows = inputs;
  short_of_rows[1] = tensor(kHalf, {63, 256}, 2);
  EXPECT_REFUSAL(run(node, short_of_rows, outputs), "63 rows", "r + 2 n, 64");
  std::vector<Tensor> odd_rank = inputs;
  odd_rank[1] = tensor(kHalf, {56, 256}, 2), odd_rank[2] = tensor(kHalf, {256, 24}, 3);
  EXPECT_REFUSAL(node.rehearse(odd_rank, outputs), "the kernels refuse");
}

void refusalsOfTheKernels() {
  const Adaptor norm = Fields().number("eps", 0).adaptor("AddRmsNorm");
  const std::vector<Tensor> inputs = {tensor(kFloat, {7, 60}, 1), tensor(kFloat, {60}, 2)};
  const std::vector<Tensor> outputs = {tensor(kHalf, {7, 60}, 4), tensor(kFloat, {7, 60}, 5)};
  // The kernels' own check, in the build phase already.
  EXPECT_REFUSAL(norm.rehearse(inputs, outputs), "the kernels refuse", "x float32 (7, 60)");
  EXPECT_REFUSAL(norm.rehearse(outputs, outputs), "x is float16", "does not fit");
  const Adaptor slices =
      Fields().integer("r", 8).integer("n", 16).number("eps", 0).adaptor("SliceNorms");
  const Tensor x = tensor(kHalf, {7, 40}, 1);
  gpu_is_full = true;
  EXPECT_REFUSAL(slices.enqueue({x}, {x}, nullptr, nullptr), "CUDA refused the launch");
  EXPECT_REFUSAL(slices.enqueue({x}, {tensor(kHalf, {7, 40}, 2)}, nullptr, nullptr),
                 "CUDA refused to copy");
  gpu_is_full = false;
}

}  // namespace

int main() {
  convolutionWithStatesOfItsType();
  convolutionWithStatesInFloat32();
  scan();
  linearInParts();
  tablesAndMatrices();
  norms();
  selection();
  refusalsOfTheKernels();
  return s6::test::verdict();
}
