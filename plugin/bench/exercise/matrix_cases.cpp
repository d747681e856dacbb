// SPDX-License-Identifier: MIT
//! \file matrix_cases.cpp
//! \brief The operators over rows: products, tables, packed matrices and norms.
#include <algorithm>

#include "case.h"
#include "s6/prefill.h"
#include "s6/quant_linear.h"
#include "s6/selection.h"

namespace s6::exercise {
namespace {

//! A matrix as it is stored; 16 bits have no scales.
struct Stored {
  std::int32_t bits, group_size, rows, columns;
};

std::string bitsOf(const Stored& m) {
  return m.bits == 16
             ? "16 bits"
             : std::to_string(m.bits) + " bits in groups of " + std::to_string(m.group_size);
}

void addMatrix(Case& made, const Stored& m, Random& random) {
  if (m.bits == 16) return made.addInput(kHalf, {m.rows, m.columns}, random, -0.5f, 0.5f);
  const std::int32_t words = m.columns * m.bits / 32;
  made.addInput(kInt, {m.rows, words}, random.words(std::int64_t{m.rows} * words));
  made.addInput(kHalf, {m.columns / m.group_size, m.rows}, random, 0.001f, 0.01f);
}

Fields fieldsOf(const Stored& m) {
  return fieldsOfContract().integer("bits", m.bits).integer("group_size", m.group_size);
}

//! The C API takes a few tokens at once.
Case linear(const Stored& m, std::int32_t tokens, std::int32_t outputs) {
  Random random(3);
  Case made("QuantLinear",
            bitsOf(m) + ", " + std::to_string(tokens) + (tokens == 1 ? " token" : " tokens"),
            fieldsOf(m).integer("outputs", outputs));
  made.addInput(kHalf, {open(tokens), m.columns}, random, -1, 1);
  addMatrix(made, m, random);
  made.addOutput(kFloat, {open(tokens), outputs});
  made.call = [=](Arguments& a) {
    S6QuantLinear p = {};
    p.rows = outputs, p.columns = m.columns, p.bits = m.bits, p.group_size = m.group_size;
    p.y_dtype = S6_FLOAT32, p.scale_group = m.rows;
    p.weight = a.input(1), p.scales = m.bits == 16 ? nullptr : a.input(2);
    for (std::int32_t done = 0; done < tokens; done += p.tokens) {
      p.tokens = std::min(tokens - done, S6_QUANT_LINEAR_MAX_TOKENS);
      p.x = a.in<char>(0) + std::int64_t{2} * done * m.columns;
      p.y = a.out<float>(0) + std::int64_t{done} * outputs;
      submit(p, s6_quant_linear, a.stream);
    }
  };
  return made;
}

Case embedding(const Stored& m, std::int32_t b, std::int32_t l) {
  Random random(4);
  // Ids up to twice the rows: those outside the table give rows of zeros.
  Case made("QuantEmbedding", bitsOf(m), fieldsOf(m).integer("m", m.columns));
  made.addInput(kInt, {open(b), open(l)}, random.ids(std::int64_t{b} * l, 2 * m.rows));
  addMatrix(made, m, random);
  made.addOutput(kFloat, {open(b), open(l), m.columns});
  made.call = [=](Arguments& a) {
    S6EmbeddingRows p = {};
    p.tokens = b * l, p.m = m.columns, p.vocab_rows = m.rows;
    p.bits = m.bits, p.group_size = m.group_size;
    p.table = a.input(1), p.scales = m.bits == 16 ? nullptr : a.input(2);
    p.token_ids = a.in<std::int32_t>(0), p.x = a.out<float>(0);
    submit(p, s6_embedding_rows, a.stream);
  };
  return made;
}

Case unpacking(const Stored& m) {
  Random random(5);
  Case made("QuantMatrix", bitsOf(m), fieldsOf(m).integer("columns", m.columns));
  addMatrix(made, m, random);
  made.addOutput(kHalf, {m.rows, m.columns});
  made.call = [=](Arguments& a) {
    S6Dequantise p = {};
    p.rows = m.rows, p.columns = m.columns, p.bits = m.bits, p.group_size = m.group_size;
    p.words = a.input(0), p.scales = a.input(1), p.y = a.output(0);
    submit(p, s6_dequantise, a.stream);
  };
  return made;
}

Case norm(const char* what, std::int32_t rows, std::int32_t m, bool with_delta, bool in_place) {
  Random random(6);
  const Shape shape = {open(rows), m};
  const float eps = 1e-5f;
  Case made("AddRmsNorm", what, fieldsOfContract().number("eps", eps));
  made.addInput(kFloat, shape, random, -2, 2);
  made.addInput(kFloat, {m}, random, 0.5f, 1.5f);
  if (with_delta) made.addInput(kHalf, shape, random, -1, 1);
  made.addOutput(kHalf, shape);
  made.addOutput(kFloat, shape, in_place ? 0 : kOwnMemory);
  made.call = [=](Arguments& a) {
    S6AddRmsNorm p = {};
    p.rows = rows, p.m = m, p.eps = eps;
    p.x = a.in<float>(0), p.weight = a.in<float>(1), p.delta = with_delta ? a.input(2) : nullptr;
    p.y = a.output(0), p.sum = a.out<float>(1);
    submit(p, s6_add_rms_norm, a.stream);
  };
  return made;
}

//! Columns beyond the slices are handed on.
Case sliceNorms(const char* what, std::int32_t columns, bool in_place) {
  Random random(7);
  const std::int32_t rows = 21, r = 8, n = 16;
  const float eps = 1e-6f;
  const Shape shape = {open(rows), columns};
  Case made("SliceNorms", what,
            fieldsOfContract().integer("r", r).integer("n", n).number("eps", eps));
  made.addInput(kHalf, shape, random, -2, 2);
  made.addOutput(kHalf, shape, in_place ? 0 : kOwnMemory);
  made.call = [=](Arguments& a) {
    a.copy(0, 0);
    S6SliceNorms p = {};
    p.rows = rows, p.r = r, p.n = n, p.eps = eps, p.x = a.output(0), p.x_row = columns;
    submit(p, s6_slice_norms, a.stream);
  };
  return made;
}

Case selection(std::int32_t tokens, std::int32_t d, std::int32_t r) {
  Random random(8);
  const std::int32_t n = S6_SELECTION_STATE;
  Case made("Selection", std::to_string(tokens) + " tokens, rank " + std::to_string(r),
            fieldsOfContract().integer("n", n));
  made.addInput(kHalf, {open(tokens), d}, random, -1, 1);
  made.addInput(kHalf, {r + 2 * n, d}, random, -0.05f, 0.05f);
  made.addInput(kHalf, {d, r}, random, -0.2f, 0.2f);
  made.addOutput(kHalf, {open(tokens), d});
  made.addOutput(kHalf, {open(tokens), n});
  made.addOutput(kHalf, {open(tokens), n});
  made.call = [=](Arguments& a) {
    S6Selection p = {};
    p.tokens = tokens, p.d = d, p.r = r, p.n = n;
    p.u = a.input(0), p.x_proj = a.input(1), p.dt_proj = a.input(2);
    p.delta = a.output(0), p.B = a.output(1), p.C = a.output(2);
    submit(p, s6_selection, a.stream);
  };
  return made;
}

}  // namespace

std::vector<Case> matrixCases() {
  std::vector<Case> cases;
  for (const Stored& m : {Stored{16, 0, 192, 256}, {8, 64, 192, 256}, {4, 32, 192, 256}}) {
    for (const std::int32_t tokens : {1, 8, 19}) cases.push_back(linear(m, tokens, 184));
  }
  for (const Stored& m : {Stored{16, 0, 300, 64}, {8, 16, 300, 64}, {4, 32, 300, 64}}) {
    cases.push_back(embedding(m, 2, 37));
  }
  for (const Stored& m : {Stored{8, 64, 96, 256}, {4, 32, 96, 256}}) cases.push_back(unpacking(m));
  cases.push_back(norm("without delta", 7, 768, false, false));
  cases.push_back(norm("with delta", 37, 768, true, false));
  cases.push_back(norm("with delta, sum in place", 3, 2560, true, true));
  cases.push_back(sliceNorms("all columns", 40, false));
  cases.push_back(sliceNorms("more columns", 48, false));
  cases.push_back(sliceNorms("in place", 40, true));
  cases.push_back(selection(1, 256, 16));
  cases.push_back(selection(77, 1536, 48));
  return cases;
}

}  // namespace s6::exercise
