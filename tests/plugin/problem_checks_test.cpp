// SPDX-License-Identifier: MIT
// Every bad argument gives its own status and a text; a good problem passes. No device needed.
#include <cstring>
#include <functional>

#include "expect.h"
#include "s6/causal_conv1d.h"
#include "s6/selective_scan.h"

namespace {

alignas(16) unsigned char memory[64];

template <typename T>
T* at(int offset) {
  return reinterpret_cast<T*>(memory + offset);
}

S6SelectiveScan goodScan() {
  S6SelectiveScan p{};
  p.struct_size = sizeof(p);
  p.dtype = S6_FLOAT16;
  p.b = 2;
  p.l = 5;
  p.d = 8;
  p.n = 16;
  p.u = p.delta = p.B = p.C = p.z = memory;
  p.y = memory;
  p.A = p.D = p.delta_bias = p.state_in = at<float>(0);
  p.state_out = at<float>(0);
  return p;
}

void refusesScan(S6Status wanted, const std::function<void(S6SelectiveScan&)>& spoil, int line) {
  S6SelectiveScan p = goodScan();
  spoil(p);
  const S6Status status = s6_selective_scan_check(&p);
  s6::test::expect(status == wanted, s6_status_text(status), __FILE__, line);
}
#define REFUSES_SCAN(wanted, change) \
  refusesScan(wanted, [](S6SelectiveScan& p) { change; }, __LINE__)

S6CausalConv1d goodConv() {
  S6CausalConv1d p{};
  p.struct_size = sizeof(p);
  p.dtype = S6_FLOAT16;
  p.weight_dtype = S6_FLOAT32;
  p.b = 1;
  p.l = 3;
  p.d = 8;
  p.k = 4;
  p.x = p.weight = p.bias = p.state_in = memory;
  p.state_out = p.y = memory;
  return p;
}

void refusesConv(S6Status wanted, const std::function<void(S6CausalConv1d&)>& spoil, int line) {
  S6CausalConv1d p = goodConv();
  spoil(p);
  const S6Status status = s6_causal_conv1d_check(&p);
  s6::test::expect(status == wanted, s6_status_text(status), __FILE__, line);
}
#define REFUSES_CONV(wanted, change) \
  refusesConv(wanted, [](S6CausalConv1d& p) { change; }, __LINE__)

void scanProblems() {
  REFUSES_SCAN(S6_STATUS_OK, (void)p);
  REFUSES_SCAN(S6_STATUS_OK, p.z = nullptr; p.D = nullptr; p.delta_bias = nullptr);
  REFUSES_SCAN(S6_STATUS_OK, p.state_in = nullptr; p.state_out = nullptr);
  REFUSES_SCAN(S6_STATUS_OK, p.l = 0; p.u = nullptr; p.y = nullptr);
  REFUSES_SCAN(S6_STATUS_OK, p.u_row = 16; p.B_row = 80; p.n = S6_SCAN_MAX_STATE; p.C_row = 256;
               p.B_row = 256);
  S6_EXPECT(s6_selective_scan_check(nullptr) == S6_STATUS_NULL_POINTER);
  REFUSES_SCAN(S6_STATUS_BAD_ABI, p.struct_size -= 8);
  REFUSES_SCAN(S6_STATUS_BAD_DTYPE, p.dtype = static_cast<S6DataType>(3));
  REFUSES_SCAN(S6_STATUS_NULL_POINTER, p.u = nullptr);
  REFUSES_SCAN(S6_STATUS_NULL_POINTER, p.delta = nullptr);
  REFUSES_SCAN(S6_STATUS_NULL_POINTER, p.A = nullptr);
  REFUSES_SCAN(S6_STATUS_NULL_POINTER, p.B = nullptr);
  REFUSES_SCAN(S6_STATUS_NULL_POINTER, p.C = nullptr);
  REFUSES_SCAN(S6_STATUS_NULL_POINTER, p.y = nullptr);
  REFUSES_SCAN(S6_STATUS_BAD_SIZE, p.b = -1);
  REFUSES_SCAN(S6_STATUS_BAD_SIZE, p.b = 65536);
  REFUSES_SCAN(S6_STATUS_BAD_SIZE, p.l = -1);
  REFUSES_SCAN(S6_STATUS_BAD_SIZE, p.d = 0);
  REFUSES_SCAN(S6_STATUS_BAD_SIZE, p.n = 0);
  REFUSES_SCAN(S6_STATUS_BAD_SIZE, p.n = S6_SCAN_MAX_STATE + 1);
  REFUSES_SCAN(S6_STATUS_BAD_SIZE, p.sm_count = -1);
  REFUSES_SCAN(S6_STATUS_BAD_VARIANT, p.variant = static_cast<S6ScanVariant>(99));
  REFUSES_SCAN(S6_STATUS_MISALIGNED, p.u = memory + 1);
  REFUSES_SCAN(S6_STATUS_MISALIGNED, p.A = at<float>(2));
  REFUSES_SCAN(S6_STATUS_MISALIGNED, p.state_in = at<float>(1));
  REFUSES_SCAN(S6_STATUS_MISALIGNED, p.lengths = at<int32_t>(2));
  REFUSES_SCAN(S6_STATUS_BAD_STRIDE, p.u_row = 7);
  REFUSES_SCAN(S6_STATUS_BAD_STRIDE, p.B_row = -16);
  REFUSES_SCAN(S6_STATUS_BAD_STRIDE, p.y_batch = 39);
}

void convProblems() {
  REFUSES_CONV(S6_STATUS_OK, (void)p);
  REFUSES_CONV(S6_STATUS_OK, p.bias = nullptr; p.state_in = nullptr; p.state_out = nullptr);
  S6_EXPECT(s6_causal_conv1d_check(nullptr) == S6_STATUS_NULL_POINTER);
  REFUSES_CONV(S6_STATUS_BAD_ABI, p.struct_size = 0);
  REFUSES_CONV(S6_STATUS_BAD_DTYPE, p.weight_dtype = static_cast<S6DataType>(-1));
  REFUSES_CONV(S6_STATUS_NULL_POINTER, p.x = nullptr);
  REFUSES_CONV(S6_STATUS_NULL_POINTER, p.weight = nullptr);
  REFUSES_CONV(S6_STATUS_NULL_POINTER, p.y = nullptr);
  REFUSES_CONV(S6_STATUS_BAD_SIZE, p.k = 1);
  REFUSES_CONV(S6_STATUS_BAD_SIZE, p.k = S6_CONV_MAX_WIDTH + 1);
  REFUSES_CONV(S6_STATUS_BAD_SIZE, p.d = -8);
  REFUSES_CONV(S6_STATUS_MISALIGNED, p.weight = memory + 2);
  REFUSES_CONV(S6_STATUS_MISALIGNED, p.y = memory + 1);
  REFUSES_CONV(S6_STATUS_BAD_STRIDE, p.x_row = 4);
}

}  // namespace

int main() {
  scanProblems();
  convProblems();
  for (int status = 0; status <= S6_STATUS_NO_DEVICE; ++status) {
    const char* text = s6_status_text(static_cast<S6Status>(status));
    S6_EXPECT(std::strlen(text) > 1 && std::strcmp(text, "unknown status") != 0);
  }
  S6_EXPECT(std::strcmp(s6_status_text(static_cast<S6Status>(1000)), "unknown status") == 0);
  return s6::test::verdict();
}
