// SPDX-License-Identifier: MIT
/*!
 * \file sample.cu
 * \brief Draws one token of each text from its logits.
 *
 * Rule and tensors: include/s6/sample.h. A block is a text.
 * Method: no sorting. A token's rank is its logit and then its id, one 64-bit number that no other
 * token has. Top-k, top-p and the draw each ask for one token: the first, in falling rank, at which
 * a running sum (of ones or of weights) reaches a target. A histogram over the logits says in which
 * bin that token is; the bin's tokens, about a hundred, go to shared memory, where each is compared
 * with all others. A bin of too many tokens is divided by the digits of the rank first.
 * Shared memory: the histogram, counts and weights a bin, and the list; barriers stand between
 * every use and the next. Integer sums make every result independent of the order of the atomics.
 * Bytes: the logits are read two to five times, from the L2 cache.
 */
#include "s6/sample.h"

#include <cuda_runtime_api.h>

#include "philox.h"

namespace s6 {
namespace {

constexpr int kWarp = 32;
constexpr int kThreads = 1024;
constexpr int kWarps = kThreads / kWarp;
constexpr int kBinsPerThread = 2;
constexpr int kBins = kThreads * kBinsPerThread;
constexpr int kDigitBits = 11;
static_assert(1 << kDigitBits == kBins, "a digit chooses a bin");
constexpr int kList = kThreads;  // A thread a listed token.

constexpr float kLog2E = 1.4426950408889634f;
constexpr float kWeightOne = 1099511627776.0f;   // 2^40
constexpr float kLastWeight = 28.0f;             // exp(-28) < 2^-40: further down, no weight.
constexpr float kLeastTemperature = 1e-6f;

//! Running sums over tokens.
struct Sums {
  uint64_t weight;
  uint32_t count;
};

struct Shared {
  uint64_t weight[kBins];
  uint32_t count[kBins];
  uint64_t listed_rank[kList];
  uint64_t listed_weight[kList];
  Sums of_warp[kWarps];
  uint64_t best[kWarps];
  float least[kWarps];
  // What one thread tells the others.
  uint32_t listed;
  int bin;
  Sums before, inside;
  uint64_t rank;
};

//! A token's place in the order: the larger logit first, then the smaller id.
__device__ __forceinline__ uint64_t rankOf(float logit, int id) {
  const uint32_t bits = __float_as_uint(logit);
  const uint32_t ascending = (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
  return (uint64_t{ascending} << 32) | ~static_cast<uint32_t>(id);
}

__device__ __forceinline__ int idOf(uint64_t rank) {
  return static_cast<int>(~static_cast<uint32_t>(rank));
}

__device__ __forceinline__ float readLogit(const float* logits, int id) {
  const float logit = logits[id];
  // -0 and 0 are equal but differ in bits; NaN would compare with nothing.
  return isnan(logit) ? -INFINITY : logit + 0.0f;
}

//! One row's scale: which bin a logit falls into, and its weight.
struct Scale {
  float largest;
  float bins_per_logit;
  float exponent;  // log2(e) / temperature

  __device__ int bin(float logit) const {
    return min(__float2int_rz((largest - logit) * bins_per_logit), kBins - 1);
  }
  __device__ uint64_t weight(float logit) const {
    return __float2ull_rz(exp2f((logit - largest) * exponent) * kWeightOne);
  }
};

//! Level 0 divides by logits, the others by the digits of the rank, large ones first.
struct Digits {
  __device__ static int of(uint64_t rank, int level) {
    const int shift = max(64 - level * kDigitBits, 0);
    return kBins - 1 - static_cast<int>((rank >> shift) & (kBins - 1));
  }
};

//! The sums over all bins before each thread's own, by a scan over the block.
__device__ Sums sumsBefore(Sums own, Shared& shared) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  Sums scan = own;
#pragma unroll
  for (int step = 1; step < kWarp; step *= 2) {
    const uint64_t weight = __shfl_up_sync(~0u, scan.weight, step);
    const uint32_t count = __shfl_up_sync(~0u, scan.count, step);
    if (lane >= step) scan.weight += weight, scan.count += count;
  }
  if (lane == kWarp - 1) shared.of_warp[warp] = scan;
  __syncthreads();
  Sums before = {scan.weight - own.weight, scan.count - own.count};
  for (int other = 0; other < warp; ++other) {
    before.weight += shared.of_warp[other].weight;
    before.count += shared.of_warp[other].count;
  }
  __syncthreads();
  return before;
}

//! Whether a running sum reaches the target within `inside`.
__device__ __forceinline__ bool reaches(Sums before, Sums inside, uint64_t target, bool by_count) {
  const uint64_t sum = by_count ? before.count : before.weight;
  const uint64_t more = by_count ? inside.count : inside.weight;
  return sum < target && target <= sum + more;
}

//! A thread's bins of a histogram, and what comes before them.
struct OwnBins {
  Sums in[kBinsPerThread];
  Sums before;

