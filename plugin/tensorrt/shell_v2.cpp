// SPDX-License-Identifier: MIT
/*!
 * \file shell_v2.cpp
 * \brief The ops as IPluginV2DynamicExt, for TensorRT 8.5 and 8.6.
 */
#include "shell_version.h"

#if !S6_HAS_PLUGIN_V3

#include <cstring>
#include <memory>
#include <utility>

#include "refusal.h"
#include "shell_entry.h"
#include "shell_log.h"
#include "shell_types.h"
#include "types.h"

namespace s6::plugin {
namespace {

using nvinfer1::DataType;
using nvinfer1::DimsExprs;
using nvinfer1::DynamicPluginTensorDesc;
using nvinfer1::PluginTensorDesc;

constexpr int32_t kNotYetKnown = 0;

class PluginV2 final : public nvinfer1::IPluginV2DynamicExt {
 public:
  PluginV2(std::shared_ptr<const Adaptor> adaptor, int32_t input_count, std::string node)
      : adaptor_(std::move(adaptor)),
        bytes_(adaptor_->serialised()),
        input_count_(input_count),
        node_(std::move(node)) {}

  const char* getPluginType() const noexcept override { return adaptor_->op().name; }
  const char* getPluginVersion() const noexcept override { return kPluginVersion; }
  const char* getPluginNamespace() const noexcept override { return namespace_.c_str(); }
  void setPluginNamespace(const char* name) noexcept override {
    guarded(node_.c_str(), "setPluginNamespace", 0, [&] {
      namespace_ = name;
      return 0;
    });
  }

  int32_t getNbOutputs() const noexcept override { return adaptor_->outputCount(); }
  DataType getOutputDataType(int32_t index, const DataType* types,
                             int32_t count) const noexcept override {
    return guarded(node_.c_str(), "getOutputDataType", DataType::kFLOAT, [&] {
      return dataTypeOf(adaptor_->typeOfOutput(index, elementTypesOf(types, count)));
    });
  }
  DimsExprs getOutputDimensions(int32_t index, const DimsExprs* inputs, int32_t count,
                                nvinfer1::IExprBuilder& builder) noexcept override {
    DimsExprs none = {};
    none.nbDims = -1;
    return guarded(node_.c_str(), "getOutputDimensions", none,
                   [&] { return outputShape(*adaptor_, index, inputs, count, builder); });
  }
  bool supportsFormatCombination(int32_t position, const PluginTensorDesc* tensors, int32_t inputs,
                                 int32_t outputs) noexcept override {
    return guarded(node_.c_str(), "supportsFormatCombination", false, [&] {
      return adaptor_->acceptsFormat(
          position, knownTensors(tensorsOf(tensors, position + 1), inputs + outputs), inputs);
    });
  }
  // Cannot fail in this interface: the line in the log comes before the failure of the first run.
  void configurePlugin(const DynamicPluginTensorDesc* inputs, int32_t input_count,
                       const DynamicPluginTensorDesc* outputs,
                       int32_t output_count) noexcept override {
    input_count_ = input_count;
    guarded(node_.c_str(), "configurePlugin", 0, [&] {
      adaptor_->rehearse(largestTensorsOf(inputs, input_count),
                         largestTensorsOf(outputs, output_count));
      return 0;
    });
  }
  size_t getWorkspaceSize(const PluginTensorDesc* inputs, int32_t input_count,
                          const PluginTensorDesc* outputs,
                          int32_t output_count) const noexcept override {
    return guarded(node_.c_str(), "getWorkspaceSize", size_t{0}, [&] {
      return adaptor_->workspaceBytes(tensorsOf(inputs, input_count),
                                      tensorsOf(outputs, output_count));
    });
  }
  int32_t enqueue(const PluginTensorDesc* input_descriptions,
                  const PluginTensorDesc* output_descriptions, const void* const* inputs,
                  void* const* outputs, void* workspace, cudaStream_t stream) noexcept override {
    return guarded(node_.c_str(), "enqueue", 1, [&] {
      std::vector<Tensor> in = tensorsOf(input_descriptions, input_count_);
      std::vector<Tensor> out = tensorsOf(output_descriptions, adaptor_->outputCount());
      placeTensors(in, inputs);
      placeTensors(out, outputs);
      adaptor_->enqueue(in, out, workspace, stream);
      return 0;
    });
  }

