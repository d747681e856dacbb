// SPDX-License-Identifier: MIT
//! \file sequence_cases.cpp
//! \brief The operators over tokens: convolution and scan.
#include "case.h"
#include "s6/causal_conv1d.h"
#include "s6/prefill.h"
#include "s6/selective_scan.h"

namespace s6::exercise {
namespace {

S6DataType dataType(DataType type) {
  return type == kFloat ? S6_FLOAT32 : type == kHalf ? S6_FLOAT16 : S6_BFLOAT16;
}

struct Convolution {
  const char* what;
  DataType type, state;
  std::int32_t b, l, d, k, columns, begin;
  bool in_place = false;
};

//! States are of the activations' type in the C API.
void convolve(const Convolution& c, Arguments& a) {
  S6CausalConv1d p = {};
  p.dtype = dataType(c.type), p.weight_dtype = S6_FLOAT32;
  p.b = c.b, p.l = c.l, p.d = c.d, p.k = c.k;
  p.silu = 1;
  p.x = a.in<char>(0) + c.begin * elementBytes(c.type), p.x_row = c.columns;
  p.weight = a.input(1), p.bias = a.input(2), p.y = a.output(0);
  p.state_in = a.input(3), p.state_out = a.output(1);
  if (c.state == c.type) return submit(p, s6_causal_conv1d, a.stream);
  S6Convert narrow = {};
  narrow.from_dtype = S6_FLOAT32, narrow.to_dtype = p.dtype;
  narrow.count = std::int64_t{c.b} * (c.k - 1) * c.d;
  narrow.x = a.input(3);
  narrow.y = a.scratch(static_cast<std::size_t>(narrow.count * elementBytes(c.type)));
  S6Convert widen = narrow;
  widen.from_dtype = p.dtype, widen.to_dtype = S6_FLOAT32;
  widen.x = a.scratch(static_cast<std::size_t>(narrow.count * elementBytes(c.type)));
  widen.y = a.output(1);
  p.state_in = narrow.y, p.state_out = const_cast<void*>(widen.x);
  submit(narrow, s6_convert, a.stream);
  submit(p, s6_causal_conv1d, a.stream);
  submit(widen, s6_convert, a.stream);
}

Case caseOf(const Convolution& c) {
  Random random(1);
  const Shape state = {open(c.b), c.k - 1, c.d};
  Case made("CausalConv1d", c.what, fieldsOfContract().integer("x_begin", c.begin));
  made.addInput(c.type, {open(c.b), open(c.l), c.columns}, random, -1, 1);
  made.addInput(kFloat, {c.k, c.d}, random, -1, 1);
  made.addInput(kFloat, {c.d}, random, -1, 1);
  made.addInput(c.state, state, random, -1, 1);
  made.addOutput(c.type, {open(c.b), open(c.l), c.d});
  made.addOutput(c.state, state, c.in_place ? 3 : kOwnMemory);
  made.call = [c](Arguments& a) { convolve(c, a); };
  return made;
}

struct Scan {
  const char* what;
  DataType type;
  std::int32_t b, l, d, n;
  std::int32_t B_columns, B_begin, C_columns, C_begin, z_columns, z_begin;
  std::int32_t sm_count = 0;
  bool in_place = false;
};

void scan(const Scan& c, Arguments& a) {
  const auto slice = [&](std::size_t input, std::int32_t begin) {
    return a.in<char>(input) + begin * elementBytes(c.type);
  };
  S6SelectiveScan p = {};
  p.dtype = dataType(c.type);
  p.b = c.b, p.l = c.l, p.d = c.d, p.n = c.n;
  p.delta_softplus = 1, p.sm_count = c.sm_count;
  p.u = a.input(0), p.delta = a.input(1), p.A = a.in<float>(2);
  p.B = slice(3, c.B_begin), p.B_row = c.B_columns;
  p.C = slice(4, c.C_begin), p.C_row = c.C_columns;
  p.z = slice(6, c.z_begin), p.z_row = c.z_columns;
  p.D = a.in<float>(5), p.delta_bias = a.in<float>(7);
  p.state_in = a.in<float>(8), p.state_out = a.out<float>(1), p.y = a.output(0);
  submit(p, s6_selective_scan, a.stream);
}

Case caseOf(const Scan& c) {
  Random random(2);
  const auto tokens = [&](std::int32_t columns) { return Shape{open(c.b), open(c.l), columns}; };
  const Shape state = {open(c.b), c.n, c.d};
  Fields fields = fieldsOfContract();
  fields.integer("B_begin", c.B_begin).integer("C_begin", c.C_begin);
  fields.integer("z_begin", c.z_begin).integer("sm_count", c.sm_count);
  Case made("SelectiveScan", c.what, fields);
  made.addInput(c.type, tokens(c.d), random, -1, 1);
  made.addInput(c.type, tokens(c.d), random, -4, 0.5f);
  made.addInput(kFloat, {c.n, c.d}, random, -8, -0.5f);
  made.addInput(c.type, tokens(c.B_columns), random, -1, 1);
  made.addInput(c.type, tokens(c.C_columns), random, -1, 1);
  made.addInput(kFloat, {c.d}, random, -1, 1);
  made.addInput(c.type, tokens(c.z_columns), random, -1, 1);
  made.addInput(kFloat, {c.d}, random, -1, 1);
  made.addInput(kFloat, state, random, -1, 1);
  made.addOutput(c.type, tokens(c.d));
  made.addOutput(kFloat, state, c.in_place ? 8 : kOwnMemory);
  made.call = [c](Arguments& a) { scan(c, a); };
  return made;
}

}  // namespace

std::vector<Case> sequenceCases() {
  std::vector<Convolution> convolutions = {
      {"float16, half of a product", kHalf, kHalf, 2, 37, 96, 4, 200, 96},
      {"float16, states in float32", kHalf, kFloat, 3, 5, 128, 4, 128, 0},
      {"float16, states in float32 and in place", kHalf, kFloat, 1, 64, 256, 4, 512, 0, true},
      {"float16, fewer tokens than the window", kHalf, kHalf, 2, 1, 64, 4, 64, 0},
      {"float16, 2048 tokens", kHalf, kFloat, 1, 2048, 1536, 4, 3072, 0},
      {"float32, a window of 3", kFloat, kFloat, 2, 19, 96, 3, 96, 0},
  };
  std::vector<Scan> scans = {
      {"float16, slices of products", kHalf, 2, 37, 96, 16, 40, 6, 40, 22, 200, 104},
      {"float16, one token", kHalf, 3, 1, 128, 16, 16, 0, 16, 0, 128, 0},
      {"float16, 77 tokens, state in place", kHalf, 3, 77, 256, 16, 80, 48, 80, 64, 512, 256, 0,
       true},
      {"float16, 2048 tokens", kHalf, 1, 2048, 1536, 16, 80, 48, 80, 64, 3072, 1536},
      {"float16, 512 tokens on 8 multiprocessors", kHalf, 1, 512, 1536, 16, 80, 48, 80, 64, 3072,
       1536, 8},
      {"float16, a state of 8", kHalf, 1, 33, 64, 8, 8, 0, 8, 0, 64, 0},
      {"float32", kFloat, 2, 45, 96, 16, 16, 0, 16, 0, 96, 0},
  };
#if S6_HAS_PLUGIN_V3
  constexpr auto kBfloat = DataType::kBF16;
  convolutions.push_back({"bfloat16", kBfloat, kBfloat, 2, 37, 96, 4, 200, 96});
  scans.push_back({"bfloat16", kBfloat, 2, 100, 128, 16, 48, 16, 48, 32, 256, 128});
#endif
  std::vector<Case> cases;
  for (const Convolution& c : convolutions) cases.push_back(caseOf(c));
  for (const Scan& c : scans) cases.push_back(caseOf(c));
  return cases;
}

}  // namespace s6::exercise
