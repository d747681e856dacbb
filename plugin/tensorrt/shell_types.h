// SPDX-License-Identifier: MIT
//! \file shell_types.h
//! \brief TensorRT's types as the adaptor's, and back: the same names in every version.
#pragma once

#include <vector>

#include "adaptor.h"
#include "shell_version.h"

namespace s6::plugin {

//! The version of every plugin's interface, as TensorRT's registry has it.
constexpr const char* kPluginVersion = "1";

ElementType elementTypeOf(nvinfer1::DataType type);
nvinfer1::DataType dataTypeOf(ElementType type);

Tensor tensorOf(const nvinfer1::PluginTensorDesc& description);
std::vector<Tensor> tensorsOf(const nvinfer1::PluginTensorDesc* descriptions, int count);

//! Sizes that are open stand at their largest.
std::vector<Tensor> largestTensorsOf(const nvinfer1::DynamicPluginTensorDesc* descriptions,
                                     int count);

//! Adds tensors of which nothing is known: TensorRT leaves those after a position open.
std::vector<Tensor> knownTensors(std::vector<Tensor> known, int count);

std::vector<ElementType> elementTypesOf(const nvinfer1::DataType* types, int count);

std::vector<Field> fieldsOf(const nvinfer1::PluginFieldCollection& collection);

//! The fields that a creator announces, for as long as the process lives.
std::vector<nvinfer1::PluginField> announcedFields(const OpRule& op);

//! Shape of an output in terms of the inputs'.
nvinfer1::DimsExprs outputShape(const Adaptor& adaptor, int output,
                                const nvinfer1::DimsExprs* inputs, int input_count,
                                nvinfer1::IExprBuilder& builder);

//! Adds the addresses that a run has. \tparam Address of inputs or outputs.
template <typename Address>
void placeTensors(std::vector<Tensor>& tensors, Address const* addresses) {
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    tensors[i].address = const_cast<void*>(static_cast<const void*>(addresses[i]));
  }
}

}  // namespace s6::plugin
