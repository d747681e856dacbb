// SPDX-License-Identifier: MIT
#include "s6/selective_scan.h"

#include "operators.h"

namespace s6::plugin {
namespace {

enum Input { kU, kDelta, kA, kB, kC, kD, kZ, kDeltaBias, kState };
enum Output { kY, kFinalState };

//! Address of a slice of columns.
const void* slice(const Call& call, Input input, std::int64_t begin, std::int64_t count) {
  requireColumns(call, input, begin, count);
  return advance(call.input<const void>(input), call.inputs[input].type, begin);
}

}  // namespace

void runSelectiveScan(const Call& call) {
  const Attributes& attributes = call.attributes;
  S6SelectiveScan p = {};
  p.dtype = dataType(call, call.inputs[kU].type);
  p.b = call.sizes.of("b"), p.l = call.sizes.of("l");
  p.d = call.sizes.of("d"), p.n = call.sizes.of("n");
  p.delta_softplus = 1;
  p.sm_count = static_cast<std::int32_t>(attributes.integer("sm_count"));
  p.u = call.input<const void>(kU);
  p.delta = call.input<const void>(kDelta);
  p.A = call.input<const float>(kA);
  p.B = slice(call, kB, attributes.integer("B_begin"), p.n);
  p.C = slice(call, kC, attributes.integer("C_begin"), p.n);
  p.D = call.input<const float>(kD);
  p.z = slice(call, kZ, attributes.integer("z_begin"), p.d);
  p.delta_bias = call.input<const float>(kDeltaBias);
  p.state_in = call.input<const float>(kState);
  p.state_out = call.output<float>(kFinalState);
  p.y = call.output<void>(kY);
  p.B_row = call.inputs[kB].dimensions[2];
  p.C_row = call.inputs[kC].dimensions[2];
  p.z_row = call.inputs[kZ].dimensions[2];
  submit(call, p, s6_selective_scan_check, s6_selective_scan);
}

}  // namespace s6::plugin
