// SPDX-License-Identifier: MIT
//! \file step_cases.cpp
//! \brief One token through a whole model, its weights one image of 128-byte lines.
#include <array>

#include "case.h"
#include "s6/decode.h"

namespace s6::exercise {
namespace {

constexpr std::int64_t kLine = 128;
constexpr std::int32_t kNone = -1;

struct Model {
  std::string what;
  std::int32_t bits;  //!< Of the blocks' matrices; packed ones go with 8 bits at both ends.
  std::int32_t b, m, d, r, layers, vocab, vocab_rows;
  float mixer_norm_eps;
  bool in_place;
};
constexpr std::int32_t kN = 16, kK = 4;
constexpr float kNormEps = 1e-5f;

//! The attributes "matrices" and "vectors".
struct Places {
  std::vector<std::int32_t> matrices;  //!< Embedding, in_proj, x_proj, dt_proj, out_proj, head.
  std::vector<std::int32_t> vectors;   //!< Norm, conv_weight, conv_bias, dt_bias, A, D, final norm.
  std::int32_t layer_lines;
};

//! Writes an image, and where everything came to lie in it.
class Image {
 public:
  explicit Image(const Model& model) {
    Places& found = places;
    found.matrices.resize(24);
    found.vectors.resize(7);
    const std::int32_t ends = model.bits == 16 ? 16 : 8;
    matrix(0, ends, 64, model.vocab_rows, model.m);
    matrix(5, ends, 64, model.vocab_rows, model.m);
    vector(6, model.m, 0.5f, 1.5f);
    const auto first = line();
    for (std::int32_t layer = 0; layer < model.layers; ++layer) {
      keeps_places_ = layer == 0;
      matrix(1, model.bits, 64, 2 * model.d, model.m);
      matrix(2, model.bits, 64, model.r + 2 * kN, model.d);
      matrix(3, model.bits, 16, model.d, model.r);
      matrix(4, model.bits, 64, model.m, model.d);
      vector(0, model.m, 0.5f, 1.5f);
      vector(1, std::int64_t{kK} * model.d, -0.5f, 0.5f);
      vector(2, model.d, -0.1f, 0.1f);
      vector(3, model.d, -4, -1);
      vector(4, std::int64_t{kN} * model.d, -8, -0.5f);
      vector(5, model.d, 0.5f, 1.5f);
      if (layer == 0) found.layer_lines = line() - first;
    }
  }

  Places places;
  std::vector<std::uint8_t> bytes;

 private:
  std::int32_t line() const { return static_cast<std::int32_t>(bytes.size() / kLine); }

  std::int32_t append(const std::vector<std::uint8_t>& values) {
    const std::int32_t at = line();
    bytes.insert(bytes.end(), values.begin(), values.end());
    bytes.resize((bytes.size() + kLine - 1) / kLine * kLine);
    return at;
  }

  void matrix(std::size_t position, std::int32_t bits, std::int32_t group_size, std::int64_t rows,
              std::int64_t columns) {
    std::array<std::int32_t, 4> place = {bits, 0, 0, kNone};
    if (bits == 16) {
      place[2] = append(random_.uniform(kHalf, rows * columns, -0.05f, 0.05f));
    } else {
      place[1] = group_size;
      place[2] = append(random_.words(rows * columns * bits / 32));
      const float scale = bits == 8 ? 0.0004f : 0.006f;
      place[3] = append(random_.uniform(kHalf, columns / group_size * rows, 0.5f * scale, scale));
    }
    if (keeps_places_) std::copy(place.begin(), place.end(), &places.matrices[4 * position]);
  }

  void vector(std::size_t position, std::int64_t count, float low, float high) {
    const std::int32_t at = append(random_.uniform(kFloat, count, low, high));
    if (keeps_places_) places.vectors[position] = at;
  }

