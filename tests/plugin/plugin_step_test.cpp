// SPDX-License-Identifier: MIT
// MambaStep: where it finds weights in their image, how it keeps states in place. No GPU needed.
#include <vector>

#include "plugin_node.h"
#include "recorded_calls.h"

namespace {

using namespace s6::test;

constexpr int kLine = 128;
constexpr int kM = 128, kD = 256, kN = 16, kR = 16, kVocab = 300, kVocabRows = 304, kLayers = 2;
constexpr int kLayerLines = 700, kImageLines = 1804;

//! Bits, group size, line, line of scales: the head is the embedding, as where they are tied.
const std::vector<int32_t> kMatrices = {8, 64, 0,   310, 4, 64, 400, 656, 4, 64, 672, 720,
                                        4, 16, 723, 739, 4, 64, 743, 871, 8, 64, 0,   310};
const std::vector<int32_t> kVectors = {879, 883, 915, 923, 931, 1059, 1800};

Fields fields() {
  return Fields()
      .integer("m", kM)
      .integer("n", kN)
      .integer("r", kR)
      .integer("vocab", kVocab)
      .integer("vocab_rows", kVocabRows)
      .number("norm_eps", 1e-5f)
      .number("mixer_norm_eps", 1e-6f)
      .integers("matrices", kMatrices)
      .integers("vectors", kVectors)
      .integer("layer_lines", kLayerLines)
      .integer("sm_count", 8);
}

std::vector<Tensor> inputs(int b = 2, int image_lines = kImageLines) {
  return {tensor(kInt, {b}, 1), tensor(kInt, {image_lines * kLine / 4}, 2),
          tensor(kFloat, {kLayers, b, 3, kD}, 3), tensor(kFloat, {kLayers, b, kN, kD}, 4)};
}

std::vector<Tensor> outputs(int b = 2, int conv = 7, int ssm = 8) {
  return {tensor(kFloat, {b, kVocab}, 5), tensor(kInt, {b}, 6),
          tensor(kFloat, {kLayers, b, 3, kD}, conv), tensor(kFloat, {kLayers, b, kN, kD}, ssm)};
}

bool liesAt(const void* data, int line) { return data == address(2) + line * kLine; }

bool matches(const S6Matrix& matrix, int position, bool layered) {
  const int32_t* wanted = &kMatrices[4 * static_cast<std::size_t>(position)];
  const int64_t step = layered ? kLayerLines * kLine : 0;
  return matrix.bits == wanted[0] && matrix.group_size == wanted[1] &&
         liesAt(matrix.data, wanted[2]) && liesAt(matrix.scales, wanted[3]) &&
         matrix.layer_bytes == step && matrix.scales_layer_bytes == step;
}

bool matches(const S6Vector& vector, int position) {
  return liesAt(vector.data, kVectors[static_cast<std::size_t>(position)]) &&
         vector.layer_bytes == kLayerLines * kLine;
}

void findsEverything() {
  const Adaptor adaptor = fields().adaptor("MambaStep");
  const std::size_t workspace = adaptor.workspaceBytes(inputs(), outputs());
  S6_EXPECT(workspace > 0);
  S6_EXPECT(adaptor.workspaceBytes(inputs(1), outputs(1)) == workspace);
  events.clear();
  adaptor.rehearse(inputs(), outputs());
  S6_EXPECT(events.empty());
  adaptor.enqueue(inputs(), outputs(), address(9), nullptr);
  S6_EXPECT(events.size() == 4);
  if (events.size() != 4) return;
  const auto conv = std::get<Copy>(events[0]), ssm = std::get<Copy>(events[1]);
  S6_EXPECT(conv.from == address(3) && conv.to == address(7));
  S6_EXPECT(conv.bytes == 4 * kLayers * 2 * 3 * kD);
  S6_EXPECT(ssm.from == address(4) && ssm.to == address(8));
  S6_EXPECT(ssm.bytes == 4 * kLayers * 2 * kN * kD);
  const auto clear = std::get<Clear>(events[2]);
  S6_EXPECT(clear.at == address(9) && clear.bytes == workspace);

  const auto p = std::get<S6Decode>(events[3]);
  S6_EXPECT(p.b == 2 && p.m == kM && p.d == kD && p.n == kN && p.k == 4 && p.r == kR);
  S6_EXPECT(p.layers == kLayers && p.vocab == kVocab && p.vocab_rows == kVocabRows);
  S6_EXPECT(p.sm_count == 8 && p.norm_eps == 1e-5f && p.mixer_norm_eps == 1e-6f);
  S6_EXPECT(matches(p.embedding, 0, false) && matches(p.head, 5, false));
  S6_EXPECT(matches(p.in_proj, 1, true) && matches(p.x_proj, 2, true));
  S6_EXPECT(matches(p.dt_proj, 3, true) && matches(p.out_proj, 4, true));
  S6_EXPECT(matches(p.norm, 0) && matches(p.conv_weight, 1) && matches(p.conv_bias, 2));
  S6_EXPECT(matches(p.dt_bias, 3) && matches(p.A, 4) && matches(p.D, 5));
  S6_EXPECT(liesAt(p.final_norm, 1800));
  const auto at = [](const void* found, int number) { return found == address(number); };
  S6_EXPECT(at(p.token_ids, 1) && at(p.conv_state, 7) && at(p.ssm_state, 8));
  S6_EXPECT(at(p.logits, 5) && at(p.next_ids, 6) && at(p.workspace, 9));
  S6_EXPECT(p.x == nullptr && p.y == nullptr);
}

void leavesStatesInPlace() {
  events.clear();
  fields().adaptor("MambaStep").enqueue(inputs(), outputs(2, 3, 4), address(9), nullptr);
  S6_EXPECT(events.size() == 2);
  S6_EXPECT(std::holds_alternative<Clear>(events.front()));
}

void refuses() {
  const Adaptor adaptor = fields().adaptor("MambaStep");
  EXPECT_REFUSAL(adaptor.rehearse(inputs(9), outputs(9)), "9 texts", "up to 8");
  EXPECT_REFUSAL(adaptor.rehearse(inputs(2, kImageLines - 1), outputs()),
                 "the final norm at line 1800");
  EXPECT_REFUSAL(adaptor.rehearse(inputs(2, 1766), outputs()), "D at line 1059", "226048 bytes");
  adaptor.rehearse(inputs(), outputs());
  std::vector<int32_t> matrices = kMatrices;
  matrices[7] = -1;
  EXPECT_REFUSAL(
      fields().integers("matrices", matrices).adaptor("MambaStep").rehearse(inputs(), outputs()),
      "in_proj at line -1");
  matrices[4] = 5;
  EXPECT_REFUSAL(
      fields().integers("matrices", matrices).adaptor("MambaStep").rehearse(inputs(), outputs()),
      "in_proj has 5 bits");
  EXPECT_REFUSAL(fields().integer("n", 8).adaptor("MambaStep").rehearse(inputs(), outputs()),
                 "ssm_state is float32 (2, 2, 16, 256)", "n is 8");
  EXPECT_REFUSAL(fields().integer("r", 12).adaptor("MambaStep").rehearse(inputs(), outputs()),
                 "the kernels refuse");
}

}  // namespace

int main() {
  findsEverything();
  leavesStatesInPlace();
  refuses();
  return s6::test::verdict();
}
