// SPDX-License-Identifier: MIT
#include "node.h"

#if S6_HAS_PLUGIN_V3

#include "failure.h"

namespace s6::exercise {
namespace {

using nvinfer1::PluginCapabilityType;

std::int32_t sizeOf(std::size_t count) { return static_cast<std::int32_t>(count); }

template <typename Capability>
Capability& capability(nvinfer1::IPluginV3* plugin, PluginCapabilityType type) {
  auto* found = static_cast<Capability*>(plugin->getCapabilityInterface(type));
  require(found != nullptr, "the plugin lacks the capability ", static_cast<int>(type));
  return *found;
}

nvinfer1::IPluginV3OneBuild& build(nvinfer1::IPluginV3* plugin) {
  return capability<nvinfer1::IPluginV3OneBuild>(plugin, PluginCapabilityType::kBUILD);
}

nvinfer1::IPluginV3OneRuntime& runtime(nvinfer1::IPluginV3* plugin) {
  return capability<nvinfer1::IPluginV3OneRuntime>(plugin, PluginCapabilityType::kRUNTIME);
}

//! Sizes that are fixed.
Ranges rangesOf(const Descriptions& descriptions) {
  Ranges ranges;
  for (const auto& one : descriptions) ranges.push_back({one, one.dims, one.dims, one.dims});
  return ranges;
}

//! The name of the one field that the plugin writes into an engine, learnt from it.
std::string& fieldName() {
  static std::string name;
  return name;
}

}  // namespace

std::unique_ptr<Node> Node::create(Creator& creator, const Fields& fields) {
  const std::vector<nvinfer1::PluginField> all = fields.all();
  const nvinfer1::PluginFieldCollection collection = {sizeOf(all.size()), all.data()};
  auto created = own(creator.createPlugin(kNodeName, &collection, nvinfer1::TensorRTPhase::kBUILD));
  if (created == nullptr) return nullptr;
  auto& core =
      capability<nvinfer1::IPluginV3OneCore>(created->plugin_, PluginCapabilityType::kCORE);
  require(std::string(core.getPluginName()) == creator.getPluginName() &&
              std::string(core.getPluginVersion()) == creator.getPluginVersion() &&
              std::string(core.getPluginNamespace()) == creator.getPluginNamespace(),
          "an engine would not find the creator of ", core.getPluginName(), " again");
  return created;
}

std::unique_ptr<Node> Node::restore(Creator& creator, const Bytes& bytes) {
  // Freed before it is used: TensorRT does not keep an engine's bytes either.
  const auto copy = std::make_unique<Bytes>(bytes);
  const nvinfer1::PluginField field(fieldName().c_str(), copy->data(),
                                    nvinfer1::PluginFieldType::kUNKNOWN, sizeOf(copy->size()));
  const nvinfer1::PluginFieldCollection collection = {1, &field};
  const auto restored =
      own(creator.createPlugin(kNodeName, &collection, nvinfer1::TensorRTPhase::kRUNTIME));
  if (restored == nullptr) return nullptr;
  return own(runtime(restored->plugin_).attachToContext(nullptr));
}

Node::~Node() { delete plugin_; }

std::unique_ptr<Node> Node::clone() const { return own(plugin_->clone()); }

int Node::outputCount() const { return build(plugin_).getNbOutputs(); }

bool Node::outputTypes(const Types& inputs, Types& outputs) const {
  outputs.resize(static_cast<std::size_t>(outputCount()));
  return build(plugin_).getOutputDataTypes(outputs.data(), outputCount(), inputs.data(),
                                           sizeOf(inputs.size())) == 0;
}

bool Node::outputShapes(const Shapes& inputs, Shapes& outputs, Expressions& builder) const {
  outputs.resize(static_cast<std::size_t>(outputCount()));
  return build(plugin_).getOutputShapes(inputs.data(), sizeOf(inputs.size()), nullptr, 0,
                                        outputs.data(), outputCount(), builder) == 0;
}

bool Node::accepts(int position, const Ranges& tensors, int inputs, int outputs) const {
  return build(plugin_).supportsFormatCombination(position, tensors.data(), inputs, outputs);
}

bool Node::configure(const Ranges& inputs, const Ranges& outputs) {
  return build(plugin_).configurePlugin(inputs.data(), sizeOf(inputs.size()), outputs.data(),
                                        sizeOf(outputs.size())) == 0;
}

std::size_t Node::workspaceBytes(const Descriptions& inputs, const Descriptions& outputs) const {
  return build(plugin_).getWorkspaceSize(rangesOf(inputs).data(), sizeOf(inputs.size()),
                                         rangesOf(outputs).data(), sizeOf(outputs.size()));
}

Bytes Node::serialised() const {
  const nvinfer1::PluginFieldCollection* fields = runtime(plugin_).getFieldsToSerialize();
  require(fields != nullptr && fields->nbFields == 1, "an engine would not get one field");
  const nvinfer1::PluginField& field = fields->fields[0];
  fieldName() = field.name;
  const auto* begin = static_cast<const std::uint8_t*>(field.data);
  return Bytes(begin, begin + field.length);
}

bool Node::takeShapes(const Descriptions& inputs, const Descriptions& outputs) {
  return runtime(plugin_).onShapeChange(inputs.data(), sizeOf(inputs.size()), outputs.data(),
                                        sizeOf(outputs.size())) == 0;
}

bool Node::enqueue(const Descriptions& inputs, const Descriptions& outputs,
                   const std::vector<void*>& input_addresses,
                   const std::vector<void*>& output_addresses, void* workspace,
                   cudaStream_t stream) {
  return runtime(plugin_).enqueue(inputs.data(), outputs.data(), input_addresses.data(),
                                  output_addresses.data(), workspace, stream) == 0;
}

}  // namespace s6::exercise
#endif  // S6_HAS_PLUGIN_V3