  Random random_{8};
  bool keeps_places_ = true;
};

void step(const Model& c, const Places& places, Arguments& a) {
  const auto at = [&](std::int32_t line) { return a.in<char>(1) + line * kLine; };
  const std::int64_t layer_bytes = places.layer_lines * kLine;
  const auto matrix = [&](std::size_t position, bool of_block) {
    const std::int32_t* place = &places.matrices[4 * position];
    S6Matrix found = {};
    found.bits = place[0], found.group_size = place[1], found.data = at(place[2]);
    found.scales = place[3] == kNone ? nullptr : at(place[3]);
    found.layer_bytes = of_block ? layer_bytes : 0;
    found.scales_layer_bytes = place[3] == kNone ? 0 : found.layer_bytes;
    return found;
  };
  const auto vector = [&](std::size_t position) {
    return S6Vector{reinterpret_cast<const float*>(at(places.vectors[position])), layer_bytes};
  };
  S6Decode p = {};
  p.struct_size = sizeof(p);
  p.b = c.b, p.m = c.m, p.d = c.d, p.n = kN, p.k = kK, p.r = c.r, p.layers = c.layers;
  p.vocab = c.vocab, p.vocab_rows = c.vocab_rows;
  p.norm_eps = kNormEps, p.mixer_norm_eps = c.mixer_norm_eps;
  p.embedding = matrix(0, false), p.head = matrix(5, false);
  p.in_proj = matrix(1, true), p.x_proj = matrix(2, true);
  p.dt_proj = matrix(3, true), p.out_proj = matrix(4, true);
  p.norm = vector(0), p.conv_weight = vector(1), p.conv_bias = vector(2);
  p.dt_bias = vector(3), p.A = vector(4), p.D = vector(5);
  p.final_norm = vector(6).data;
  p.token_ids = a.in<std::int32_t>(0);
  p.logits = a.out<float>(0), p.next_ids = a.out<std::int32_t>(1);
  p.conv_state = a.out<float>(2), p.ssm_state = a.out<float>(3);
  p.workspace = a.scratch(s6_decode_workspace_bytes(&p));
  a.copy(2, 2);
  a.copy(3, 3);
  submit(p, s6_decode, a.stream);
}

Case caseOf(const Model& c) {
  Image image(c);
  Random random(9);
  Fields fields = fieldsOfContract();
  fields.integer("m", c.m).integer("n", kN).integer("r", c.r);
  fields.integer("vocab", c.vocab).integer("vocab_rows", c.vocab_rows);
  fields.number("norm_eps", kNormEps).number("mixer_norm_eps", c.mixer_norm_eps);
  fields.integers("matrices", image.places.matrices).integers("vectors", image.places.vectors);
  fields.integer("layer_lines", image.places.layer_lines);
  const Shape conv = {c.layers, open(c.b), kK - 1, c.d}, ssm = {c.layers, open(c.b), kN, c.d};
  Case made("MambaStep", c.what, fields);
  const auto words = static_cast<std::int64_t>(image.bytes.size() / 4);
  made.addInput(kInt, {open(c.b)}, random.ids(c.b, c.vocab));
  made.addInput(kInt, {words}, std::move(image.bytes));
  made.addInput(kFloat, conv, random, -1, 1);
  made.addInput(kFloat, ssm, random, -1, 1);
  made.addOutput(kFloat, {open(c.b), c.vocab});
  made.addOutput(kInt, {open(c.b)});
  made.addOutput(kFloat, conv, c.in_place ? 2 : kOwnMemory);
  made.addOutput(kFloat, ssm, c.in_place ? 3 : kOwnMemory);
  made.call = [c, places = image.places](Arguments& a) { step(c, places, a); };
  return made;
}

}  // namespace

std::vector<Case> stepCases() {
  std::vector<Case> cases;
  for (const std::int32_t bits : {16, 8, 4}) {
    const std::string weights = bits == 16 ? "float16" : "int" + std::to_string(bits);
    cases.push_back(caseOf({weights + ", 1 text", bits, 1, 128, 256, 16, 2, 300, 304, 0, false}));
    cases.push_back(caseOf(
        {weights + ", 3 texts, states in place", bits, 3, 128, 256, 16, 2, 300, 304, 0, true}));
    cases.push_back(caseOf({weights + ", 4 blocks as wide as those of 130m", bits, 1, 768, 1536, 48,
                            4, 1000, 1000, 0, true}));
  }
  cases.push_back(
      caseOf({"float16, norms of Falcon-Mamba", 16, 2, 128, 256, 16, 3, 300, 304, 1e-6f, false}));
  return cases;
}

}  // namespace s6::exercise
