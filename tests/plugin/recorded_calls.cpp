// SPDX-License-Identifier: MIT
#include "recorded_calls.h"

#include "device_memory.h"

namespace s6::test {

std::vector<Event> events;
bool gpu_is_full = false;

namespace {

template <typename Problem>
S6Status record(const Problem* problem, S6Status checked) {
  if (checked != S6_STATUS_OK) return checked;
  if (gpu_is_full) return S6_STATUS_LAUNCH_FAILED;
  events.emplace_back(*problem);
  return S6_STATUS_OK;
}

}  // namespace
}  // namespace s6::test

namespace s6::plugin {

bool copyOnDevice(void* to, const void* from, std::size_t bytes, S6Stream) {
  test::events.emplace_back(test::Copy{to, from, bytes});
  return !test::gpu_is_full;
}

bool clearOnDevice(void* at, std::size_t bytes, S6Stream) {
  test::events.emplace_back(test::Clear{at, bytes});
  return !test::gpu_is_full;
}

}  // namespace s6::plugin

#define RECORDS(name, Problem)                           \
  extern "C" S6Status name(const Problem* p, S6Stream) { \
    return s6::test::record(p, name##_check(p));         \
  }
RECORDS(s6_causal_conv1d, S6CausalConv1d)
RECORDS(s6_selective_scan, S6SelectiveScan)
RECORDS(s6_quant_linear, S6QuantLinear)
RECORDS(s6_embedding_rows, S6EmbeddingRows)
RECORDS(s6_add_rms_norm, S6AddRmsNorm)
RECORDS(s6_slice_norms, S6SliceNorms)
RECORDS(s6_selection, S6Selection)
RECORDS(s6_dequantise, S6Dequantise)
RECORDS(s6_convert, S6Convert)
RECORDS(s6_decode, S6Decode)
