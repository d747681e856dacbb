// SPDX-License-Identifier: MIT
#include "packed_matrix.h"

namespace s6::plugin {

PackedMatrix packedMatrix(const Call& call, std::size_t weight, std::int64_t columns) {
  const std::int64_t bits = call.attributes.integer("bits");
  const std::int64_t group_size = call.attributes.integer("group_size");
  const std::size_t scales = weight + 1;
  const Tensor& matrix = call.inputs.at(weight);
  const std::int64_t wanted = bits == 16 ? columns : columns * bits / 32;
  if (matrix.dimensions[1] != wanted || columns * bits % 32 != 0) {
    refuse(call.op.name, ": ", call.op.inputs[weight].name, " is ", describe(matrix),
           "; wanted: rows of ", columns, " weights of ", bits, " bits, ", wanted, " elements");
  }
  const auto of_int32 = [](std::int64_t value) { return static_cast<std::int32_t>(value); };
  if (bits == 16) {
    if (call.hasInput(scales)) refuse(call.op.name, ": weights of 16 bits have no scales");
    return {of_int32(bits), 0, matrix.address, nullptr};
  }
  if (!call.hasInput(scales)) {
    refuse(call.op.name, ": weights of ", bits, " bits need scales");
  }
  if (call.inputs[scales].dimensions[0] * group_size != columns) {
    refuse(call.op.name, ": scales is ", describe(call.inputs[scales]), "; wanted: ", columns,
           " columns in groups of ", group_size);
  }
  return {of_int32(bits), of_int32(group_size), matrix.address, call.inputs[scales].address};
}

}  // namespace s6::plugin
