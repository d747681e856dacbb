// SPDX-License-Identifier: MIT
#include "values.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cmath>
#include <cstring>

namespace s6::exercise {
namespace {

#if S6_HAS_PLUGIN_V3
constexpr bool isBfloat(DataType type) { return type == DataType::kBF16; }
#else
constexpr bool isBfloat(DataType) { return false; }
#endif

template <typename Value>
void append(std::vector<std::uint8_t>& bytes, Value value) {
  const auto* begin = reinterpret_cast<const std::uint8_t*>(&value);
  bytes.insert(bytes.end(), begin, begin + sizeof(Value));
}

template <typename Value>
Value valueAt(const std::uint8_t* element) {
  Value value;
  std::memcpy(&value, element, sizeof(Value));
  return value;
}

}  // namespace

std::int64_t elementBytes(DataType type) { return type == kHalf || isBfloat(type) ? 2 : 4; }

const char* nameOf(DataType type) {
  if (isBfloat(type)) return "bfloat16";
  return type == kHalf ? "float16" : type == kFloat ? "float32" : "int32";
}

bool isNumber(DataType type, const std::uint8_t* element) {
  if (type == kInt) return valueAt<std::int32_t>(element) != -1;
  if (type == kFloat) return std::isfinite(valueAt<float>(element));
  const int exponent = isBfloat(type) ? 0x7f80 : 0x7c00;
  return (valueAt<std::uint16_t>(element) & exponent) != exponent;
}

std::vector<std::uint8_t> Random::uniform(DataType type, std::int64_t count, float low,
                                          float high) {
  std::vector<std::uint8_t> bytes;
  bytes.reserve(static_cast<std::size_t>(count * elementBytes(type)));
  for (std::int64_t i = 0; i < count; ++i) {
    const float value = low + (high - low) * static_cast<float>(engine_() >> 8) * 0x1p-24f;
    if (isBfloat(type)) {
      append(bytes, __float2bfloat16_rn(value));
    } else if (type == kHalf) {
      append(bytes, __float2half_rn(value));
    } else {
      append(bytes, value);
    }
  }
  return bytes;
}

std::vector<std::uint8_t> Random::words(std::int64_t count) {
  std::vector<std::uint8_t> bytes;
  bytes.reserve(static_cast<std::size_t>(4 * count));
  for (std::int64_t i = 0; i < count; ++i) append(bytes, static_cast<std::uint32_t>(engine_()));
  return bytes;
}

std::vector<std::uint8_t> Random::ids(std::int64_t count, std::int32_t vocab) {
  std::vector<std::uint8_t> bytes;
  for (std::int64_t i = 0; i < count; ++i) {
    append(bytes, static_cast<std::int32_t>(engine_() % static_cast<std::uint32_t>(vocab)));
  }
  return bytes;
}

}  // namespace s6::exercise
