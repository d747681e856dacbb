// SPDX-License-Identifier: MIT
//! \file mamba_step.cpp
//! \brief A token through a whole model: finds the weights in their image, keeps states in place.
#include "operators.h"
#include "s6/decode.h"

namespace s6::plugin {
namespace {

enum Input { kTokenIds, kWeights, kConvState, kSsmState };
enum Output { kLogits, kNextIds, kFinalConvState, kFinalSsmState };

constexpr std::int64_t kLineBytes = 128;

//! Finds tensors in the weight image by their lines.
class Image {
 public:
  explicit Image(const Call& call)
      : call_(call),
        layers_(call.sizes.of("layers")),
        layer_bytes_(call.attributes.integer("layer_lines") * kLineBytes),
        bytes_(byteCount(call.inputs[kWeights])) {}

  /*!
   * \param what For the sentence of a refusal.
   * \param layered Whether every block has one.
   * \throws Refusal It reaches beyond the image.
   */
  const void* find(const char* what, std::int64_t line, std::int64_t size, bool layered) const {
    const std::int64_t last = layered ? (layers_ - 1) * layer_bytes_ : 0;
    if (line < 0 || line * kLineBytes + last + size > bytes_) {
      refuse(call_.op.name, ": ", what, " at line ", line, " does not lie in the weight image of ",
             bytes_, " bytes");
    }
    return call_.input<const char>(kWeights) + line * kLineBytes;
  }

  //! The matrix at a position of the attribute "matrices".
  S6Matrix matrix(const char* what, int position, std::int64_t rows, std::int64_t columns,
                  bool layered) const {
    const std::int64_t* of = &call_.attributes.integers("matrices").at(4 * position);
    const std::int64_t bits = of[0], group_size = of[1], line = of[2], scale_line = of[3];
    const bool packed = bits != 16;
    if ((bits != 16 && bits != 8 && bits != 4) || (packed && group_size < 1)) {
      refuse(call_.op.name, ": ", what, " has ", bits, " bits in groups of ", group_size,
             "; allowed: 16 bits, or 8 or 4 in groups");
    }
    S6Matrix found = {};
    found.bits = static_cast<std::int32_t>(bits);
    found.data = find(what, line, rows * columns * bits / 8, layered);
    found.layer_bytes = layered ? layer_bytes_ : 0;
    if (!packed) return found;
    found.group_size = static_cast<std::int32_t>(group_size);
    const std::int64_t scale_bytes = columns / group_size * rows * 2;
    found.scales = find(what, scale_line, scale_bytes, layered);
    found.scales_layer_bytes = found.layer_bytes;
    return found;
  }

  //! The vector at a position of the attribute "vectors".
  S6Vector vector(const char* what, int position, std::int64_t count, bool layered) const {
    const std::int64_t line = call_.attributes.integers("vectors").at(position);
    return {static_cast<const float*>(find(what, line, 4 * count, layered)),
            layered ? layer_bytes_ : 0};
  }

 private:
  const Call& call_;
  std::int64_t layers_, layer_bytes_, bytes_;
};

//! All but addresses.
S6Decode sizesOf(const Call& call) {
  const Attributes& attributes = call.attributes;
  const auto integer = [&](const char* name) {
    return static_cast<std::int32_t>(attributes.integer(name));
  };
  S6Decode p = {};
  p.struct_size = sizeof(p);
  p.b = call.sizes.of("b"), p.layers = call.sizes.of("layers");
  p.d = call.sizes.of("d"), p.k = call.sizes.of("k");
  p.m = integer("m"), p.n = integer("n"), p.r = integer("r");
  p.vocab = integer("vocab"), p.vocab_rows = integer("vocab_rows");
  p.sm_count = integer("sm_count");
  p.norm_eps = attributes.number("norm_eps");
  p.mixer_norm_eps = attributes.number("mixer_norm_eps");
  return p;
}

}  // namespace

std::size_t mambaStepWorkspace(const Call& call) {
  const S6Decode p = sizesOf(call);
  return s6_decode_workspace_bytes(&p);
}

void runMambaStep(const Call& call) {
  S6Decode p = sizesOf(call);
  if (p.b > S6_DECODE_MAX_BATCH) {
    refuse(call.op.name, ": ", p.b, " texts; allowed: up to ", S6_DECODE_MAX_BATCH);
  }
  const Image image(call);
  const std::int64_t m = p.m, d = p.d, n = p.n, r = p.r;
  p.embedding = image.matrix("the embedding", 0, p.vocab_rows, m, false);
  p.in_proj = image.matrix("in_proj", 1, 2 * d, m, true);
  p.x_proj = image.matrix("x_proj", 2, r + 2 * n, d, true);
  p.dt_proj = image.matrix("dt_proj", 3, d, r, true);
  p.out_proj = image.matrix("out_proj", 4, m, d, true);
  p.head = image.matrix("the head", 5, p.vocab_rows, m, false);
  p.norm = image.vector("norm", 0, m, true);
  p.conv_weight = image.vector("conv_weight", 1, p.k * d, true);
  p.conv_bias = image.vector("conv_bias", 2, d, true);
  p.dt_bias = image.vector("dt_bias", 3, d, true);
  p.A = image.vector("A", 4, n * d, true);
  p.D = image.vector("D", 5, d, true);
  p.final_norm = image.vector("the final norm", 6, m, false).data;
  p.token_ids = call.input<const std::int32_t>(kTokenIds);
  p.conv_state = call.output<float>(kFinalConvState);
  p.ssm_state = call.output<float>(kFinalSsmState);
  p.logits = call.output<float>(kLogits);
  p.next_ids = call.output<std::int32_t>(kNextIds);
  p.workspace = call.workspace;
  copyTensor(call, call.inputs[kConvState], call.outputs[kFinalConvState]);
  copyTensor(call, call.inputs[kSsmState], call.outputs[kFinalSsmState]);
  // The kernel counts its exchanges from what it finds there, and TensorRT's workspace is shared.
  clearWorkspace(call, s6_decode_workspace_bytes(&p));
  submit(call, p, s6_decode_check, s6_decode);
}

}  // namespace s6::plugin
