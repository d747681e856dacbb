// SPDX-License-Identifier: MIT
/*!
 * \file decode_plan.cpp
 * \brief Deals the decode kernel's work to blocks and warps, and lays out its memory.
 */
#include "decode_plan.h"

#include <algorithm>
#include <cmath>
#include <type_traits>

namespace s6 {
namespace {

constexpr int kNarrowModel = 768;  // Its width: see puts_gates_apart.
constexpr int kWideModel = 2048;   // Its width: see deepestRing, limits_copies, sum_stride.
constexpr int kAlignment = 128;    // Bytes, of every part of the shared memory and the workspace.

int64_t aligned(int64_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

int log2Of(int value) {
  int log = 0;
  while ((2 << log) <= value) ++log;
  return log;
}

DecodeMatrix matrixOf(const S6Matrix& matrix, int rows, int columns) {
  const int bits = matrix.bits == 0 ? 16 : matrix.bits;  // An absent one.
  return {static_cast<const uint8_t*>(matrix.data),
          static_cast<const uint8_t*>(matrix.scales),
          matrix.layer_bytes,
          matrix.scales_layer_bytes,
          rows,
          columns / 8 * bits,
          bits,
          bits == 16 ? log2Of(64) : log2Of(matrix.group_size)};
}

DecodeVector vectorOf(const S6Vector& vector) { return {vector.data, vector.layer_bytes}; }

//! Block i gets [first[i], first[i + 1]); the first block is never poorer than another.
void dealEvenly(int count, int blocks, uint16_t* first) {
  for (int i = 0; i <= blocks; ++i) {
    first[i] = static_cast<uint16_t>((int64_t{i} * count + blocks - 1) / blocks);
  }
}

//! Deals the tiles of out_proj so that blocks with fewer channels get more of them.
void dealOutputs(const S6Decode& p, const DecodeArgs& args, uint16_t* first) {
  const double pair_cost = 2.0 * kTileRows * p.m + kTileRows * (p.r + 2.0 * p.n) + 8.0 * p.r;
  const double tile_cost = static_cast<double>(kTileRows) * p.d;
  const int tiles = p.m / kTileRows;
  const double share = (pair_cost * (p.d / kTileRows) + tile_cost * tiles) / args.blocks;
  double wanted[kMaxDecodeBlocks], total = 0.0;
  for (int i = 0; i < args.blocks; ++i) {
    const int pairs = args.first_pair[i + 1] - args.first_pair[i];
    wanted[i] = std::max(0.0, share - pair_cost * pairs);
    total += wanted[i];
  }
  double sum = 0.0;
  first[0] = 0;
  for (int i = 0; i < args.blocks; ++i) {
    sum += wanted[i];
    first[i + 1] = static_cast<uint16_t>(std::lround(sum / total * tiles));
  }
}

int mostOf(const uint16_t* first, int blocks) {
  int most = 0;
  for (int i = 0; i < blocks; ++i) most = std::max(most, first[i + 1] - first[i]);
  return most;
}

/*!
 * Slices of the columns and groups of units, so that the busiest warp has the fewest slots; on a
 * tie fewer slices, because each is one more value to add up. A thread that stages a slice of a
 * single text's activations gets `most_quads` times four of them at most.
 */
DecodeSplit chooseSplit(const DecodeMatrix& matrix, int units, int rows, int most_quads,
                        int parts = 1) {
  const int count = matrix.row_bytes / 64 / parts;
  DecodeSplit best = {log2Of(kDecodeWarps)};
  int64_t least = INT64_MAX;
  for (int log = 0; (1 << log) <= kDecodeWarps; ++log) {
    const int slices = 1 << log, row_groups = kDecodeWarps >> log;
    const int log_together = logBlocksTogether(count);
    const int blocks = (((count >> log_together) + slices - 1) / slices) << log_together;
    const int rounds = (units + row_groups - 1) / row_groups;
    // A slice is staged by the warps that multiply it.
    if (rows == 1 && blocks * (512 / matrix.bits) > most_quads * 4 * 32 * row_groups) continue;
    // Slots first (four column blocks of two tiles each), then blocks.
    const int64_t cost = int64_t{(blocks + 3) / 4} * rounds * 64 + int64_t{blocks} * rounds;
    if (cost < least) least = cost, best.log_slices = log;
  }
  return best;
}

int64_t partialFloats(DecodeSplit split, int rows) {
  const int64_t tile = (int64_t{kTileRows} * rows << split.log_slices) + kTileRows;
  return 2 * batchUnits(rows, split.log_slices) * tile;
}

/*!
 * Blocks beyond these would leave the busiest with as many channels as it has, and every block is
 * one more to wait for.
 */
int usefulBlocks(const S6Decode& p, int blocks) {
  const int pairs = p.d / kTileRows, most = std::min(blocks, kMaxDecodeBlocks);
  const int each = (pairs + most - 1) / most;
  return (pairs + each - 1) / each;
}

//! Offsets of what `texts` texts exchange; returns its size.
int64_t layOutExchange(const S6Decode& p, int64_t texts, uint8_t* base, DecodeArgs* args) {
  const int64_t mix = p.r + 2 * p.n;
  int64_t at = 0;
  const auto take = [&](auto** part, int64_t count) {
    *part = reinterpret_cast<std::remove_reference_t<decltype(*part)>>(base + at);
    at += aligned(count * static_cast<int64_t>(sizeof(**part)));
  };
  take(&args->epochs, texts);
  take(&args->residuals, texts * p.m);
  if (texts == 1) {
    take(&args->outputs, p.d);
  } else {
    take(&args->output_pairs, texts * p.d / 2);
  }
  take(&args->sums, texts * mix * kMostSumStride);
  take(&args->totals, texts * mix);
  take(&args->best, texts * kMaxDecodeBlocks * 2);
  return at;
}

//! Offsets of the workspace; returns its size. A single text and several have each a part of it:
//! their words differ, and what the other left would be taken for what is awaited.
int64_t layOutWorkspace(const S6Decode& p, uint8_t* base, DecodeArgs* args) {
  DecodeArgs other = {};
  const bool is_single = p.b == 1;
  const int64_t single = layOutExchange(p, 1, base, is_single ? args : &other);
  return single + layOutExchange(p, S6_DECODE_MAX_BATCH, base + single, is_single ? &other : args);
}

//! Offsets of a block's shared memory from `at` on, for its most pairs and tiles of out_proj;
//! returns where it ends.
int64_t layOutShared(const S6Decode& p, int pairs, int outs, int64_t at, DecodeArgs* args) {
  const auto take = [&](int64_t bytes) {
    const int64_t here = at;
    at += aligned(bytes);
    return static_cast<int32_t>(here);
  };
  const int bits = args->in_proj.bits, rows = decodeRows(p.b);
  // Of x_proj: those of the pairs, and what else the blocks of columns have that they lie in.
  const int columns = std::min(p.d, kTileRows * pairs + 2 * (512 / bits));
  const int activations =
      std::max({activationBytes(p.m, bits, p.b, args->in_split.log_slices),
                activationBytes(p.d / args->out_parts, bits, p.b, args->out_split.log_slices),
                args->mixes_in_tiles ? activationBytes(columns, bits, p.b, 0) : 0,
                p.head.data == nullptr
                    ? 0
                    : activationBytes(p.m, args->head.bits, p.b, args->head_split.log_slices)});
  const int64_t partials =
      std::max({partialFloats(args->in_split, rows), partialFloats(args->out_split, rows),
                partialFloats(args->head_split, rows)});
  args->activations_at = take(activations);
  // Of several texts dt as activations takes its turn there.
  args->partials_at = take(std::max(partials * 4, int64_t{2} * rows * p.r));
  args->totals_at = take(int64_t{8} * p.b * (p.r + 2 * p.n));
  args->mixed_at = take(int64_t{rows} * (p.r + 2 * p.n) * 4);
  args->channels_at = take(int64_t{2} * pairs * kTileRows * rows * (rows == 1 ? 4 : 2));
  args->own_at = take(int64_t{outs} * kTileRows * rows * 4);
  args->reduce_at = take((3 * kDecodeWarps + 3 * rows) * 4);
  args->candidates_at = take(kDecodeThreads * 8);
  return at;
}

//! Whether so many blocks share the memory that their requests have to wait for each other.
bool areMany(int blocks) { return blocks > 32; }

/*!
 * The deepest ring that pays, measured (docs/lab_note_decode.md): where many blocks share the
 * memory, deeper ones let some run far ahead while the others, for which they will wait, starve,
 * except where a single text's float16 weights are so many that all of them wait for the memory.
 */
int deepestRing(const S6Decode& p, const DecodeArgs& args) {
  const bool waits = p.b == 1 && p.m >= kWideModel && args.in_proj.bits == 16;
  return areMany(args.blocks) && !waits ? 4 : 6;
}

//! Shares the warps' work and the shared memory of a block that has at most so many pairs, tiles of
//! out_proj and of the head.
void layOutBlock(const S6Decode& p, int pairs, int outs, int heads, int shared_bytes,
                 DecodeArgs* args) {
  const int rows = decodeRows(p.b);
  const int units = args->puts_gates_apart ? (pairs + 1) / 2 : pairs;
  args->in_split = chooseSplit(args->in_proj, units, rows, kResidualQuads);
  args->out_split =
      chooseSplit(args->out_proj, (outs + 1) / 2, rows, kOutputQuads, args->out_parts);
  args->head_split = chooseSplit(args->head, (heads + 1) / 2, rows, kResidualQuads);
  // The rings, with two barriers a slot, come first and take what the rest leaves.
  const int64_t slots = int64_t{kDecodeWarps} * (slotBytes(args->in_proj.bits) + 16);
  const int64_t rest = layOutShared(p, pairs, outs, 0, args);
  const int64_t fitting = (shared_bytes - rest - kAlignment) / slots;
  args->depth = static_cast<int32_t>(std::clamp<int64_t>(fitting, 0, deepestRing(p, *args)));
  args->shared_bytes =
      static_cast<int32_t>(layOutShared(p, pairs, outs, aligned(args->depth * slots), args));
}

}  // namespace

DecodeArgs planDecode(const S6Decode& p, int blocks, int shared_bytes) {
  DecodeArgs args = {};
  args.b = p.b, args.m = p.m, args.d = p.d, args.k = p.k, args.r = p.r;
  args.layers = p.layers, args.vocab = p.vocab;
  args.blocks = usefulBlocks(p, blocks);
  args.norm_eps = p.norm_eps, args.mixer_norm_eps = p.mixer_norm_eps;
  args.inverse_m = 1.0f / static_cast<float>(p.m);
  args.signs = kSigns;
  args.embedding = matrixOf(p.embedding, p.vocab_rows, p.m);
  args.in_proj = matrixOf(p.in_proj, 2 * p.d, p.m);
  args.x_proj = matrixOf(p.x_proj, p.r + 2 * p.n, p.d);
  args.dt_proj = matrixOf(p.dt_proj, p.d, p.r);
  args.out_proj = matrixOf(p.out_proj, p.m, p.d);
  args.head = matrixOf(p.head, p.vocab_rows, p.m);
  args.norm = vectorOf(p.norm);
  args.conv_weight = vectorOf(p.conv_weight);
  args.conv_bias = vectorOf(p.conv_bias);
  args.dt_bias = vectorOf(p.dt_bias);
  args.A = vectorOf(p.A);
  args.D = vectorOf(p.D);
  args.final_norm = p.final_norm;
  args.token_ids = p.token_ids;
  args.x = p.x, args.y = p.y;
  args.conv_state = p.conv_state, args.ssm_state = p.ssm_state;
  args.logits = p.logits, args.next_ids = p.next_ids;
  layOutWorkspace(p, static_cast<uint8_t*>(p.workspace), &args);

  dealEvenly(p.d / kTileRows, args.blocks, args.first_pair);
  dealOutputs(p, args, args.first_out);
  dealEvenly(p.head.data == nullptr ? 0 : p.vocab_rows / kTileRows, args.blocks, args.first_head);
  const int rows = decodeRows(p.b);
  const int pairs = mostOf(args.first_pair, args.blocks);
  args.mixes_in_tiles = mayMixInTiles(args.in_proj.bits) && pairs >= kDecodeWarps;
  if (rows > 1) {
    args.log_text_groups = std::min(log2Of(std::max(1, kDecodeWarps / pairs)), 2);
  }
  for (int i = 0; i < args.blocks; ++i) {
    if (args.first_pair[i + 1] > args.first_pair[i]) ++args.addends;
  }
  const int outs = mostOf(args.first_out, args.blocks);
  const int heads = mostOf(args.first_head, args.blocks);
  args.puts_gates_apart = mayPutGatesApart(args.in_proj.bits) && (rows > 1 || p.m > kNarrowModel);
  args.limits_copies =
      mayLimitCopies(args.in_proj.bits) && areMany(args.blocks) && (rows > 1 || p.m >= kWideModel);
  const bool shares_fetchers = sharesFetchers(args.in_proj.bits, rows, areMany(args.blocks));
  args.fetchers = shares_fetchers ? kDecodeWarps / 2 : kDecodeWarps;
  const bool spreads_sums = p.b == 1 || (args.in_proj.bits == 16 && p.m < kWideModel);
  args.sum_stride = spreads_sums ? kMostSumStride : 1;
  args.out_parts = 1;
  layOutBlock(p, pairs, outs, heads, shared_bytes, &args);
  // Measured: in float16 each slot more pays, with codes not.
  const int wanted = args.in_proj.bits == 16 ? deepestRing(p, args) : kLeastDepth;
  if (rows > 1 && args.depth < wanted && args.out_proj.row_bytes / 64 % 2 == 0) {
    DecodeArgs halved = args;
    halved.out_parts = 2;
    layOutBlock(p, pairs, outs, heads, shared_bytes, &halved);
    if (halved.depth > args.depth) args = halved;
  }
  return args;
}

}  // namespace s6

extern "C" int32_t s6_decode_most_texts(const S6Decode* problem, int32_t shared_bytes) {
  if (problem == nullptr || problem->struct_size != sizeof(S6Decode)) return 0;
  if (problem->sm_count <= 0 || problem->m < s6::kTileRows || problem->d < s6::kTileRows) return 0;
  S6Decode p = *problem;
  p.b = S6_DECODE_MAX_BATCH;
  while (p.b > 0 && s6::planDecode(p, p.sm_count, shared_bytes).depth < s6::kLeastDepth) --p.b;
  return p.b;
}

extern "C" size_t s6_decode_workspace_bytes(const S6Decode* problem) {
  if (problem == nullptr || problem->struct_size != sizeof(S6Decode)) return 0;
  s6::DecodeArgs args = {};
  return static_cast<size_t>(s6::layOutWorkspace(*problem, nullptr, &args));
}
