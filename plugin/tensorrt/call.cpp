// SPDX-License-Identifier: MIT
#include "call.h"

#include "device_memory.h"

namespace s6::plugin {

S6DataType dataType(const Call& call, ElementType type) {
  switch (type) {
    case ElementType::kFloat32:
      return S6_FLOAT32;
    case ElementType::kFloat16:
      return S6_FLOAT16;
    case ElementType::kBfloat16:
      return S6_BFLOAT16;
    default:
      refuse(call.op.name, ": activations of ", nameOf(type), "; allowed: float32, float16, ",
             "bfloat16");
  }
}

void requireColumns(const Call& call, std::size_t input, std::int64_t begin, std::int64_t count) {
  const Tensor& tensor = call.inputs.at(input);
  const std::int64_t columns = tensor.dimensions.at(tensor.rank - 1);
  if (begin + count > columns) {
    refuse(call.op.name, ": ", call.op.inputs.at(input).name, " has ", columns,
           " columns; wanted: columns ", begin, " to ", begin + count);
  }
}

void copyTensor(const Call& call, const Tensor& from, const Tensor& to) {
  if (call.is_rehearsal || from.address == to.address) return;
  const auto bytes = static_cast<std::size_t>(byteCount(from));
  if (!copyOnDevice(to.address, from.address, bytes, call.stream)) {
    refuse(call.op.name, ": CUDA refused to copy ", bytes, " bytes");
  }
}

void clearWorkspace(const Call& call, std::size_t bytes) {
  if (call.is_rehearsal) return;
  if (!clearOnDevice(call.workspace, bytes, call.stream)) {
    refuse(call.op.name, ": CUDA refused to clear ", bytes, " bytes of workspace");
  }
}

void refuseStatus(const Call& call, S6Status status) {
  std::ostringstream shapes;
  for (std::size_t i = 0; i < call.inputs.size(); ++i) {
    shapes << (i == 0 ? "" : ", ") << call.op.inputs[i].name << " " << describe(call.inputs[i]);
  }
  refuse(call.op.name, ": the kernels refuse: ", s6_status_text(status), "; ", shapes.str());
}

}  // namespace s6::plugin
