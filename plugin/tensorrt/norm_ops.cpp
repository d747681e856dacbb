// SPDX-License-Identifier: MIT
#include "operators.h"
#include "s6/prefill.h"

namespace s6::plugin {

void runAddRmsNorm(const Call& call) {
  enum { kX, kWeight, kDelta };
  enum { kY, kSum };
  S6AddRmsNorm p = {};
  p.rows = call.sizes.of("t"), p.m = call.sizes.of("m");
  p.eps = call.attributes.number("eps");
  p.x = call.input<const float>(kX);
  p.delta = call.input<const void>(kDelta);
  p.weight = call.input<const float>(kWeight);
  p.sum = call.output<float>(kSum);
  p.y = call.output<void>(kY);
  submit(call, p, s6_add_rms_norm_check, s6_add_rms_norm);
}

void runSliceNorms(const Call& call) {
  S6SliceNorms p = {};
  p.rows = call.sizes.of("t");
  p.r = static_cast<std::int32_t>(call.attributes.integer("r"));
  p.n = static_cast<std::int32_t>(call.attributes.integer("n"));
  p.eps = call.attributes.number("eps");
  p.x_row = call.sizes.of("columns");
  p.x = call.output<void>(0);
  requireColumns(call, 0, 0, std::int64_t{p.r} + 2 * std::int64_t{p.n});
  copyTensor(call, call.inputs[0], call.outputs[0]);
  submit(call, p, s6_slice_norms_check, s6_slice_norms);
}

}  // namespace s6::plugin