  //! Reads them out of shared memory and leaves that empty.
  __device__ void take(Shared& shared) {
    Sums own = {0, 0};
#pragma unroll
    for (int i = 0; i < kBinsPerThread; ++i) {
      const int bin = threadIdx.x * kBinsPerThread + i;
      in[i] = {shared.weight[bin], shared.count[bin]};
      shared.weight[bin] = 0, shared.count[bin] = 0;
      own.weight += in[i].weight, own.count += in[i].count;
    }
    before = sumsBefore(own, shared);
  }

  //! Tells the block in which bin the sum, begun at `start`, reaches the target.
  __device__ void tellCrossing(Sums start, uint64_t target, bool by_count, Shared& shared) const {
    Sums here = {start.weight + before.weight, start.count + before.count};
#pragma unroll
    for (int i = 0; i < kBinsPerThread; ++i) {
      if (reaches(here, in[i], target, by_count)) {
        shared.bin = threadIdx.x * kBinsPerThread + i;
        shared.before = here, shared.inside = in[i];
      }
      here.weight += in[i].weight, here.count += in[i].count;
    }
    __syncthreads();
  }
};

__device__ __forceinline__ void addToBin(int bin, uint64_t weight, Shared& shared) {
  atomicAdd(&shared.count[bin], 1u);
  atomicAdd(reinterpret_cast<unsigned long long*>(&shared.weight[bin]), weight);
}

/*!
 * Finds the token at which the running sum reaches the target, which must lie within the row's
 * sums. Returns the sum of weights up to and with it; its rank is left in shared.rank.
 */
__device__ uint64_t findCrossing(const float* logits, int vocab, const Scale& scale,
                                 const OwnBins& by_logit, uint64_t target, bool by_count,
                                 Shared& shared) {
  by_logit.tellCrossing({0, 0}, target, by_count, shared);
  const int bin = shared.bin;
  uint64_t prefix = 0;  // Digits of the rank that are settled.
  int level = 0;
  const auto belongs = [&](float logit, uint64_t rank) {
    const int settled = min(level * kDigitBits, 64);
    return scale.bin(logit) == bin && (settled == 0 || (rank ^ prefix) >> (64 - settled) == 0);
  };
  while (shared.inside.count > kList) {
    const Sums start = shared.before;
    for (int id = threadIdx.x; id < vocab; id += kThreads) {
      const float logit = readLogit(logits, id);
      const uint64_t rank = rankOf(logit, id);
      if (belongs(logit, rank)) {
        addToBin(Digits::of(rank, level + 1), scale.weight(logit), shared);
      }
    }
    __syncthreads();
    OwnBins by_digit;
    by_digit.take(shared);
    by_digit.tellCrossing(start, target, by_count, shared);
    ++level;
    const int shift = max(64 - level * kDigitBits, 0);
    const uint64_t digit = kBins - 1 - shared.bin;
    // The last digit overlaps the one before it: the same bits, so `or` settles both.
    prefix |= digit << shift;
  }
  if (threadIdx.x == 0) shared.listed = 0;
  __syncthreads();
  for (int id = threadIdx.x; id < vocab; id += kThreads) {
    const float logit = readLogit(logits, id);
    const uint64_t rank = rankOf(logit, id);
    if (belongs(logit, rank)) {
      const uint32_t slot = atomicAdd(&shared.listed, 1u);
      shared.listed_rank[slot] = rank;
      shared.listed_weight[slot] = scale.weight(logit);
    }
  }
  __syncthreads();
  const int listed = static_cast<int>(shared.listed);
  const Sums start = shared.before;
  if (static_cast<int>(threadIdx.x) < listed) {
    const uint64_t rank = shared.listed_rank[threadIdx.x];
    Sums before = start;
    for (int other = 0; other < listed; ++other) {
      if (shared.listed_rank[other] > rank) {
        before.weight += shared.listed_weight[other];
        ++before.count;
      }
    }
    const Sums own = {shared.listed_weight[threadIdx.x], 1};
    if (reaches(before, own, target, by_count)) {
      shared.rank = rank;
      shared.inside.weight = before.weight + own.weight;
    }
  }
  __syncthreads();
  const uint64_t reached = shared.inside.weight;
  __syncthreads();
  return reached;
}

//! The largest rank and the smallest finite logit of a row.
__device__ void findExtremes(const float* logits, int vocab, Shared& shared, uint64_t& best,
                             float& least) {
  best = 0, least = INFINITY;
  for (int id = threadIdx.x; id < vocab; id += kThreads) {
    const float logit = readLogit(logits, id);
    best = max(best, rankOf(logit, id));
    if (logit > -INFINITY) least = fminf(least, logit);
  }
#pragma unroll
  for (int step = kWarp / 2; step > 0; step /= 2) {
    best = max(best, __shfl_xor_sync(~0u, best, step));
    least = fminf(least, __shfl_xor_sync(~0u, least, step));
  }
  if (threadIdx.x % kWarp == 0) {
    shared.best[threadIdx.x / kWarp] = best;
    shared.least[threadIdx.x / kWarp] = least;
  }
  __syncthreads();
  for (int warp = 0; warp < kWarps; ++warp) {
    best = max(best, shared.best[warp]);
    least = fminf(least, shared.least[warp]);
  }
}

__global__ void __launch_bounds__(kThreads) sampleKernel(const S6Sample p, int64_t logits_row) {
  __shared__ Shared shared;
  const int row = blockIdx.x;
  const float* logits = p.logits + row * logits_row;
  uint64_t best = 0;
  float least = 0.0f;
  findExtremes(logits, p.vocab, shared, best, least);
  const float largest = readLogit(logits, idOf(best));
  const uint64_t draws = p.draws[row];
  const float given_temperature = p.temperature[row];
  if (given_temperature == 0.0f || isinf(largest)) {  // Certain, or nothing to weigh.
    if (threadIdx.x == 0) p.next_ids[row] = idOf(best), p.draws[row] = draws + 1;
    return;
  }
  const float temperature = fmaxf(given_temperature, kLeastTemperature);
  const float range = fminf(kLastWeight * temperature, largest - least);
  const Scale scale = {largest, range > 0.0f ? (kBins - 1) / range : 0.0f, kLog2E / temperature};

  for (int bin = threadIdx.x; bin < kBins; bin += kThreads) {
    shared.weight[bin] = 0, shared.count[bin] = 0;
  }
  __syncthreads();
  for (int id = threadIdx.x; id < p.vocab; id += kThreads) {
    const float logit = readLogit(logits, id);
    addToBin(scale.bin(logit), scale.weight(logit), shared);
  }
  __syncthreads();
  OwnBins by_logit;
  by_logit.take(shared);
  if (threadIdx.x == kThreads - 1) {
    shared.inside.weight = by_logit.before.weight;
    for (const Sums& bin : by_logit.in) shared.inside.weight += bin.weight;
  }
  __syncthreads();
  uint64_t kept = shared.inside.weight;
  __syncthreads();

  const int top_k = p.top_k[row];
  if (top_k > 0 && top_k < p.vocab) {
    kept = findCrossing(logits, p.vocab, scale, by_logit, top_k, true, shared);
  }
  const float top_p = p.top_p[row];
  if (top_p < 1.0f) {
    const double wanted = ceil(static_cast<double>(top_p) * static_cast<double>(kept));
    const uint64_t target = min(max(static_cast<uint64_t>(fmax(wanted, 1.0)), uint64_t{1}), kept);
    kept = findCrossing(logits, p.vocab, scale, by_logit, target, false, shared);
  }
  const uint64_t seed = p.seed[row];
  const Philox random =
      philox({{static_cast<uint32_t>(draws), static_cast<uint32_t>(draws >> 32), 0, 0}},
             static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32));
  const uint64_t uniform = (uint64_t{random.at[1]} << 32) | random.at[0];
  findCrossing(logits, p.vocab, scale, by_logit, __umul64hi(uniform, kept) + 1, false, shared);
  if (threadIdx.x == 0) p.next_ids[row] = idOf(shared.rank), p.draws[row] = draws + 1;
}

}  // namespace
}  // namespace s6

extern "C" S6Status s6_sample(const S6Sample* problem, S6Stream stream) {
  const S6Status status = s6_sample_check(problem);
  if (status != S6_STATUS_OK || problem->b == 0) return status;
  const int64_t logits_row = problem->logits_row == 0 ? problem->vocab : problem->logits_row;
  s6::sampleKernel<<<problem->b, s6::kThreads, 0, stream>>>(*problem, logits_row);
  return cudaGetLastError() == cudaSuccess ? S6_STATUS_OK : S6_STATUS_LAUNCH_FAILED;
}
