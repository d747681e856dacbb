// SPDX-License-Identifier: MIT
// Every bad argument of the prefill calls and of sampling gives its own status. No device needed.
#include <cstring>

#include "expect.h"
#include "philox.h"
#include "s6/int8_linear.h"
#include "s6/prefill.h"
#include "s6/quant_linear.h"
#include "s6/sample.h"
#include "s6/selection.h"

namespace {

alignas(16) unsigned char memory[64];

template <typename T>
T* at(int offset) {
  return reinterpret_cast<T*>(memory + offset);
}

S6EmbeddingRows goodProblem(S6EmbeddingRows p) {
  p.struct_size = sizeof(p);
  p.tokens = 3;
  p.m = 64;
  p.vocab_rows = 10;
  p.bits = 4;
  p.group_size = 32;
  p.table = p.scales = memory;
  p.token_ids = at<int32_t>(0);
  p.x = at<float>(0);
  return p;
}

S6AddRmsNorm goodProblem(S6AddRmsNorm p) {
  p.struct_size = sizeof(p);
  p.rows = 2;
  p.m = 64;
  p.eps = 1e-5f;
  p.x = p.weight = p.sum = at<float>(0);
  p.delta = p.y = memory;
  return p;
}

S6SliceNorms goodProblem(S6SliceNorms p) {
  p.struct_size = sizeof(p);
  p.rows = 2;
  p.r = 5;
  p.n = 16;
  p.x = memory;
  return p;
}

S6Dequantise goodProblem(S6Dequantise p) {
  p.struct_size = sizeof(p);
  p.rows = 7;
  p.columns = 64;
  p.bits = 8;
  p.group_size = 16;
  p.words = p.scales = p.y = memory;
  return p;
}

S6Convert goodProblem(S6Convert p) {
  p.struct_size = sizeof(p);
  p.from_dtype = S6_FLOAT32;
  p.to_dtype = S6_FLOAT16;
  p.count = 9;
  p.x = p.y = memory;
  return p;
}

S6QuantLinear goodProblem(S6QuantLinear p) {
  p.struct_size = sizeof(p);
  p.tokens = 3;
  p.rows = 7;
  p.columns = 64;
  p.bits = 4;
  p.group_size = 32;
  p.y_dtype = S6_FLOAT32;
  p.add = 1;
  p.weight = p.scales = p.x = p.y = memory;
  return p;
}

S6QuantiseRows goodProblem(S6QuantiseRows p) {
  p.struct_size = sizeof(p);
  p.tokens = 3;
  p.columns = 256;
  p.x = p.codes = memory;
  p.scales = at<float>(4);
  return p;
}

S6Int8Linear goodProblem(S6Int8Linear p) {
  p.struct_size = sizeof(p);
  p.tokens = 3;
  p.rows = 24;
  p.columns = 256;
  p.group_size = 128;
  p.y_dtype = S6_FLOAT32;
  p.add = 1;
  p.weight = p.weight_scales = p.codes = p.y = memory;
  p.scales = at<float>(4);
  return p;
}

S6Selection goodProblem(S6Selection p) {
  p.struct_size = sizeof(p);
  p.tokens = 3;
  p.d = 256;
  p.r = 48;
  p.n = 16;
  p.u = p.x_proj = p.dt_proj = p.delta = p.B = p.C = memory;
  return p;
}

S6Sample goodProblem(S6Sample p) {
  p.struct_size = sizeof(p);
  p.b = 2;
  p.vocab = 11;
  p.logits = p.temperature = p.top_p = at<float>(0);
  p.top_k = at<int32_t>(0);
  p.seed = p.draws = at<uint64_t>(0);
  p.next_ids = at<int32_t>(0);
  return p;
}

//! Spoils a good problem and expects the check's verdict.
template <typename Problem, typename Spoil>
void expectStatus(S6Status (*check)(const Problem*), S6Status wanted, Spoil spoil, int line) {
  Problem p = goodProblem(Problem{});
  spoil(p);
  const S6Status status = check(&p);
  s6::test::expect(status == wanted, s6_status_text(status), __FILE__, line);
}
#define EXPECT_STATUS(check, wanted, change) \
  expectStatus(check, wanted, [](auto& p) { change; }, __LINE__)

template <typename Problem>
void expectGuarded(S6Status (*check)(const Problem*)) {
  EXPECT_STATUS(check, S6_STATUS_OK, (void)p);
  EXPECT_STATUS(check, S6_STATUS_BAD_ABI, p.struct_size -= 8);
  S6_EXPECT(check(nullptr) == S6_STATUS_NULL_POINTER);
}

void embeddingProblems() {
  const auto check = s6_embedding_rows_check;
  expectGuarded(check);
  EXPECT_STATUS(check, S6_STATUS_OK, p.bits = 16; p.scales = nullptr; p.group_size = 0);
  EXPECT_STATUS(check, S6_STATUS_OK, p.tokens = 0; p.x = nullptr; p.token_ids = nullptr);
  EXPECT_STATUS(check, S6_STATUS_BAD_SIZE, p.tokens = -1);
  EXPECT_STATUS(check, S6_STATUS_BAD_SIZE, p.m = 60);
  EXPECT_STATUS(check, S6_STATUS_BAD_SIZE, p.vocab_rows = 0);
  EXPECT_STATUS(check, S6_STATUS_BAD_SIZE, p.bits = 2);
  EXPECT_STATUS(check, S6_STATUS_BAD_SIZE, p.group_size = 0);
  EXPECT_STATUS(check, S6_STATUS_BAD_SIZE, p.group_size = 12);
  EXPECT_STATUS(check, S6_STATUS_BAD_SIZE, p.group_size = 48);
  EXPECT_STATUS(check, S6_STATUS_NULL_POINTER, p.table = nullptr);
  EXPECT_STATUS(check, S6_STATUS_NULL_POINTER, p.scales = nullptr);
  EXPECT_STATUS(check, S6_STATUS_NULL_POINTER, p.token_ids = nullptr);
  EXPECT_STATUS(check, S6_STATUS_NULL_POINTER, p.x = nullptr);
  EXPECT_STATUS(check, S6_STATUS_MISALIGNED, p.table = memory + 8);
  EXPECT_STATUS(check, S6_STATUS_MISALIGNED, p.x = at<float>(4));
}

void normProblems() {
  const auto check = s6_add_rms_norm_check;
  expectGuarded(check);
  EXPECT_STATUS(check, S6_STATUS_OK, p.delta = nullptr; p.sum = nullptr; p.x_row = 128);
  EXPECT_STATUS(check, S6_STATUS_OK, p.sum = at<float>(16); p.x_row = 128);
  EXPECT_STATUS(check, S6_STATUS_OK, p.rows = 0; p.x = nullptr; p.y = nullptr);
  EXPECT_STATUS(check, S6_STATUS_BAD_SIZE, p.rows = -1);
  EXPECT_STATUS(check, S6_STATUS_BAD_SIZE, p.m = 4);
  EXPECT_STATUS(check, S6_STATUS_BAD_SIZE, p.m = S6_NORM_MAX_WIDTH + 8);
  EXPECT_STATUS(check, S6_STATUS_BAD_SIZE, p.eps = -1.0f);
  EXPECT_STATUS(check, S6_STATUS_BAD_STRIDE, p.x_row = 56);
  EXPECT_STATUS(check, S6_STATUS_BAD_STRIDE, p.x_row = 66);
  EXPECT_STATUS(check, S6_STATUS_BAD_STRIDE, p.x_row = 128);  // A sum in place is dense.
  EXPECT_STATUS(check, S6_STATUS_NULL_POINTER, p.x = nullptr);
  EXPECT_STATUS(check, S6_STATUS_NULL_POINTER, p.weight = nullptr);
  EXPECT_STATUS(check, S6_STATUS_NULL_POINTER, p.y = nullptr);
  EXPECT_STATUS(check, S6_STATUS_NULL_POINTER, p.sum = nullptr);
  EXPECT_STATUS(check, S6_STATUS_MISALIGNED, p.delta = memory + 2);
  EXPECT_STATUS(check, S6_STATUS_MISALIGNED, p.sum = at<float>(4));
  EXPECT_STATUS(check, S6_STATUS_OK, p.m = 256; p.y_scales = at<float>(4));
  EXPECT_STATUS(check, S6_STATUS_BAD_SIZE, p.y_scales = at<float>(0));  // Half a group.
  EXPECT_STATUS(check, S6_STATUS_MISALIGNED, p.m = 256; p.y_scales = at<float>(2));
}

void sliceProblems() {
  const auto check = s6_slice_norms_check;
  expectGuarded(check);
  EXPECT_STATUS(check, S6_STATUS_OK, p.x_row = 40);
  EXPECT_STATUS(check, S6_STATUS_BAD_SIZE, p.r = 0);
  EXPECT_STATUS(check, S6_STATUS_BAD_SIZE, p.n = -16);
  EXPECT_STATUS(check, S6_STATUS_BAD_STRIDE, p.x_row = 36);
  EXPECT_STATUS(check, S6_STATUS_NULL_POINTER, p.x = nullptr);
  EXPECT_STATUS(check, S6_STATUS_MISALIGNED, p.x = memory + 1);
}

void dequantiseProblems() {
  const auto check = s6_dequantise_check;
  expectGuarded(check);
  EXPECT_STATUS(check, S6_STATUS_OK, p.bits = 4; p.scale_group = 100);
  EXPECT_STATUS(check, S6_STATUS_OK, p.rows = 0; p.y = nullptr);
  EXPECT_STATUS(check, S6_STATUS_BAD_SIZE, p.bits = 16);
  EXPECT_STATUS(check, S6_STATUS_BAD_SIZE, p.columns = 72);
  EXPECT_STATUS(check, S6_STATUS_BAD_SIZE, p.rows = -1);
  EXPECT_STATUS(check, S6_STATUS_BAD_STRIDE, p.scale_group = 6);
  EXPECT_STATUS(check, S6_STATUS_NULL_POINTER, p.words = nullptr);
  EXPECT_STATUS(check, S6_STATUS_NULL_POINTER, p.scales = nullptr);
  EXPECT_STATUS(check, S6_STATUS_NULL_POINTER, p.y = nullptr);
  EXPECT_STATUS(check, S6_STATUS_MISALIGNED, p.y = memory + 8);
}

void convertProblems() {
  const auto check = s6_convert_check;
  expectGuarded(check);
  EXPECT_STATUS(check, S6_STATUS_OK, p.from_dtype = S6_FLOAT16; p.to_dtype = S6_FLOAT32);
  EXPECT_STATUS(check, S6_STATUS_OK, p.count = 0; p.x = nullptr; p.y = nullptr);
  EXPECT_STATUS(check, S6_STATUS_BAD_DTYPE, p.to_dtype = S6_FLOAT32);
  EXPECT_STATUS(check, S6_STATUS_BAD_DTYPE, p.to_dtype = S6_BFLOAT16);
  EXPECT_STATUS(check, S6_STATUS_BAD_SIZE, p.count = -1);
  EXPECT_STATUS(check, S6_STATUS_NULL_POINTER, p.x = nullptr);
  EXPECT_STATUS(check, S6_STATUS_MISALIGNED, p.x = memory + 2);
}

void linearProblems() {
  const auto check = s6_quant_linear_check;
  expectGuarded(check);
  EXPECT_STATUS(check, S6_STATUS_OK, p.bits = 16; p.scales = nullptr; p.group_size = 0);
  EXPECT_STATUS(check, S6_STATUS_OK, p.tokens = 0; p.x = nullptr; p.y = nullptr);
  EXPECT_STATUS(check, S6_STATUS_OK, p.y_dtype = S6_FLOAT16; p.add = 0; p.x_row = 72; p.y_row = 9);
  EXPECT_STATUS(check, S6_STATUS_BAD_DTYPE, p.y_dtype = S6_FLOAT16);
  EXPECT_STATUS(check, S6_STATUS_BAD_DTYPE, p.y_dtype = S6_BFLOAT16; p.add = 0);
  EXPECT_STATUS(check, S6_STATUS_BAD_SIZE, p.tokens = S6_QUANT_LINEAR_MAX_TOKENS + 1);
  EXPECT_STATUS(check, S6_STATUS_BAD_SIZE, p.rows = 0);
  EXPECT_STATUS(check, S6_STATUS_BAD_SIZE, p.columns = 68);
  EXPECT_STATUS(check, S6_STATUS_BAD_SIZE, p.bits = 3);
  EXPECT_STATUS(check, S6_STATUS_BAD_STRIDE, p.scale_group = 6);
  EXPECT_STATUS(check, S6_STATUS_BAD_STRIDE, p.x_row = 68);
  EXPECT_STATUS(check, S6_STATUS_BAD_STRIDE, p.y_row = 6);
  EXPECT_STATUS(check, S6_STATUS_NULL_POINTER, p.weight = nullptr);
  EXPECT_STATUS(check, S6_STATUS_NULL_POINTER, p.x = nullptr);
  EXPECT_STATUS(check, S6_STATUS_NULL_POINTER, p.y = nullptr);
  EXPECT_STATUS(check, S6_STATUS_MISALIGNED, p.x = memory + 4);
}

void quantiseProblems() {
  const auto check = s6_quantise_rows_check;
  expectGuarded(check);
  EXPECT_STATUS(check, S6_STATUS_OK, p.x_row = 264);
  EXPECT_STATUS(check, S6_STATUS_OK, p.tokens = 0; p.x = nullptr; p.codes = nullptr);
  EXPECT_STATUS(check, S6_STATUS_BAD_SIZE, p.tokens = -1);
  EXPECT_STATUS(check, S6_STATUS_BAD_SIZE, p.columns = 192);
  EXPECT_STATUS(check, S6_STATUS_BAD_SIZE, p.columns = 0);
  EXPECT_STATUS(check, S6_STATUS_BAD_STRIDE, p.x_row = 248);
  EXPECT_STATUS(check, S6_STATUS_BAD_STRIDE, p.x_row = 260);
  EXPECT_STATUS(check, S6_STATUS_NULL_POINTER, p.x = nullptr);
  EXPECT_STATUS(check, S6_STATUS_NULL_POINTER, p.codes = nullptr);
  EXPECT_STATUS(check, S6_STATUS_NULL_POINTER, p.scales = nullptr);
  EXPECT_STATUS(check, S6_STATUS_MISALIGNED, p.x = memory + 8);
  EXPECT_STATUS(check, S6_STATUS_MISALIGNED, p.codes = memory + 8);
  EXPECT_STATUS(check, S6_STATUS_MISALIGNED, p.scales = at<float>(2));
}

void int8LinearProblems() {
  const auto check = s6_int8_linear_check;
  expectGuarded(check);
  EXPECT_STATUS(check, S6_STATUS_OK, p.y_dtype = S6_FLOAT16; p.add = 0; p.y_row = 32);
  EXPECT_STATUS(check, S6_STATUS_OK, p.group_size = 256);
  EXPECT_STATUS(check, S6_STATUS_OK, p.tokens = 0; p.codes = nullptr; p.y = nullptr);
  EXPECT_STATUS(check, S6_STATUS_BAD_SIZE, p.tokens = -1);
  EXPECT_STATUS(check, S6_STATUS_BAD_SIZE, p.rows = 20);
  EXPECT_STATUS(check, S6_STATUS_BAD_SIZE, p.rows = 0);
  EXPECT_STATUS(check, S6_STATUS_BAD_SIZE, p.columns = 320);
  EXPECT_STATUS(check, S6_STATUS_BAD_SIZE, p.columns = 0);
  EXPECT_STATUS(check, S6_STATUS_BAD_SIZE, p.group_size = 64);
  EXPECT_STATUS(check, S6_STATUS_BAD_SIZE, p.group_size = 0);
  EXPECT_STATUS(check, S6_STATUS_BAD_SIZE, p.group_size = 384);
  EXPECT_STATUS(check, S6_STATUS_BAD_DTYPE, p.y_dtype = S6_FLOAT16);
  EXPECT_STATUS(check, S6_STATUS_BAD_DTYPE, p.y_dtype = S6_BFLOAT16; p.add = 0);
  EXPECT_STATUS(check, S6_STATUS_BAD_STRIDE, p.y_row = 16);
  EXPECT_STATUS(check, S6_STATUS_BAD_STRIDE, p.y_row = 28);
  EXPECT_STATUS(check, S6_STATUS_NULL_POINTER, p.weight = nullptr);
  EXPECT_STATUS(check, S6_STATUS_NULL_POINTER, p.weight_scales = nullptr);
  EXPECT_STATUS(check, S6_STATUS_NULL_POINTER, p.codes = nullptr);
  EXPECT_STATUS(check, S6_STATUS_NULL_POINTER, p.scales = nullptr);
  EXPECT_STATUS(check, S6_STATUS_NULL_POINTER, p.y = nullptr);
  EXPECT_STATUS(check, S6_STATUS_MISALIGNED, p.weight = memory + 8);
  EXPECT_STATUS(check, S6_STATUS_MISALIGNED, p.weight_scales = memory + 8);
  EXPECT_STATUS(check, S6_STATUS_MISALIGNED, p.y = memory + 8);
}

void selectionProblems() {
  const auto check = s6_selection_check;
  expectGuarded(check);
  EXPECT_STATUS(check, S6_STATUS_OK, p.r = S6_SELECTION_MAX_RANK);
  EXPECT_STATUS(check, S6_STATUS_OK, p.tokens = 0; p.u = nullptr; p.delta = p.B = p.C = nullptr);
  EXPECT_STATUS(check, S6_STATUS_BAD_SIZE, p.tokens = -1);
  EXPECT_STATUS(check, S6_STATUS_BAD_SIZE, p.d = 192);
  EXPECT_STATUS(check, S6_STATUS_BAD_SIZE, p.d = 0);
  EXPECT_STATUS(check, S6_STATUS_BAD_SIZE, p.r = 24);
  EXPECT_STATUS(check, S6_STATUS_BAD_SIZE, p.r = 0);
  EXPECT_STATUS(check, S6_STATUS_BAD_SIZE, p.r = S6_SELECTION_MAX_RANK + 16);
  EXPECT_STATUS(check, S6_STATUS_BAD_SIZE, p.n = 8);
  EXPECT_STATUS(check, S6_STATUS_NULL_POINTER, p.u = nullptr);
  EXPECT_STATUS(check, S6_STATUS_NULL_POINTER, p.x_proj = nullptr);
  EXPECT_STATUS(check, S6_STATUS_NULL_POINTER, p.dt_proj = nullptr);
  EXPECT_STATUS(check, S6_STATUS_NULL_POINTER, p.delta = nullptr);
  EXPECT_STATUS(check, S6_STATUS_NULL_POINTER, p.C = nullptr);
  EXPECT_STATUS(check, S6_STATUS_MISALIGNED, p.B = memory + 8);
}

void sampleProblems() {
  const auto check = s6_sample_check;
  expectGuarded(check);
  EXPECT_STATUS(check, S6_STATUS_OK, p.logits_row = 16);
  EXPECT_STATUS(check, S6_STATUS_OK, p.b = 0; p.logits = nullptr);
  EXPECT_STATUS(check, S6_STATUS_BAD_SIZE, p.b = -1);
  EXPECT_STATUS(check, S6_STATUS_BAD_SIZE, p.vocab = 0);
  EXPECT_STATUS(check, S6_STATUS_BAD_STRIDE, p.logits_row = 10);
  EXPECT_STATUS(check, S6_STATUS_NULL_POINTER, p.logits = nullptr);
  EXPECT_STATUS(check, S6_STATUS_NULL_POINTER, p.temperature = nullptr);
  EXPECT_STATUS(check, S6_STATUS_NULL_POINTER, p.top_k = nullptr);
  EXPECT_STATUS(check, S6_STATUS_NULL_POINTER, p.top_p = nullptr);
  EXPECT_STATUS(check, S6_STATUS_NULL_POINTER, p.seed = nullptr);
  EXPECT_STATUS(check, S6_STATUS_NULL_POINTER, p.draws = nullptr);
  EXPECT_STATUS(check, S6_STATUS_NULL_POINTER, p.next_ids = nullptr);
  EXPECT_STATUS(check, S6_STATUS_MISALIGNED, p.seed = at<uint64_t>(4));
}

// The known answers that the authors publish with their code (philox4x32, 10 rounds).
void philoxKnownAnswers() {
  struct Case {
    s6::Philox counter;
    uint32_t key[2];
    s6::Philox wanted;
  };
  constexpr uint32_t kOnes = 0xffffffffu;
  const Case cases[] = {
      {{{0, 0, 0, 0}}, {0, 0}, {{0x6627e8d5u, 0xe169c58du, 0xbc57ac4cu, 0x9b00dbd8u}}},
      {{{kOnes, kOnes, kOnes, kOnes}},
       {kOnes, kOnes},
       {{0x408f276du, 0x41c83b0eu, 0xa20bc7c6u, 0x6d5451fdu}}},
      {{{0x243f6a88u, 0x85a308d3u, 0x13198a2eu, 0x03707344u}},
       {0xa4093822u, 0x299f31d0u},
       {{0xd16cfe09u, 0x94fdccebu, 0x5001e420u, 0x24126ea1u}}},
  };
  for (const Case& c : cases) {
    const s6::Philox found = s6::philox(c.counter, c.key[0], c.key[1]);
    S6_EXPECT(std::memcmp(found.at, c.wanted.at, sizeof(found.at)) == 0);
  }
}

}  // namespace

int main() {
  embeddingProblems();
  normProblems();
  sliceProblems();
  dequantiseProblems();
  convertProblems();
  linearProblems();
  quantiseProblems();
  int8LinearProblems();
  selectionProblems();
  sampleProblems();
  philoxKnownAnswers();
  return s6::test::verdict();
}
