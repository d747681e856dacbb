// SPDX-License-Identifier: MIT
#include "shell_types.h"

#include "refusal.h"

namespace s6::plugin {

using nvinfer1::DataType;
using nvinfer1::PluginFieldType;

ElementType elementTypeOf(DataType type) {
  switch (type) {
    case DataType::kFLOAT:
      return ElementType::kFloat32;
    case DataType::kHALF:
      return ElementType::kFloat16;
    case DataType::kINT32:
      return ElementType::kInt32;
#if S6_HAS_PLUGIN_V3
    case DataType::kBF16:
      return ElementType::kBfloat16;
#endif
    default:
      return ElementType::kOther;
  }
}

DataType dataTypeOf(ElementType type) {
  switch (type) {
    case ElementType::kFloat32:
      return DataType::kFLOAT;
    case ElementType::kFloat16:
      return DataType::kHALF;
    case ElementType::kInt32:
      return DataType::kINT32;
#if S6_HAS_PLUGIN_V3
    case ElementType::kBfloat16:
      return DataType::kBF16;
#endif
    default:
      refuse("TensorRT ", NV_TENSORRT_MAJOR, " has no ", nameOf(type));
  }
}

Tensor tensorOf(const nvinfer1::PluginTensorDesc& description) {
  Tensor tensor;
  tensor.type = elementTypeOf(description.type);
  tensor.is_linear = description.format == nvinfer1::TensorFormat::kLINEAR;
  tensor.rank = description.dims.nbDims;
  for (int i = 0; i < tensor.rank; ++i) tensor.dimensions.at(i) = description.dims.d[i];
  return tensor;
}

std::vector<Tensor> tensorsOf(const nvinfer1::PluginTensorDesc* descriptions, int count) {
  std::vector<Tensor> tensors;
  for (int i = 0; i < count; ++i) tensors.push_back(tensorOf(descriptions[i]));
  return tensors;
}

std::vector<Tensor> largestTensorsOf(const nvinfer1::DynamicPluginTensorDesc* descriptions,
                                     int count) {
  std::vector<Tensor> tensors;
  for (int i = 0; i < count; ++i) {
    Tensor tensor = tensorOf(descriptions[i].desc);
    for (int axis = 0; axis < tensor.rank; ++axis) {
      std::int64_t& size = tensor.dimensions[axis];
      if (size < 0) size = descriptions[i].max.d[axis];
    }
    tensors.push_back(tensor);
  }
  return tensors;
}

std::vector<Tensor> knownTensors(std::vector<Tensor> known, int count) {
  known.resize(static_cast<std::size_t>(count));
  return known;
}

std::vector<ElementType> elementTypesOf(const DataType* types, int count) {
  std::vector<ElementType> found;
  for (int i = 0; i < count; ++i) found.push_back(elementTypeOf(types[i]));
  return found;
}

std::vector<Field> fieldsOf(const nvinfer1::PluginFieldCollection& collection) {
  std::vector<Field> fields;
  for (int i = 0; i < collection.nbFields; ++i) {
    const nvinfer1::PluginField& field = collection.fields[i];
    FieldType type = FieldType::kOther;
    switch (field.type) {
      case PluginFieldType::kINT32:
        type = FieldType::kInt32;
        break;
#if S6_HAS_PLUGIN_V3
      case PluginFieldType::kINT64:
        type = FieldType::kInt64;
        break;
#endif
      case PluginFieldType::kFLOAT32:
        type = FieldType::kFloat32;
        break;
      case PluginFieldType::kFLOAT64:
        type = FieldType::kFloat64;
        break;
      default:
        break;
    }
    fields.push_back({field.name, type, field.data, field.length});
  }
  return fields;
}

std::vector<nvinfer1::PluginField> announcedFields(const OpRule& op) {
  std::vector<nvinfer1::PluginField> fields;
  fields.emplace_back(kContractVersionField, nullptr, PluginFieldType::kINT32, 1);
  for (const AttributeRule& rule : op.attributes) {
    const bool is_number = rule.type == AttributeType::kNumber;
    fields.emplace_back(rule.name, nullptr,
                        is_number ? PluginFieldType::kFLOAT32 : PluginFieldType::kINT32,
                        rule.length);
  }
  return fields;
}

nvinfer1::DimsExprs outputShape(const Adaptor& adaptor, int output,
                                const nvinfer1::DimsExprs* inputs, int input_count,
                                nvinfer1::IExprBuilder& builder) {
  const std::vector<DimensionRule>& rules = adaptor.shapeOfOutput(output, input_count);
  nvinfer1::DimsExprs shape = {};
  shape.nbDims = static_cast<std::int32_t>(rules.size());
  for (std::size_t axis = 0; axis < rules.size(); ++axis) {
    const DimensionSource& source = rules[axis].source;
    if (source.attribute >= 0) {
      // Attributes fit 32 bits: see attributes.cpp.
      const auto size = static_cast<std::int32_t>(adaptor.constant(source.attribute));
      shape.d[axis] = builder.constant(size);
      continue;
    }
    const nvinfer1::DimsExprs& from = inputs[source.input];
    if (source.axis >= from.nbDims) {
      const TensorRule& rule = adaptor.op().inputs[source.input];
      refuse(adaptor.op().name, ": ", rule.name, " has ", from.nbDims, " dimensions; wanted: [",
             rule.shape, "]");
    }
    shape.d[axis] = from.d[source.axis];
  }
  return shape;
}

}  // namespace s6::plugin
