// SPDX-License-Identifier: MIT
#include "phases.h"

#include "failure.h"
#include "memory.h"

namespace s6::exercise {
namespace {

using nvinfer1::PluginTensorDesc;

//! Those that an engine's tensors may have.
const Types& allTypes() {
  static const Types types = {DataType::kFLOAT, DataType::kHALF, DataType::kINT8,
                              DataType::kINT32, DataType::kBOOL,
#if S6_HAS_PLUGIN_V3
                              DataType::kBF16,  DataType::kINT64
#endif
  };
  return types;
}

Types typesOf(const std::vector<TensorSpec>& tensors) {
  Types types;
  for (const TensorSpec& tensor : tensors) types.push_back(tensor.type);
  return types;
}

std::vector<TensorSpec> tensorsOf(const Case& of) {
  std::vector<TensorSpec> all = inputsOf(of);
  for (const TensorSpec& output : outputsOf(of)) all.push_back(output);
  return all;
}

void checkTypes(const Node& node, const Case& of) {
  Types found;
  require(node.outputTypes(typesOf(inputsOf(of)), found), "types of outputs were refused");
  require(found == typesOf(outputsOf(of)), "the outputs have other types");
}

//! Open sizes of the inputs must come back as the very same expressions, fixed ones as numbers.
void checkShapes(const Node& node, const Case& of) {
  Expressions builder;
  Shapes inputs, found;
  for (const TensorSpec& input : inputsOf(of)) {
    nvinfer1::DimsExprs shape = {};
    shape.nbDims = static_cast<std::int32_t>(input.shape.size());
    for (std::size_t axis = 0; axis < input.shape.size(); ++axis) {
      const Extent& extent = input.shape[axis];
      shape.d[axis] = builder.make(static_cast<Integer>(extent.size), extent.is_open);
    }
    inputs.push_back(shape);
  }
  require(node.outputShapes(inputs, found, builder), "shapes of outputs were refused");
  require(found.size() == of.outputs.size(), "it has ", found.size(), " outputs");
  for (std::size_t i = 0; i < found.size(); ++i) {
    const Shape& wanted = of.outputs[i].spec.shape;
    require(found[i].nbDims == static_cast<std::int32_t>(wanted.size()), "output ", i, " has ",
            found[i].nbDims, " dimensions");
    for (std::size_t axis = 0; axis < wanted.size(); ++axis) {
      const nvinfer1::IDimensionExpr& size = *found[i].d[axis];
      require(size.getConstantValue() == wanted[axis].size, "axis ", axis, " of output ", i, " is ",
              size.getConstantValue());
      require(size.isConstant() != wanted[axis].is_open, "axis ", axis, " of output ", i,
              " is open or fixed where it should not be");
    }
  }
}

/*!
 * \brief Tries every type at a position and those after it, as a builder does.
 * \return Combinations that the plugin accepts, each of which gives the output types it promises.
 */
int countCombinations(const Node& node, Ranges& tensors, std::size_t position, int inputs) {
  if (position == tensors.size()) {
    Types given, promised, accepted;
    for (std::size_t i = 0; i < tensors.size(); ++i) {
      (static_cast<int>(i) < inputs ? given : accepted).push_back(tensors[i].desc.type);
    }
    require(node.outputTypes(given, promised) && promised == accepted,
            "a combination is accepted whose outputs have other types");
    return 1;
  }
  int count = 0;
  const int outputs = static_cast<int>(tensors.size()) - inputs;
  const DataType own = tensors[position].desc.type;
  for (const DataType type : allTypes()) {
    tensors[position].desc.type = type;
    if (!node.accepts(static_cast<int>(position), tensors, inputs, outputs)) continue;
    count += countCombinations(node, tensors, position + 1, inputs);
  }
  tensors[position].desc.type = own;
  return count;
}

int checkFormats(const Node& node, const Case& of) {
  Ranges tensors = rangesOf(tensorsOf(of));
  const int inputs = static_cast<int>(of.inputs.size());
  const int outputs = static_cast<int>(of.outputs.size());
  for (int i = 0; i < inputs + outputs; ++i) {
    require(node.accepts(i, tensors, inputs, outputs), "tensor ", i, " is not accepted");
    PluginTensorDesc& tensor = tensors[static_cast<std::size_t>(i)].desc;
    tensor.format = nvinfer1::TensorFormat::kCHW4;
    require(!node.accepts(i, tensors, inputs, outputs), "tensor ", i, " is accepted in blocks");
    tensor.format = nvinfer1::TensorFormat::kLINEAR;
  }
  return countCombinations(node, tensors, 0, inputs);
}

void requireSilence(const Library& library) {
  const auto& complaints = library.log().complaints;
  require(complaints.empty(), complaints.empty() ? "" : complaints.front());
}

//! "float32 (2, 16, 96)"
std::string describe(const TensorSpec& spec) {
  std::ostringstream text;
  text << nameOf(spec.type) << " (";
  for (std::size_t i = 0; i < spec.shape.size(); ++i) {
    text << (i == 0 ? "" : ", ") << spec.shape[i].size;
  }
  text << ")";
  return text.str();
}

class Stream {
 public:
  Stream() { requireCuda(cudaStreamCreate(&stream_), "cudaStreamCreate"); }
  ~Stream() { cudaStreamDestroy(stream_); }
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;
  cudaStream_t get() const { return stream_; }

  //! Captures what a body enqueues, and enqueues that.
  template <typename Body>
  void replay(Body body) const {
    cudaGraph_t graph = nullptr;
    cudaGraphExec_t executable = nullptr;
    requireCuda(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal), "capturing");
    body();
    requireCuda(cudaStreamEndCapture(stream_, &graph), "capturing");
    requireCuda(cudaGraphInstantiateWithFlags(&executable, graph, 0), "a CUDA graph");
    requireCuda(cudaGraphLaunch(executable, stream_), "a CUDA graph");
    requireCuda(cudaStreamSynchronize(stream_), "a CUDA graph");
    cudaGraphExecDestroy(executable);
    cudaGraphDestroy(graph);
  }

