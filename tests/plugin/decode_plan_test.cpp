// SPDX-License-Identifier: MIT
// The decode kernel's work is dealt whole and once, fits the boards' shared memory, and bad
// problems are refused with their own status. No device needed.
#include "decode_plan.h"

#include <algorithm>
#include <cstdio>
#include <functional>
#include <set>

#include "expect.h"
#include "s6/decode.h"

namespace {

alignas(128) unsigned char memory[256];

struct Shape {
  const char* name;
  int m, layers;
};
constexpr Shape kPublished[] = {{"130m", 768, 24},
                                {"370m", 1024, 48},
                                {"790m", 1536, 48},
                                {"1.4b", 2048, 48},
                                {"2.8b", 2560, 64}};
constexpr int kOrinSharedBytes = 163 * 1024;
constexpr int kHopperSharedBytes = 227 * 1024;

S6Matrix matrix(int bits, int columns) {
  int group = bits == 4 ? 64 : 128;
  while (columns % group != 0) group /= 2;
  return {bits, bits == 16 ? 0 : group, memory, bits == 16 ? nullptr : memory, 1024, 1024};
}

S6Decode problem(const Shape& shape, int bits, int b) {
  S6Decode p{};
  p.struct_size = sizeof(p);
  p.b = b, p.m = shape.m, p.d = 2 * shape.m, p.n = 16, p.k = 4, p.r = shape.m / 16;
  p.layers = shape.layers, p.vocab = 50277, p.vocab_rows = 50280;
  p.norm_eps = 1e-5f;
  p.in_proj = matrix(bits, p.m), p.x_proj = p.out_proj = matrix(bits, p.d);
  p.dt_proj = matrix(bits, p.r);
  p.embedding = p.head = matrix(bits == 16 ? 16 : 8, p.m);
  const S6Vector vector = {reinterpret_cast<float*>(memory), 1024};
  p.norm = p.conv_weight = p.conv_bias = p.dt_bias = p.A = p.D = vector;
  p.final_norm = vector.data;
  p.token_ids = reinterpret_cast<int32_t*>(memory);
  p.conv_state = p.ssm_state = reinterpret_cast<float*>(memory);
  p.workspace = memory;
  return p;
}

void dealsAll(const uint16_t* first, int blocks, int count) {
  S6_EXPECT(first[0] == 0);
  S6_EXPECT(first[blocks] == count);
  for (int i = 0; i < blocks; ++i) S6_EXPECT(first[i] <= first[i + 1]);
}

//! Of a single text the warps that share a slice of the columns hold it.
void splitFits(const s6::DecodeMatrix& matrix, s6::DecodeSplit split, int rows, int most_quads) {
  const int row_groups = s6::kDecodeWarps >> split.log_slices;
  const int count = matrix.row_bytes / 64;
  for (int slice = 0; rows == 1 && slice < 1 << split.log_slices; ++slice) {
    const int blocks = s6::firstOfSlice(count, split.log_slices, slice + 1) -
                       s6::firstOfSlice(count, split.log_slices, slice);
    S6_EXPECT(blocks * (512 / matrix.bits) <= most_quads * 4 * 32 * row_groups);
  }
}

//! What is read past a slice of a digit is no place that other warps write to, and the activations
//! end behind it.
void digitsLieApart(int columns, int log_slices) {
  using namespace s6;
  std::set<int> begins;  // Of what warps write; `wide`: columns of a slice.
  const int wide = columns >> log_slices;
  const auto begin = [&](int slice, int digit) {
    return digitOffset(columns, log_slices, slice, digit) + wide * slice;
  };
  for (int slice = 0; slice < 1 << log_slices; ++slice) {
    for (int digit = 0; digit < kDigits; ++digit) begins.insert(begin(slice, digit));
  }
  for (int slice = 0; slice < 1 << log_slices; ++slice) {
    for (int digit = 0; digit < kDigits; ++digit) {
      const int end = begin(slice, digit) + wide + kDigitOverrun;
      const auto next = begins.upper_bound(begin(slice, digit));
      if (next != begins.end()) S6_EXPECT(*next >= end);
      S6_EXPECT(end <= activationBytes(columns, 8, 1, log_slices));
    }
  }
}

void digitsOfEverySplitLieApart() {
  for (const Shape& shape : kPublished) {
    for (int log_slices = 0; log_slices <= s6::kLogDecodeWarps; ++log_slices) {
      digitsLieApart(shape.m, log_slices);
      digitsLieApart(2 * shape.m, log_slices);
    }
  }
}

void plansEveryPublishedModel() {
  for (const Shape& shape : kPublished) {
    for (const int bits : {16, 8, 4}) {
      for (const int b : {1, 4, 8}) {
        for (const int blocks : {4, 8, 132, 200}) {
          const S6Decode p = problem(shape, bits, b);
          S6_EXPECT(s6_decode_check(&p) == S6_STATUS_OK);
          const s6::DecodeArgs args = s6::planDecode(p, blocks, kOrinSharedBytes);
          S6_EXPECT(args.blocks <= blocks && args.blocks <= s6::kMaxDecodeBlocks);
          const int most = std::min({blocks, s6::kMaxDecodeBlocks, p.d / 8});
          S6_EXPECT(2 * args.blocks > most);  // None of the channels' rounds gets longer.
          S6_EXPECT(args.addends < 1 << 10);  // The sums count them in 10 bits.
          dealsAll(args.first_pair, args.blocks, p.d / 8);
          dealsAll(args.first_out, args.blocks, p.m / 8);
          dealsAll(args.first_head, args.blocks, p.vocab_rows / 8);
          S6_EXPECT(args.first_pair[1] > 0);  // The first block keeps the sums for the next call.
          const int rows = s6::decodeRows(b);
          splitFits(args.in_proj, args.in_split, rows, s6::kResidualQuads);
          splitFits(args.out_proj, args.out_split, rows, s6::kOutputQuads);
          splitFits(args.head, args.head_split, rows, s6::kResidualQuads);
          // Eight texts of the largest model need more shared memory than Orin has.
          const bool must_fit = blocks == 8 && (b <= 4 || p.m <= 2048);
          const int least = b == 1 ? 3 : s6::kLeastDepth;
          if (must_fit && args.depth < least) {
            std::fprintf(stderr, "%s, %d bits, %d texts: %d slots\n", shape.name, bits, b,
                         args.depth);
            S6_EXPECT(args.depth >= least);
          }
          if (args.depth >= s6::kLeastDepth) S6_EXPECT(args.shared_bytes <= kOrinSharedBytes);
        }
      }
    }
  }
}

//! The rings take what the rest leaves of the shared memory, up to a depth, and lie before it.
void ringsTakeWhatIsLeft() {
  for (const Shape& shape : kPublished) {
    for (const int bits : {16, 8, 4}) {
      const S6Decode p = problem(shape, bits, 1);
      const s6::DecodeArgs orin = s6::planDecode(p, 8, kOrinSharedBytes);
      const s6::DecodeArgs hopper = s6::planDecode(p, 8, kHopperSharedBytes);
      S6_EXPECT(orin.depth <= hopper.depth && hopper.depth <= 6);
      const int slots = s6::kDecodeWarps * (s6::slotBytes(bits) + 16);
      S6_EXPECT(orin.activations_at >= orin.depth * slots);
      S6_EXPECT(orin.depth == 6 || orin.shared_bytes + slots + 128 > kOrinSharedBytes);
      const bool may_be_deep = shape.m >= 2048 && bits == 16;  // Measured; see deepestRing.
      S6_EXPECT(s6::planDecode(p, 132, kHopperSharedBytes).depth <= (may_be_deep ? 6 : 4));
      S6_EXPECT(s6::planDecode(p, 8, 48 * 1024).depth < s6::kLeastDepth);
    }
  }
}

//! A limit of the copies on their way pays where many blocks share the memory, and costs where few
//! do.
void limitsCopiesWhereManyBlocksShareTheMemory() {
  const Shape &narrow = kPublished[0], &wide = kPublished[3];
  const auto limits = [](const Shape& shape, int bits, int b, int blocks) {
    return s6::planDecode(problem(shape, bits, b), blocks, kHopperSharedBytes).limits_copies;
  };
  for (const int bits : {16, 8}) {
    S6_EXPECT(limits(wide, bits, 1, 132) && limits(wide, bits, 8, 132));
    S6_EXPECT(!limits(wide, bits, 1, 8) && !limits(wide, bits, 8, 8));
    S6_EXPECT(!limits(narrow, bits, 1, 132));
  }
  S6_EXPECT(!limits(wide, 4, 1, 132));
}

//! Half as many warps fetch as compute, measured: with 4 bits, and a single text's 8, but not of a
//! single text where many blocks share the memory.
void sharesFetchersWhereThatPays() {
  const auto shares = [](int bits, int b, int blocks) {
    const S6Decode p = problem(kPublished[0], bits, b);
    const int fetchers = s6::planDecode(p, blocks, kHopperSharedBytes).fetchers;
    S6_EXPECT(fetchers == s6::kDecodeWarps || 2 * fetchers == s6::kDecodeWarps);
    return fetchers < s6::kDecodeWarps;
  };
  for (const int bits : {8, 4}) S6_EXPECT(shares(bits, 1, 8) && !shares(bits, 1, 132));
  S6_EXPECT(shares(4, 8, 8) && shares(4, 8, 132));
  for (const int blocks : {8, 132}) {
    S6_EXPECT(!shares(8, 8, blocks) && !shares(16, 1, blocks) && !shares(16, 8, blocks));
  }
}

//! x_proj by tiles where a warp has a pair, of codes; either way a block adds once to each sum.
void mixesInTilesWhereThatPays() {
  const S6Decode half = problem(kPublished[0], 16, 1);
  S6_EXPECT(!s6::planDecode(half, 8, kOrinSharedBytes).mixes_in_tiles);
  for (const int b : {1, 4}) {
    const S6Decode p = problem(kPublished[0], 4, b);
    const s6::DecodeArgs few = s6::planDecode(p, 8, kOrinSharedBytes);
    S6_EXPECT(few.mixes_in_tiles && few.addends == few.blocks);
    const s6::DecodeArgs many = s6::planDecode(p, 132, kOrinSharedBytes);
    S6_EXPECT(!many.mixes_in_tiles && many.addends == many.blocks);
  }
}

//! Where a block has fewer pairs than warps, warps share the texts of a pair; those of a group are
//! at least two and of one pair.
void dealsTextsWherePairsAreFew() {
  for (const Shape& shape : kPublished) {
    for (const int blocks : {8, 132}) {
      const S6Decode p = problem(shape, 16, 8);
      const s6::DecodeArgs args = s6::planDecode(p, blocks, kHopperSharedBytes);
      const int pairs = args.first_pair[1], groups = 1 << args.log_text_groups;
      S6_EXPECT(groups == 1 || groups * pairs <= s6::kDecodeWarps);
      S6_EXPECT(groups == 4 || 2 * groups * pairs > s6::kDecodeWarps);
      S6_EXPECT(s6::planDecode(problem(shape, 16, 1), blocks, kHopperSharedBytes).log_text_groups ==
                0);
    }
  }
}

//! The columns of out_proj are taken in two parts where the rings of several texts gain by that.
void takesOutputsInParts() {
  const Shape& largest = kPublished[4];
  const auto partsOf = [&](const Shape& shape, int bits, int b, int shared_bytes) {
    return s6::planDecode(problem(shape, bits, b), 8, shared_bytes).out_parts;
  };
  S6_EXPECT(partsOf(largest, 16, 8, kHopperSharedBytes) == 2);
  S6_EXPECT(partsOf(largest, 4, 8, kHopperSharedBytes) == 1);
  S6_EXPECT(partsOf(kPublished[3], 4, 8, kOrinSharedBytes) == 2);
  S6_EXPECT(partsOf(largest, 16, 1, kOrinSharedBytes) == 1);
  S6_EXPECT(partsOf(kPublished[0], 16, 8, kHopperSharedBytes) == 1);
}

//! Whatever is said to fit does, and of the published models only the largest misses eight texts.
void saysHowManyTextsFit() {
  for (const Shape& shape : kPublished) {
    for (const int bits : {16, 8, 4}) {
      S6Decode p = problem(shape, bits, 1);
      S6_EXPECT(s6_decode_most_texts(&p, kOrinSharedBytes) == 0);  // On how many multiprocessors?
      p.sm_count = 8;
      S6_EXPECT(s6_decode_most_texts(&p, kHopperSharedBytes) == 8);
      const int most = s6_decode_most_texts(&p, kOrinSharedBytes);
      S6_EXPECT(shape.m < 2560 ? most == 8 : most >= 4 && most < 8);
      p.b = most;
      S6_EXPECT(s6::planDecode(p, 8, kOrinSharedBytes).depth >= s6::kLeastDepth);
      S6_EXPECT(s6_decode_most_texts(&p, 16 * 1024) == 0);
    }
  }
  S6Decode none = problem(kPublished[0], 16, 1);
  none.sm_count = 8, none.d = 4;
  S6_EXPECT(s6_decode_most_texts(&none, kHopperSharedBytes) == 0);
}

void refuses(S6Status wanted, const std::function<void(S6Decode&)>& spoil, int line) {
  S6Decode p = problem(kPublished[0], 4, 1);
  spoil(p);
  const S6Status status = s6_decode_check(&p);
  s6::test::expect(status == wanted, s6_status_text(status), __FILE__, line);
}
#define REFUSES(wanted, change) refuses(wanted, [](S6Decode& p) { change; }, __LINE__)

void refusesBadProblems() {
  S6_EXPECT(s6_decode_check(nullptr) == S6_STATUS_NULL_POINTER);
  S6Decode half = problem(kPublished[0], 16, 1);
  half.head = matrix(8, half.m);
  S6_EXPECT(s6_decode_check(&half) == S6_STATUS_BAD_DTYPE);
  REFUSES(S6_STATUS_BAD_ABI, p.struct_size -= 8);
  REFUSES(S6_STATUS_BAD_SIZE, p.b = 0);
  REFUSES(S6_STATUS_BAD_SIZE, p.b = S6_DECODE_MAX_BATCH + 1);
  REFUSES(S6_STATUS_BAD_SIZE, p.n = 8);
  REFUSES(S6_STATUS_BAD_SIZE, p.k = 5);
  REFUSES(S6_STATUS_BAD_SIZE, p.m = 4104);
  REFUSES(S6_STATUS_BAD_SIZE, p.d -= 4);
  REFUSES(S6_STATUS_BAD_SIZE, p.r = 264);
  REFUSES(S6_STATUS_BAD_SIZE, (p.m = p.d = 128, p.r = 144));
  REFUSES(S6_STATUS_BAD_SIZE, p.x_proj.group_size = 32);
  REFUSES(S6_STATUS_BAD_SIZE, p.m = 64);  // A row of 32 bytes is no whole block.
  REFUSES(S6_STATUS_BAD_SIZE, p.vocab_rows += 1);
  REFUSES(S6_STATUS_BAD_SIZE, p.vocab = p.vocab_rows + 1);
  REFUSES(S6_STATUS_BAD_SIZE, p.in_proj.group_size = 32);
  REFUSES(S6_STATUS_BAD_SIZE, p.in_proj.group_size = 96);
  REFUSES(S6_STATUS_BAD_DTYPE, p.in_proj.bits = 5);
  REFUSES(S6_STATUS_BAD_DTYPE, p.out_proj.bits = 8);
  REFUSES(S6_STATUS_NULL_POINTER, p.in_proj.data = nullptr);
  REFUSES(S6_STATUS_NULL_POINTER, p.x_proj.scales = nullptr);
  REFUSES(S6_STATUS_NULL_POINTER, p.token_ids = nullptr);
  REFUSES(S6_STATUS_NULL_POINTER, p.final_norm = nullptr);
  REFUSES(S6_STATUS_NULL_POINTER, p.A.data = nullptr);
  REFUSES(S6_STATUS_NULL_POINTER, p.ssm_state = nullptr);
  REFUSES(S6_STATUS_NULL_POINTER, p.workspace = nullptr);
  REFUSES(S6_STATUS_MISALIGNED, p.in_proj.data = memory + 8);
  REFUSES(S6_STATUS_MISALIGNED, p.in_proj.layer_bytes = 8);
  REFUSES(S6_STATUS_MISALIGNED, p.D.data += 1);
}

}  // namespace

int main() {
  plansEveryPublishedModel();
  digitsOfEverySplitLieApart();
  ringsTakeWhatIsLeft();
  limitsCopiesWhereManyBlocksShareTheMemory();
  sharesFetchersWhereThatPays();
  mixesInTilesWhereThatPays();
  dealsTextsWherePairsAreFew();
  takesOutputsInParts();
  saysHowManyTextsFit();
  refusesBadProblems();
  S6Decode p = problem(kPublished[0], 16, 1);
  S6_EXPECT(s6_decode_workspace_bytes(&p) > 0);
  const size_t alone = s6_decode_workspace_bytes(&p);
  p.b = 8;
  S6_EXPECT(s6_decode_workspace_bytes(&p) == alone);  // One workspace serves every batch.
  S6_EXPECT(s6_decode_workspace_bytes(nullptr) == 0);
  return s6::test::verdict();
}
