// SPDX-License-Identifier: MIT
/*!
 * \file shell_v3.cpp
 * \brief The ops as IPluginV3, for TensorRT 10 and later.
 */
#include "shell_version.h"

#if S6_HAS_PLUGIN_V3

#include <cstring>
#include <memory>
#include <utility>

#include "refusal.h"
#include "shell_entry.h"
#include "shell_log.h"
#include "shell_types.h"

namespace s6::plugin {
namespace {

using nvinfer1::DataType;
using nvinfer1::DimsExprs;
using nvinfer1::DynamicPluginTensorDesc;
using nvinfer1::PluginField;
using nvinfer1::PluginFieldCollection;
using nvinfer1::PluginTensorDesc;

constexpr int32_t kDone = 0, kFailed = -1;

//! The only field of an engine file's plugins: what Adaptor::serialised gives.
constexpr const char* kBytesField = "s6";

class PluginV3 final : public nvinfer1::IPluginV3,
                       public nvinfer1::IPluginV3OneCore,
                       public nvinfer1::IPluginV3OneBuild,
                       public nvinfer1::IPluginV3OneRuntime {
 public:
  PluginV3(std::shared_ptr<const Adaptor> adaptor, std::string node)
      : adaptor_(std::move(adaptor)), bytes_(adaptor_->serialised()), node_(std::move(node)) {}

  nvinfer1::IPluginCapability* getCapabilityInterface(
      nvinfer1::PluginCapabilityType type) noexcept override {
    switch (type) {
      case nvinfer1::PluginCapabilityType::kCORE:
        return static_cast<nvinfer1::IPluginV3OneCore*>(this);
      case nvinfer1::PluginCapabilityType::kBUILD:
        return static_cast<nvinfer1::IPluginV3OneBuild*>(this);
      case nvinfer1::PluginCapabilityType::kRUNTIME:
        return static_cast<nvinfer1::IPluginV3OneRuntime*>(this);
    }
    return nullptr;
  }
  PluginV3* clone() noexcept override {
    return guarded(node_.c_str(), "clone", static_cast<PluginV3*>(nullptr),
                   [&] { return new PluginV3(adaptor_, node_); });
  }

  const char* getPluginName() const noexcept override { return adaptor_->op().name; }
  const char* getPluginVersion() const noexcept override { return kPluginVersion; }
  const char* getPluginNamespace() const noexcept override { return ""; }

  int32_t getNbOutputs() const noexcept override { return adaptor_->outputCount(); }
  int32_t getOutputDataTypes(DataType* outputs, int32_t output_count, const DataType* inputs,
                             int32_t input_count) const noexcept override {
    return guarded(node_.c_str(), "getOutputDataTypes", kFailed, [&] {
      const std::vector<ElementType> types = elementTypesOf(inputs, input_count);
      for (int32_t i = 0; i < output_count; ++i) {
        outputs[i] = dataTypeOf(adaptor_->typeOfOutput(i, types));
      }
      return kDone;
    });
  }
  int32_t getOutputShapes(const DimsExprs* inputs, int32_t input_count, const DimsExprs*, int32_t,
                          DimsExprs* outputs, int32_t output_count,
                          nvinfer1::IExprBuilder& builder) noexcept override {
    return guarded(node_.c_str(), "getOutputShapes", kFailed, [&] {
      for (int32_t i = 0; i < output_count; ++i) {
        outputs[i] = outputShape(*adaptor_, i, inputs, input_count, builder);
      }
      return kDone;
    });
  }
  bool supportsFormatCombination(int32_t position, const DynamicPluginTensorDesc* tensors,
                                 int32_t inputs, int32_t outputs) noexcept override {
    return guarded(node_.c_str(), "supportsFormatCombination", false, [&] {
      return adaptor_->acceptsFormat(
          position, knownTensors(largestTensorsOf(tensors, position + 1), inputs + outputs),
          inputs);
    });
  }
  int32_t configurePlugin(const DynamicPluginTensorDesc* inputs, int32_t input_count,
                          const DynamicPluginTensorDesc* outputs,
                          int32_t output_count) noexcept override {
    return guarded(node_.c_str(), "configurePlugin", kFailed, [&] {
      adaptor_->rehearse(largestTensorsOf(inputs, input_count),
                         largestTensorsOf(outputs, output_count));
      return kDone;
    });
  }
  size_t getWorkspaceSize(const DynamicPluginTensorDesc* inputs, int32_t input_count,
                          const DynamicPluginTensorDesc* outputs,
                          int32_t output_count) const noexcept override {
    return guarded(node_.c_str(), "getWorkspaceSize", size_t{0}, [&] {
      return adaptor_->workspaceBytes(largestTensorsOf(inputs, input_count),
                                      largestTensorsOf(outputs, output_count));
    });
  }

  int32_t onShapeChange(const PluginTensorDesc* inputs, int32_t input_count,
                        const PluginTensorDesc* outputs, int32_t output_count) noexcept override {
    return guarded(node_.c_str(), "onShapeChange", kFailed, [&] {
      input_count_ = input_count;
      adaptor_->rehearse(tensorsOf(inputs, input_count), tensorsOf(outputs, output_count));
      return kDone;
    });
  }
  int32_t enqueue(const PluginTensorDesc* input_descriptions,
                  const PluginTensorDesc* output_descriptions, const void* const* inputs,
                  void* const* outputs, void* workspace, cudaStream_t stream) noexcept override {
    return guarded(node_.c_str(), "enqueue", kFailed, [&] {
      std::vector<Tensor> in = tensorsOf(input_descriptions, input_count_);
      std::vector<Tensor> out = tensorsOf(output_descriptions, adaptor_->outputCount());
      placeTensors(in, inputs);
      placeTensors(out, outputs);
      adaptor_->enqueue(in, out, workspace, stream);
      return kDone;
    });
  }
  nvinfer1::IPluginV3* attachToContext(nvinfer1::IPluginResourceContext*) noexcept override {
    return clone();
  }
  const PluginFieldCollection* getFieldsToSerialize() noexcept override {
    return guarded(node_.c_str(), "getFieldsToSerialize",
                   static_cast<const PluginFieldCollection*>(nullptr), [&] {
                     field_ = PluginField(kBytesField, bytes_.data(),
                                          nvinfer1::PluginFieldType::kUNKNOWN,
                                          static_cast<int32_t>(bytes_.size()));
                     collection_ = {1, &field_};
                     return &collection_;
                   });
  }

 private:
  std::shared_ptr<const Adaptor> adaptor_;
  std::vector<std::uint8_t> bytes_;
  std::string node_;
  PluginField field_;
  PluginFieldCollection collection_ = {};
  int32_t input_count_ = 0;  // `enqueue` is not told; known since `onShapeChange`.
};

class CreatorV3 final : public nvinfer1::IPluginCreatorV3One {
 public:
  explicit CreatorV3(const OpRule& op)
      : op_(op),
        fields_(announcedFields(op)),
        collection_{static_cast<int32_t>(fields_.size()), fields_.data()} {}

