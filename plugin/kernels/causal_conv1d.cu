// SPDX-License-Identifier: MIT
/*!
 * \file causal_conv1d.cu
 * \brief Depthwise causal convolution with SiLU, whole sequences and single tokens.
 *
 * Equation: include/s6/causal_conv1d.h. Tensors: x, y [b, l, d], state [b, k-1, d] T; weight
 * [k, d], bias [d] W.
 * Thread map: a thread owns kVector neighbouring channels (16 bytes where alignment allows, else
 * one) and kTokens consecutive tokens; it slides the last k-1 inputs through registers, so x is
 * read once plus k-1 rows of halo per kTokens. Grid: (channel groups, token groups, batch).
 * State: the thread of the first token group writes the final state as well, from x's last rows
 * and, for parts shorter than the window, from the state it has already read: so state_out may be
 * state_in. Numerics: fp32 accumulation; fast SiLU for 16-bit outputs, accurate for fp32.
 * Bytes: one read and one write of [b, l, d]; bound by them.
 */
#include <cuda_runtime_api.h>

#include "problem_checks.h"
#include "s6/causal_conv1d.h"
#include "scan_math.cuh"

namespace s6 {
namespace {

constexpr int kConvThreads = 64;
constexpr int kConvTokens = 8;  // Amortises the halo, yet fills the GPU with few channels.

struct ConvArgs {
  int32_t l, d, k, silu;
  const void *x, *weight, *bias, *state_in;
  void *state_out, *y;
  const int32_t* lengths;
  TensorStrides x_stride, y_stride;
};

template <typename T, int kVector>
struct alignas(sizeof(T) * kVector) Vector {
  T at[kVector];
};

template <typename T, int kVector>
__device__ __forceinline__ void loadVector(float (&out)[kVector], const T* from) {
  const auto v = *reinterpret_cast<const Vector<T, kVector>*>(from);
#pragma unroll
  for (int i = 0; i < kVector; ++i) out[i] = toFloat(v.at[i]);
}

template <typename T, typename W, int kVector, int kWidth, int kTokens>
__global__ void __launch_bounds__(kConvThreads, 8) convKernel(const ConvArgs args) {
  const int channel = (blockIdx.x * kConvThreads + threadIdx.x) * kVector;
  if (channel >= args.d) return;
  const int64_t row = blockIdx.z;
  const int64_t d = args.d;
  const int length = args.lengths == nullptr ? args.l : min(args.l, max(0, args.lengths[row]));
  const int k = kWidth > 0 ? kWidth : args.k;
  constexpr int kWindow = kWidth > 0 ? kWidth : S6_CONV_MAX_WIDTH;
  const T* x = static_cast<const T*>(args.x) + row * args.x_stride.batch + channel;
  const T* state_in = args.state_in == nullptr
                          ? nullptr
                          : static_cast<const T*>(args.state_in) + row * (k - 1) * d + channel;
  T* y = static_cast<T*>(args.y) + row * args.y_stride.batch + channel;
  const int first = blockIdx.y * kTokens;

  // Input `token` of the sequence that the state precedes, as stored; zero before everything.
  const auto stored = [&](int token) -> Vector<T, kVector> {
    if (token >= 0) {
      return *reinterpret_cast<const Vector<T, kVector>*>(x + token * args.x_stride.row);
    }
    if (state_in != nullptr && token + k - 1 >= 0) {
      return *reinterpret_cast<const Vector<T, kVector>*>(state_in + (token + k - 1) * d);
    }
    Vector<T, kVector> zero;
    for (int i = 0; i < kVector; ++i) zero.at[i] = fromFloat<T>(0.0f);
    return zero;
  };

  // weight[kWindow - k + j] belongs to tap j; unused leading taps stay zero.
  float weight[kWindow][kVector], window[kWindow][kVector], bias[kVector];
#pragma unroll
  for (int j = 0; j < kWindow; ++j) {
    const int tap = j - (kWindow - k);
    if (tap >= 0) {
      loadVector(weight[j], static_cast<const W*>(args.weight) + tap * d + channel);
    } else {
      for (int i = 0; i < kVector; ++i) weight[j][i] = 0.0f;
    }
    if (j == 0) continue;
    const auto past = stored(first - kWindow + j);
#pragma unroll
    for (int i = 0; i < kVector; ++i) window[j][i] = toFloat(past.at[i]);
  }
#pragma unroll
  for (int i = 0; i < kVector; ++i) bias[i] = 0.0f;
  if (args.bias != nullptr) loadVector(bias, static_cast<const W*>(args.bias) + channel);

  if (args.state_out != nullptr && first == 0) {
    Vector<T, kVector> last[kWindow];
#pragma unroll
    for (int j = 0; j < kWindow - 1; ++j) {
      if (j < k - 1) last[j] = stored(length - (k - 1) + j);
    }
    T* state_out = static_cast<T*>(args.state_out) + row * (k - 1) * d + channel;
#pragma unroll
    for (int j = 0; j < kWindow - 1; ++j) {
      if (j < k - 1) *reinterpret_cast<Vector<T, kVector>*>(state_out + j * d) = last[j];
    }
  }

  // All loads before the first store: the compiler cannot know that y is not x, and would let each
  // wait for the store before it.
  Vector<T, kVector> input[kTokens];
#pragma unroll
  for (int t = 0; t < kTokens; ++t) {
    const int token = first + t;
    if (token < length) {
      input[t] = *reinterpret_cast<const Vector<T, kVector>*>(x + token * args.x_stride.row);
    }
  }
#pragma unroll
  for (int t = 0; t < kTokens; ++t) {
    const int token = first + t;
    if (token >= args.l) return;
    Vector<T, kVector> out;
#pragma unroll
    for (int j = 0; j + 1 < kWindow; ++j) {
#pragma unroll
      for (int i = 0; i < kVector; ++i) window[j][i] = window[j + 1][i];
    }
    const bool inside = token < length;
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
      window[kWindow - 1][i] = inside ? toFloat(input[t].at[i]) : 0.0f;
      float sum = bias[i];
#pragma unroll
      for (int j = 0; j < kWindow; ++j) sum = fmaf(weight[j][i], window[j][i], sum);
      if (args.silu != 0) sum = sizeof(T) == 4 ? siluAccurate(sum) : siluFast(sum);
      out.at[i] = fromFloat<T>(inside ? sum : 0.0f);
    }
    *reinterpret_cast<Vector<T, kVector>*>(y + token * args.y_stride.row) = out;
  }
}

bool isAligned(const void* pointer, size_t bytes) {
  return reinterpret_cast<uintptr_t>(pointer) % bytes == 0;
}

template <typename T, typename W, int kVector>
cudaError_t launchWidth(const S6CausalConv1d& p, const ConvArgs& args, cudaStream_t stream) {
  const int groups = (p.d + kConvThreads * kVector - 1) / (kConvThreads * kVector);
  const dim3 grid(groups, (p.l + kConvTokens - 1) / kConvTokens, p.b);
  if (p.l == 1) {
    if (p.k == 4) {
      convKernel<T, W, kVector, 4, 1><<<dim3(groups, 1, p.b), kConvThreads, 0, stream>>>(args);
    } else {
      convKernel<T, W, kVector, 0, 1><<<dim3(groups, 1, p.b), kConvThreads, 0, stream>>>(args);
    }
  } else if (p.k == 4) {
    convKernel<T, W, kVector, 4, kConvTokens><<<grid, kConvThreads, 0, stream>>>(args);
  } else {
    convKernel<T, W, kVector, 0, kConvTokens><<<grid, kConvThreads, 0, stream>>>(args);
  }
  return cudaGetLastError();
}

template <typename T, typename W>
cudaError_t launchConv(const S6CausalConv1d& p, cudaStream_t stream) {
  const ConvArgs args{p.l,
                      p.d,
                      p.k,
                      p.silu,
                      p.x,
                      p.weight,
                      p.bias,
                      p.state_in,
                      p.state_out,
                      p.y,
                      p.lengths,
                      resolveStrides(p.x_row, p.x_batch, p.d, p.l),
                      resolveStrides(p.y_row, p.y_batch, p.d, p.l)};
  // Four channels: 8-byte rows in fp16, enough for whole sectors across a warp.
  constexpr int kVector = 4;
  constexpr size_t kBytes = sizeof(T) * kVector;
  const bool vectorised =
      p.d % kVector == 0 && args.x_stride.row % kVector == 0 &&
      args.x_stride.batch % kVector == 0 && args.y_stride.row % kVector == 0 &&
      args.y_stride.batch % kVector == 0 && isAligned(p.x, kBytes) && isAligned(p.y, kBytes) &&
      isAligned(p.state_in, kBytes) && isAligned(p.state_out, kBytes) &&
      isAligned(p.weight, sizeof(W) * kVector) && isAligned(p.bias, sizeof(W) * kVector);
  return vectorised ? launchWidth<T, W, kVector>(p, args, stream)
                    : launchWidth<T, W, 1>(p, args, stream);
}

template <typename T>
cudaError_t launchWeights(const S6CausalConv1d& p, cudaStream_t stream) {
  switch (p.weight_dtype) {
    case S6_FLOAT16:
      return launchConv<T, __half>(p, stream);
    case S6_BFLOAT16:
      return launchConv<T, __nv_bfloat16>(p, stream);
    default:
      return launchConv<T, float>(p, stream);
  }
}

}  // namespace
}  // namespace s6