 private:
  cudaStream_t stream_ = nullptr;
};

void requireEqual(const std::vector<Bytes>& found, const std::vector<Bytes>& wanted, const Case& of,
                  const char* how) {
  for (std::size_t i = 0; i < wanted.size(); ++i) {
    std::size_t different = 0, first = 0;
    for (std::size_t at = wanted[i].size(); at-- > 0;) {
      if (found[i][at] != wanted[i][at]) ++different, first = at;
    }
    require(different == 0, "output ", i, ", ", describe(of.outputs[i].spec), ", ", how, ": ",
            different, " of ", wanted[i].size(), " bytes differ, the first at ", first);
  }
}

}  // namespace

Descriptions descriptionsOf(const std::vector<TensorSpec>& tensors, Integer factor) {
  Descriptions all;
  for (const TensorSpec& tensor : tensors) {
    PluginTensorDesc one = {};
    one.type = tensor.type;
    one.format = nvinfer1::TensorFormat::kLINEAR;
    one.scale = 1;
    one.dims.nbDims = static_cast<std::int32_t>(tensor.shape.size());
    for (std::size_t axis = 0; axis < tensor.shape.size(); ++axis) {
      const Extent& extent = tensor.shape[axis];
      one.dims.d[axis] = static_cast<Integer>(extent.size) * (extent.is_open ? factor : 1);
    }
    all.push_back(one);
  }
  return all;
}

Ranges rangesOf(const std::vector<TensorSpec>& tensors) {
  const Descriptions own = descriptionsOf(tensors), largest = descriptionsOf(tensors, 2);
  Ranges all;
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    nvinfer1::DynamicPluginTensorDesc range = {};
    range.desc = own[i];
    range.min = own[i].dims;
    range.max = largest[i].dims;
#if S6_HAS_PLUGIN_V3
    range.opt = own[i].dims;
#endif
    for (std::size_t axis = 0; axis < tensors[i].shape.size(); ++axis) {
      if (!tensors[i].shape[axis].is_open) continue;
      range.desc.dims.d[axis] = -1;
      range.min.d[axis] = 1;
    }
    all.push_back(range);
  }
  return all;
}

std::vector<TensorSpec> inputsOf(const Case& of) {
  std::vector<TensorSpec> specs;
  for (const Input& input : of.inputs) specs.push_back(input.spec);
  return specs;
}

std::vector<TensorSpec> outputsOf(const Case& of) {
  std::vector<TensorSpec> specs;
  for (const Output& output : of.outputs) specs.push_back(output.spec);
  return specs;
}

Built build(const Library& library, const Case& of) {
  library.log().complaints.clear();
  const std::unique_ptr<Node> original = Node::create(library.creator(of.op), of.fields);
  require(original != nullptr, "the creator made no plugin");
  const std::unique_ptr<Node> node = original->clone();
  require(node != nullptr, "there is no copy of the plugin");
  require(node->outputCount() == static_cast<int>(of.outputs.size()), "it has ",
          node->outputCount(), " outputs");
  Built built = {};
  checkTypes(*node, of);
  checkShapes(*node, of);
  built.combinations = checkFormats(*node, of);
  const auto inputs = inputsOf(of), outputs = outputsOf(of);
  require(node->configure(rangesOf(inputs), rangesOf(outputs)), "the profile is refused");
  built.workspace_bytes =
      node->workspaceBytes(descriptionsOf(inputs, 2), descriptionsOf(outputs, 2));
  const std::size_t needed = node->workspaceBytes(descriptionsOf(inputs), descriptionsOf(outputs));
  require(needed <= built.workspace_bytes, "smaller shapes need more workspace: ", needed,
          " bytes, not ", built.workspace_bytes);
  built.engine_bytes = node->serialised();
  require(node->clone()->serialised() == built.engine_bytes, "a copy has other bytes");
  requireSilence(library);
  return built;
}

std::unique_ptr<Node> load(const Library& library, const Case& of, const Built& built) {
  std::unique_ptr<Node> node = Node::restore(library.creator(of.op), built.engine_bytes);
  require(node != nullptr, "the engine's bytes are refused");
  require(node->serialised() == built.engine_bytes, "the engine's bytes do not come back");
  require(node->takeShapes(descriptionsOf(inputsOf(of)), descriptionsOf(outputsOf(of))),
          "the shapes of the run are refused");
  requireSilence(library);
  return node;
}

std::size_t run(Node& node, const Case& of, std::size_t workspace_bytes) {
  const Stream stream;
  Memory expected(of, stream.get());
  expected.reset();
  of.call(expected);
  const std::vector<Bytes> wanted = expected.results();

  Memory memory(of, stream.get());
  const Watched workspace(workspace_bytes);
  const auto enqueue = [&] {
    require(node.enqueue(descriptionsOf(inputsOf(of)), descriptionsOf(outputsOf(of)),
                         memory.inputs(), memory.outputs(), workspace.address(), stream.get()),
            "enqueue failed");
  };
  memory.reset();
  enqueue();
  requireEqual(memory.results(), wanted, of, "enqueued");
  memory.reset();
  workspace.poison();
  stream.replay(enqueue);
  requireEqual(memory.results(), wanted, of, "from a CUDA graph");
  workspace.read("the workspace");
  std::size_t bytes = 0;
  for (const Bytes& output : wanted) bytes += output.size();
  return bytes;
}

}  // namespace s6::exercise