  const char* getPluginName() const noexcept override { return op_.name; }
  const char* getPluginVersion() const noexcept override { return kPluginVersion; }
  const char* getPluginNamespace() const noexcept override { return ""; }
  const PluginFieldCollection* getFieldNames() noexcept override { return &collection_; }
  nvinfer1::IPluginV3* createPlugin(const char* name, const PluginFieldCollection* fields,
                                    nvinfer1::TensorRTPhase phase) noexcept override {
    return guarded(name, "createPlugin", static_cast<PluginV3*>(nullptr), [&] {
      auto adaptor = phase == nvinfer1::TensorRTPhase::kRUNTIME
                         ? restored(*fields)
                         : std::make_shared<Adaptor>(op_, fieldsOf(*fields));
      return new PluginV3(std::move(adaptor), name == nullptr ? "" : name);
    });
  }

 private:
  std::shared_ptr<Adaptor> restored(const PluginFieldCollection& fields) const {
    for (int32_t i = 0; i < fields.nbFields; ++i) {
      const PluginField& field = fields.fields[i];
      if (std::strcmp(field.name, kBytesField) != 0) continue;
      return std::make_shared<Adaptor>(op_, field.data, static_cast<std::size_t>(field.length));
    }
    refuse(op_.name, ": the engine has no data of this node");
  }

  const OpRule& op_;
  std::vector<PluginField> fields_;
  PluginFieldCollection collection_;
};

}  // namespace
}  // namespace s6::plugin

S6_ENTRY_POINT nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& count) {
  using s6::plugin::CreatorV3;
  count = 0;
  return s6::plugin::guarded(
      "", "getCreators", static_cast<nvinfer1::IPluginCreatorInterface* const*>(nullptr), [&] {
        const auto& all = s6::plugin::creators<CreatorV3, nvinfer1::IPluginCreatorInterface>();
        count = static_cast<int32_t>(all.size());
        return all.data();
      });
}
#endif  // S6_HAS_PLUGIN_V3