extern "C" S6Status s6_causal_conv1d(const S6CausalConv1d* problem, S6Stream stream) {
  const S6Status status = s6_causal_conv1d_check(problem);
  if (status != S6_STATUS_OK) return status;
  const S6CausalConv1d& p = *problem;
  // The token groups are a grid dimension of 16 bits.
  if (p.l > 65535 * s6::kConvTokens) return S6_STATUS_BAD_SIZE;
  if (p.b == 0) return S6_STATUS_OK;
  if (p.l == 0 && p.state_out == nullptr) return S6_STATUS_OK;
  cudaError_t error = cudaSuccess;
  if (p.l == 0) {  // An empty part still hands the state on.
    const size_t bytes =
        static_cast<size_t>(p.b) * (p.k - 1) * p.d * static_cast<size_t>(s6::elementBytes(p.dtype));
    if (p.state_in == nullptr) {
      error = cudaMemsetAsync(p.state_out, 0, bytes, stream);
    } else if (p.state_in != p.state_out) {
      error = cudaMemcpyAsync(p.state_out, p.state_in, bytes, cudaMemcpyDeviceToDevice, stream);
    }
  } else {
    switch (p.dtype) {
      case S6_FLOAT16:
        error = s6::launchWeights<__half>(p, stream);
        break;
      case S6_BFLOAT16:
        error = s6::launchWeights<__nv_bfloat16>(p, stream);
        break;
      case S6_FLOAT32:
        error = s6::launchWeights<float>(p, stream);
        break;
    }
  }
  return error == cudaSuccess ? S6_STATUS_OK : S6_STATUS_LAUNCH_FAILED;
}

extern "C" S6Status s6_causal_conv1d_step(const S6CausalConv1d* problem, S6Stream stream) {
  const S6Status status = s6_causal_conv1d_check(problem);
  if (status != S6_STATUS_OK) return status;
  return problem->l == 1 ? s6_causal_conv1d(problem, stream) : S6_STATUS_BAD_SIZE;
}
