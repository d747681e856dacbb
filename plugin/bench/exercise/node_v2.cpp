// SPDX-License-Identifier: MIT
#include "node.h"

#if !S6_HAS_PLUGIN_V3

#include "failure.h"

namespace s6::exercise {
namespace {

std::int32_t sizeOf(std::size_t count) { return static_cast<std::int32_t>(count); }

//! As TensorRT finds out that a plugin may be called by this interface. \tparam Base IPluginV2.
template <typename Base>
nvinfer1::IPluginV2DynamicExt* dynamic(Base* plugin) {
  if (plugin == nullptr) return nullptr;
  const int kind = plugin->getTensorRTVersion() >> 24;
  require(kind == static_cast<int>(nvinfer1::PluginVersion::kV2_DYNAMICEXT),
          "the plugin is of the kind ", kind);
  return static_cast<nvinfer1::IPluginV2DynamicExt*>(plugin);
}

}  // namespace

std::unique_ptr<Node> Node::create(Creator& creator, const Fields& fields) {
  const std::vector<nvinfer1::PluginField> all = fields.all();
  const nvinfer1::PluginFieldCollection collection = {sizeOf(all.size()), all.data()};
  return own(dynamic(creator.createPlugin(kNodeName, &collection)));
}

std::unique_ptr<Node> Node::restore(Creator& creator, const Bytes& bytes) {
  // Freed before it is used: TensorRT does not keep an engine's bytes either.
  const auto copy = std::make_unique<Bytes>(bytes);
  auto restored = own(dynamic(creator.deserializePlugin(kNodeName, copy->data(), copy->size())));
  if (restored == nullptr) return nullptr;
  std::unique_ptr<Node> attached = restored->clone();
  attached->plugin_->attachToContext(nullptr, nullptr, nullptr);
  return attached->plugin_->initialize() == 0 ? std::move(attached) : nullptr;
}

Node::~Node() {
  plugin_->terminate();
  plugin_->destroy();
}

std::unique_ptr<Node> Node::clone() const { return own(plugin_->clone()); }

int Node::outputCount() const { return plugin_->getNbOutputs(); }

bool Node::outputTypes(const Types& inputs, Types& outputs) const {
  for (int i = 0; i < outputCount(); ++i) {
    outputs.push_back(plugin_->getOutputDataType(i, inputs.data(), sizeOf(inputs.size())));
  }
  return true;
}

bool Node::outputShapes(const Shapes& inputs, Shapes& outputs, Expressions& builder) const {
  for (int i = 0; i < outputCount(); ++i) {
    outputs.push_back(
        plugin_->getOutputDimensions(i, inputs.data(), sizeOf(inputs.size()), builder));
    if (outputs.back().nbDims < 0) return false;
  }
  return true;
}

bool Node::accepts(int position, const Ranges& tensors, int inputs, int outputs) const {
  Descriptions descriptions;
  for (const auto& range : tensors) descriptions.push_back(range.desc);
  return plugin_->supportsFormatCombination(position, descriptions.data(), inputs, outputs);
}

bool Node::configure(const Ranges& inputs, const Ranges& outputs) {
  plugin_->configurePlugin(inputs.data(), sizeOf(inputs.size()), outputs.data(),
                           sizeOf(outputs.size()));
  return true;
}

std::size_t Node::workspaceBytes(const Descriptions& inputs, const Descriptions& outputs) const {
  return plugin_->getWorkspaceSize(inputs.data(), sizeOf(inputs.size()), outputs.data(),
                                   sizeOf(outputs.size()));
}

Bytes Node::serialised() const {
  Bytes bytes(plugin_->getSerializationSize());
  plugin_->serialize(bytes.data());
  return bytes;
}

bool Node::takeShapes(const Descriptions&, const Descriptions&) { return true; }

bool Node::enqueue(const Descriptions& inputs, const Descriptions& outputs,
                   const std::vector<void*>& input_addresses,
                   const std::vector<void*>& output_addresses, void* workspace,
                   cudaStream_t stream) {
  return plugin_->enqueue(inputs.data(), outputs.data(), input_addresses.data(),
                          output_addresses.data(), workspace, stream) == 0;
}

}  // namespace s6::exercise
#endif  // !S6_HAS_PLUGIN_V3
