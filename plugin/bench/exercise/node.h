// SPDX-License-Identifier: MIT
/*!
 * \file node.h
 * \brief A plugin of one node by TensorRT's calls, the same for both interfaces.
 *
 * What a call refuses is false or null here; the reason is in the log.
 */
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "expressions.h"
#include "fields.h"
#include "library.h"

namespace s6::exercise {

using Types = std::vector<nvinfer1::DataType>;
using Shapes = std::vector<nvinfer1::DimsExprs>;
//! Tensors of one run, inputs or outputs.
using Descriptions = std::vector<nvinfer1::PluginTensorDesc>;
//! Tensors of an optimisation profile.
using Ranges = std::vector<nvinfer1::DynamicPluginTensorDesc>;
using Bytes = std::vector<std::uint8_t>;

class Node {
 public:
  //! Build phase: from the attributes of a graph's node.
  static std::unique_ptr<Node> create(Creator& creator, const Fields& fields);
  //! Runtime phase: from an engine's bytes, ready for a context.
  static std::unique_ptr<Node> restore(Creator& creator, const Bytes& bytes);
  ~Node();
  Node(const Node&) = delete;
  Node& operator=(const Node&) = delete;

  std::unique_ptr<Node> clone() const;

  int outputCount() const;
  bool outputTypes(const Types& inputs, Types& outputs) const;
  bool outputShapes(const Shapes& inputs, Shapes& outputs, Expressions& builder) const;
  //! \param tensors Inputs, then outputs; those after the position are not looked at.
  bool accepts(int position, const Ranges& tensors, int inputs, int outputs) const;
  //! IPluginV2DynamicExt's has no result: true.
  bool configure(const Ranges& inputs, const Ranges& outputs);
  std::size_t workspaceBytes(const Descriptions& inputs, const Descriptions& outputs) const;
  Bytes serialised() const;

  //! A context has new shapes. IPluginV2DynamicExt has no such call: true.
  bool takeShapes(const Descriptions& inputs, const Descriptions& outputs);
  bool enqueue(const Descriptions& inputs, const Descriptions& outputs,
               const std::vector<void*>& input_addresses,
               const std::vector<void*>& output_addresses, void* workspace, cudaStream_t stream);

 private:
#if S6_HAS_PLUGIN_V3
  using Plugin = nvinfer1::IPluginV3;
#else
  using Plugin = nvinfer1::IPluginV2DynamicExt;
#endif
  explicit Node(Plugin* plugin) : plugin_(plugin) {}
  static std::unique_ptr<Node> own(Plugin* plugin) {
    return std::unique_ptr<Node>(plugin == nullptr ? nullptr : new Node(plugin));
  }
  Plugin* plugin_;
};

constexpr const char* kNodeName = "exercised";

}  // namespace s6::exercise
