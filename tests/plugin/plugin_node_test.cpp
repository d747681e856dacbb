// SPDX-License-Identifier: MIT
// A node of an engine's graph before it runs: attributes, types, shapes, bytes of the engine file.
#include "plugin_node.h"

#include <vector>

#include "types.h"

namespace {

using namespace s6::test;
using s6::plugin::contractOps;
using s6::plugin::findOp;
using s6::plugin::OpRule;

void attributesOfEveryWidth() {
  const OpRule& op = findOp("QuantLinear");
  Fields fields = linearFields(4);
  fields.wide("outputs", 24).wide("contract_version", s6::plugin::contractVersion());
  const auto attributes = s6::plugin::Attributes::read(op, fields.all());
  S6_EXPECT(attributes.integer("outputs") == 24);
  S6_EXPECT(attributes.integer("bits") == 4);
  const auto norm =
      s6::plugin::Attributes::read(findOp("AddRmsNorm"), Fields().number64("eps", 1e-5).all());
  S6_EXPECT(norm.number("eps") == 1e-5f);
  const auto scan =
      s6::plugin::Attributes::read(findOp("SelectiveScan"), Fields().integer("C_begin", 7).all());
  S6_EXPECT(scan.integer("C_begin") == 7 && scan.integer("B_begin") == 0);
}

void badAttributes() {
  EXPECT_REFUSAL(linearFields(5).adaptor("QuantLinear"), "QuantLinear", "bits is 5", "16 8 4");
  EXPECT_REFUSAL(linearFields(4).integer("outputs", 0).adaptor("QuantLinear"), "outputs is 0",
                 "1 or more");
  EXPECT_REFUSAL(linearFields(4).wide("outputs", int64_t{1} << 31).adaptor("QuantLinear"),
                 "outputs is 2147483648");
  EXPECT_REFUSAL(linearFields(4).without("bits").adaptor("QuantLinear"), "bits is missing");
  EXPECT_REFUSAL(linearFields(4).number("bits", 4).adaptor("QuantLinear"), "float32",
                 "a whole number");
  EXPECT_REFUSAL(linearFields(4).integers("bits", {4, 4}).adaptor("QuantLinear"), "2 values");
  EXPECT_REFUSAL(linearFields(4).integer("bit", 4).adaptor("QuantLinear"), "bit is unknown",
                 "group_size");
  EXPECT_REFUSAL(Fields().number("eps", -1).adaptor("AddRmsNorm"), "eps is -1", "0 or more");
  EXPECT_REFUSAL(Fields().number("eps", NAN).adaptor("AddRmsNorm"), "eps is");
  EXPECT_REFUSAL(findOp("Softmax"), "no op Softmax");
}

void contractVersions() {
  const int version = s6::plugin::contractVersion();
  EXPECT_REFUSAL(linearFields(4).integer("contract_version", version + 1).adaptor("QuantLinear"),
                 "the graph has version", "build the plugin again");
  EXPECT_REFUSAL(linearFields(4).integer("contract_version", version - 1).adaptor("QuantLinear"),
                 "the graph has version", "build the engine again");
  EXPECT_REFUSAL(linearFields(4).without("contract_version").adaptor("QuantLinear"),
                 "contract_version");
}

Fields stepFields() {
  return Fields()
      .integer("m", 64)
      .integer("n", 16)
      .integer("r", 8)
      .integer("vocab", 300)
      .integer("vocab_rows", 304)
      .number("norm_eps", 1e-5f)
      .number("mixer_norm_eps", 0)
      .integers("matrices", std::vector<int32_t>(24, 16))
      .integers("vectors", {1, 2, 3, 4, 5, 6, 7})
      .integer("layer_lines", 100);
}

void serialisedNodes() {
  const OpRule& op = findOp("MambaStep");
  const std::vector<uint8_t> bytes = stepFields().adaptor("MambaStep").serialised();
  const Adaptor restored(op, bytes.data(), bytes.size());
  S6_EXPECT(restored.serialised() == bytes);
  S6_EXPECT(stepFields().integer("r", 16).adaptor("MambaStep").serialised() != bytes);
  for (std::size_t size = 0; size < bytes.size(); ++size) {
    EXPECT_REFUSAL(Adaptor(op, bytes.data(), size), "MambaStep");
  }
  for (std::size_t i = 0; i < bytes.size(); ++i) {
    std::vector<uint8_t> damaged = bytes;
    damaged[i] ^= 0x10;
    EXPECT_REFUSAL(Adaptor(op, damaged.data(), damaged.size()), "MambaStep");
  }
  std::vector<uint8_t> newer = bytes;
  ++newer[8];  // After the magic.
  EXPECT_REFUSAL(Adaptor(op, newer.data(), newer.size()), "the engine has version",
                 "build the plugin again");
  EXPECT_REFUSAL(Adaptor(findOp("QuantLinear"), bytes.data(), bytes.size()), "op MambaStep");
  EXPECT_REFUSAL(Adaptor(op, nullptr, 0), "not from this plugin");
}

bool accepts(const Adaptor& adaptor, std::vector<ElementType> types, int inputs) {
  std::vector<Tensor> tensors;
  for (const ElementType type : types) tensors.push_back(tensor(type, {}));
  for (int i = 0; i < static_cast<int>(tensors.size()); ++i) {
    if (!adaptor.acceptsFormat(i, tensors, inputs)) return false;
  }
  return true;
}

void acceptedTypes() {
  const Adaptor conv = Fields().adaptor("CausalConv1d");
  for (const ElementType type : {kFloat, kHalf, kBfloat}) {
    S6_EXPECT(accepts(conv, {type, kFloat, kFloat, type, type, type}, 4));
    S6_EXPECT(!accepts(conv, {type, kFloat, kFloat, type, kInt, type}, 4));
  }
  S6_EXPECT(accepts(conv, {kHalf, kFloat, kFloat, kFloat, kHalf, kFloat}, 4));
  S6_EXPECT(!accepts(conv, {kHalf, kFloat, kFloat, kFloat, kHalf, kHalf}, 4));
  S6_EXPECT(!accepts(conv, {kBfloat, kFloat, kFloat, kFloat, kBfloat, kFloat}, 4));
  S6_EXPECT(!accepts(conv, {kFloat, kFloat, kFloat, kHalf, kFloat, kHalf}, 4));
  S6_EXPECT(!accepts(conv, {kInt, kFloat, kFloat, kInt, kInt, kInt}, 4));
  S6_EXPECT(!accepts(conv, {kHalf, kHalf, kFloat, kHalf, kHalf, kHalf}, 4));

  const Adaptor half = linearFields(16).adaptor("QuantLinear");
  const Adaptor packed = linearFields(8).adaptor("QuantLinear");
  S6_EXPECT(accepts(half, {kHalf, kHalf, kFloat}, 2));
  S6_EXPECT(!accepts(half, {kHalf, kInt, kFloat}, 2));
  S6_EXPECT(accepts(packed, {kHalf, kInt, kHalf, kFloat}, 3));
  S6_EXPECT(!accepts(packed, {kHalf, kHalf, kHalf, kFloat}, 3));

  std::vector<Tensor> blocked = {tensor(kHalf, {}), tensor(kHalf, {}), tensor(kFloat, {})};
  blocked[0].is_linear = false;
  S6_EXPECT(!half.acceptsFormat(0, blocked, 2));
  EXPECT_REFUSAL(half.acceptsFormat(0, {tensor(kHalf, {}), tensor(kFloat, {})}, 1), "1 inputs",
                 "2 to 3");
  EXPECT_REFUSAL(half.acceptsFormat(0, {tensor(kHalf, {}), tensor(kFloat, {})}, 2), "0 outputs");

  S6_EXPECT(conv.typeOfOutput(0, {kHalf, kFloat, kFloat, kFloat}) == kHalf);
  S6_EXPECT(conv.typeOfOutput(1, {kHalf, kFloat, kFloat, kFloat}) == kFloat);
  S6_EXPECT(conv.typeOfOutput(1, {kBfloat, kFloat, kFloat, kBfloat}) == kBfloat);
  S6_EXPECT(stepFields().adaptor("MambaStep").typeOfOutput(1, {}) == kInt);
}

//! The sizes of an output for inputs of some shapes, in the way a shell asks for them.
std::vector<int64_t> shapeOf(const Adaptor& adaptor, int output,
                             const std::vector<std::vector<int64_t>>& inputs) {
  std::vector<int64_t> shape;
  for (const auto& rule : adaptor.shapeOfOutput(output, static_cast<int>(inputs.size()))) {
    const auto& source = rule.source;
    shape.push_back(source.attribute >= 0 ? adaptor.constant(source.attribute)
                                          : inputs[source.input][source.axis]);
  }
  return shape;
}

using Shape = std::vector<int64_t>;

void shapesOfOutputs() {
  const std::vector<Shape> conv = {{2, 7, 200}, {4, 96}, {96}, {2, 3, 96}};
  S6_EXPECT((shapeOf(Fields().adaptor("CausalConv1d"), 0, conv) == Shape{2, 7, 96}));
  S6_EXPECT((shapeOf(Fields().adaptor("CausalConv1d"), 1, conv) == Shape{2, 3, 96}));
  const std::vector<Shape> linear = {{7, 64}, {40, 8}, {2, 40}};
  S6_EXPECT((shapeOf(linearFields(4).adaptor("QuantLinear"), 0, linear) == Shape{7, 24}));
  const Adaptor embedding = Fields()
                                .integer("bits", 16)
                                .integer("group_size", 0)
                                .integer("m", 64)
                                .adaptor("QuantEmbedding");
  S6_EXPECT((shapeOf(embedding, 0, {{2, 7}, {300, 64}}) == Shape{2, 7, 64}));
  const std::vector<Shape> step = {{2}, {99999}, {5, 2, 3, 128}, {5, 2, 16, 128}};
  const Adaptor mamba = stepFields().adaptor("MambaStep");
  S6_EXPECT((shapeOf(mamba, 0, step) == Shape{2, 300}));
  S6_EXPECT((shapeOf(mamba, 1, step) == Shape{2}));
  S6_EXPECT((shapeOf(mamba, 2, step) == Shape{5, 2, 3, 128}));
  S6_EXPECT((shapeOf(mamba, 3, step) == Shape{5, 2, 16, 128}));
  const Adaptor norm = Fields().number("eps", 0).adaptor("AddRmsNorm");
  S6_EXPECT((shapeOf(norm, 1, {{7, 64}, {64}}) == Shape{7, 64}));
  EXPECT_REFUSAL(norm.shapeOfOutput(0, 4), "4 inputs", "2 to 3");
}

}  // namespace

int main() {
  S6_EXPECT(contractOps().size() == 9);
  attributesOfEveryWidth();
  badAttributes();
  contractVersions();
  serialisedNodes();
  acceptedTypes();
  shapesOfOutputs();
  return s6::test::verdict();
}