  int32_t initialize() noexcept override { return 0; }
  void terminate() noexcept override {}
  size_t getSerializationSize() const noexcept override {
    return sizeof(input_count_) + bytes_.size();
  }
  void serialize(void* buffer) const noexcept override {
    std::memcpy(buffer, &input_count_, sizeof(input_count_));
    std::memcpy(static_cast<char*>(buffer) + sizeof(input_count_), bytes_.data(), bytes_.size());
  }
  IPluginV2DynamicExt* clone() const noexcept override {
    return guarded(node_.c_str(), "clone", static_cast<PluginV2*>(nullptr),
                   [&] { return new PluginV2(*this); });
  }
  void destroy() noexcept override { delete this; }

 private:
  std::shared_ptr<const Adaptor> adaptor_;
  std::vector<std::uint8_t> bytes_;
  int32_t input_count_;  // `enqueue` is not told; known since `configurePlugin`.
  std::string node_, namespace_;
};

class CreatorV2 final : public nvinfer1::IPluginCreator {
 public:
  explicit CreatorV2(const OpRule& op)
      : op_(op),
        fields_(announcedFields(op)),
        collection_{static_cast<int32_t>(fields_.size()), fields_.data()} {}

  const char* getPluginName() const noexcept override { return op_.name; }
  const char* getPluginVersion() const noexcept override { return kPluginVersion; }
  const char* getPluginNamespace() const noexcept override { return namespace_.c_str(); }
  void setPluginNamespace(const char* name) noexcept override {
    guarded("", "setPluginNamespace", 0, [&] {
      namespace_ = name;
      return 0;
    });
  }
  const nvinfer1::PluginFieldCollection* getFieldNames() noexcept override { return &collection_; }
  nvinfer1::IPluginV2DynamicExt* createPlugin(
      const char* name, const nvinfer1::PluginFieldCollection* fields) noexcept override {
    return make(name, "createPlugin", [&](std::string node) {
      auto adaptor = std::make_shared<Adaptor>(op_, fieldsOf(*fields));
      return std::make_unique<PluginV2>(std::move(adaptor), kNotYetKnown, std::move(node));
    });
  }
  nvinfer1::IPluginV2DynamicExt* deserializePlugin(const char* name, const void* bytes,
                                                   size_t size) noexcept override {
    return make(name, "deserializePlugin", [&](std::string node) {
      int32_t input_count = kNotYetKnown;
      if (size < sizeof(input_count)) refuse(op_.name, ": the engine's data of this node are cut");
      std::memcpy(&input_count, bytes, sizeof(input_count));
      auto adaptor = std::make_shared<Adaptor>(
          op_, static_cast<const char*>(bytes) + sizeof(input_count), size - sizeof(input_count));
      if (input_count != kNotYetKnown) requireCounts(op_, input_count, adaptor->outputCount());
      return std::make_unique<PluginV2>(std::move(adaptor), input_count, std::move(node));
    });
  }

 private:
  template <typename Body>
  PluginV2* make(const char* name, const char* callback, Body body) noexcept {
    return guarded(name, callback, static_cast<PluginV2*>(nullptr), [&] {
      std::unique_ptr<PluginV2> plugin = body(name == nullptr ? "" : name);
      plugin->setPluginNamespace(namespace_.c_str());
      return plugin.release();
    });
  }

  const OpRule& op_;
  std::vector<nvinfer1::PluginField> fields_;
  nvinfer1::PluginFieldCollection collection_;
  std::string namespace_;
};

}  // namespace
}  // namespace s6::plugin

S6_ENTRY_POINT nvinfer1::IPluginCreator* const* getPluginCreators(int32_t& count) {
  using s6::plugin::CreatorV2;
  count = 0;
  return s6::plugin::guarded(
      "", "getPluginCreators", static_cast<nvinfer1::IPluginCreator* const*>(nullptr), [&] {
        const auto& all = s6::plugin::creators<CreatorV2, nvinfer1::IPluginCreator>();
        count = static_cast<int32_t>(all.size());
        return all.data();
      });
}

#if S6_REGISTER_ON_LOAD
namespace {

[[maybe_unused]] const bool registered = [] {
  int32_t count = 0;
  nvinfer1::IPluginCreator* const* all = getPluginCreators(count);
  for (int32_t i = 0; i < count; ++i) getPluginRegistry()->registerCreator(*all[i], "");
  return true;
}();

}  // namespace
#endif
#endif  // !S6_HAS_PLUGIN_V3
