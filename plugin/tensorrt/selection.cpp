// SPDX-License-Identifier: MIT
#include "s6/selection.h"

#include "operators.h"

namespace s6::plugin {

void runSelection(const Call& call) {
  enum { kU, kXProj, kDtProj };
  enum { kDelta, kB, kC };
  S6Selection p = {};
  p.tokens = call.sizes.of("t"), p.d = call.sizes.of("d");
  p.r = call.sizes.of("r"), p.n = call.sizes.of("n");
  const std::int64_t wanted = std::int64_t{p.r} + 2 * std::int64_t{p.n};
  if (call.sizes.of("rows") != wanted) {
    refuse(call.op.name, ": x_proj has ", call.sizes.of("rows"), " rows; wanted: r + 2 n, ",
           wanted);
  }
  p.u = call.input<const void>(kU);
  p.x_proj = call.input<const void>(kXProj);
  p.dt_proj = call.input<const void>(kDtProj);
  p.delta = call.output<void>(kDelta);
  p.B = call.output<void>(kB);
  p.C = call.output<void>(kC);
  submit(call, p, s6_selection_check, s6_selection);
}

}  // namespace s6::plugin
