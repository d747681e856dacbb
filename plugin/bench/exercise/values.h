// SPDX-License-Identifier: MIT
//! \file values.h
//! \brief Random values that are the same in every run and on every machine.
#pragma once

#include <cstdint>
#include <random>
#include <vector>

#include "shell_version.h"

namespace s6::exercise {

using nvinfer1::DataType;

constexpr auto kHalf = DataType::kHALF;
constexpr auto kFloat = DataType::kFLOAT;
constexpr auto kInt = DataType::kINT32;

std::int64_t elementBytes(DataType type);
const char* nameOf(DataType type);

//! Whether an element is a number: a float that is finite, or not the integer of the poison.
bool isNumber(DataType type, const std::uint8_t* element);

class Random {
 public:
  explicit Random(std::uint32_t seed) : engine_(seed) {}

  //! Floats between two bounds.
  std::vector<std::uint8_t> uniform(DataType type, std::int64_t count, float low, float high);
  //! Codes of packed matrices: any 32 bits.
  std::vector<std::uint8_t> words(std::int64_t count);
  //! Token ids below a number.
  std::vector<std::uint8_t> ids(std::int64_t count, std::int32_t vocab);

 private:
  //! The standard fixes this engine to the bit, but none of its distributions.
  std::mt19937 engine_;
};

}  // namespace s6::exercise
