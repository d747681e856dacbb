// SPDX-License-Identifier: MIT
#include "s6/causal_conv1d.h"

#include "operators.h"
#include "s6/prefill.h"

namespace s6::plugin {
namespace {

enum Input { kX, kWeight, kBias, kState };
enum Output { kY, kFinalState };

bool convertsState(const Call& call) { return call.inputs[kState].type != call.inputs[kX].type; }

void convert(const Call& call, S6DataType from, const void* x, S6DataType to, void* y) {
  S6Convert p = {};
  p.from_dtype = from, p.to_dtype = to;
  p.count = byteCount(call.inputs[kState]) / elementBytes(call.inputs[kState].type);
  p.x = x, p.y = y;
  submit(call, p, s6_convert_check, s6_convert);
}

}  // namespace

std::size_t causalConv1dWorkspace(const Call& call) {
  if (!convertsState(call)) return 0;
  return static_cast<std::size_t>(byteCount(call.inputs[kState]) / 2);
}

void runCausalConv1d(const Call& call) {
  const Tensor& x = call.inputs[kX];
  const std::int64_t begin = call.attributes.integer("x_begin");
  S6CausalConv1d p = {};
  p.dtype = dataType(call, x.type);
  p.weight_dtype = S6_FLOAT32;
  p.b = call.sizes.of("b"), p.l = call.sizes.of("l");
  p.d = call.sizes.of("d"), p.k = call.sizes.of("k");
  p.silu = 1;
  requireColumns(call, kX, begin, p.d);
  p.x = advance(call.input<const void>(kX), x.type, begin);
  p.x_row = x.dimensions[2];
  p.weight = call.input<const void>(kWeight);
  p.bias = call.input<const void>(kBias);
  p.y = call.output<void>(kY);
  p.state_in = call.input<const void>(kState);
  p.state_out = call.output<void>(kFinalState);
  if (!convertsState(call)) {
    submit(call, p, s6_causal_conv1d_check, s6_causal_conv1d);
    return;
  }
  convert(call, S6_FLOAT32, p.state_in, p.dtype, call.workspace);
  p.state_in = p.state_out = call.workspace;
  submit(call, p, s6_causal_conv1d_check, s6_causal_conv1d);
  convert(call, p.dtype, call.workspace, S6_FLOAT32, call.output<void>(kFinalState));
}

}  // namespace s6::plugin
