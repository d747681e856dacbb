// SPDX-License-Identifier: MIT
//! \file case.h
//! \brief One node with its inputs, and the call of the C API that does the same.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "failure.h"
#include "fields.h"
#include "s6/types.h"
#include "values.h"

namespace s6::exercise {

//! Size of an axis; an open one is known only when the node runs.
struct Extent {
  Extent(std::int64_t of) : size(of) {}
  std::int64_t size;
  bool is_open = false;
};
using Shape = std::vector<Extent>;

inline Extent open(std::int64_t size) {
  Extent extent = size;
  extent.is_open = true;
  return extent;
}

std::int64_t elementCount(const Shape& shape);

struct TensorSpec {
  DataType type;
  Shape shape;
};

constexpr int kOwnMemory = -1;

struct Output {
  TensorSpec spec;
  int in_place_of = kOwnMemory;  //!< Number of the input whose memory it has.
};

struct Input {
  TensorSpec spec;
  std::vector<std::uint8_t> values;
};

//! What a call of the C API gets; addresses are on the GPU.
class Arguments {
 public:
  virtual ~Arguments() = default;
  virtual void* input(std::size_t i) const = 0;
  virtual void* output(std::size_t i) const = 0;
  //! Zeroed memory, until the call is over.
  virtual void* scratch(std::size_t bytes) = 0;
  //! Copies an input to an output, unless that lies in its place.
  virtual void copy(std::size_t input, std::size_t output) = 0;

  template <typename Value>
  Value* in(std::size_t i) const {
    return static_cast<Value*>(input(i));
  }
  template <typename Value>
  Value* out(std::size_t i) const {
    return static_cast<Value*>(output(i));
  }
  S6Stream stream = nullptr;
};

struct Case {
  Case(const char* its_op, std::string its_title, Fields its_fields)
      : op(its_op), title(std::move(its_title)), fields(std::move(its_fields)) {}
  void addInput(DataType type, const Shape& shape, std::vector<std::uint8_t> values) {
    inputs.push_back({{type, shape}, std::move(values)});
  }
  //! An input of floats between two bounds.
  void addInput(DataType type, const Shape& shape, Random& random, float low, float high) {
    addInput(type, shape, random.uniform(type, elementCount(shape), low, high));
  }
  void addOutput(DataType type, const Shape& shape, int in_place_of = kOwnMemory) {
    outputs.push_back({{type, shape}, in_place_of});
  }

  std::string op;
  std::string title;
  Fields fields;
  std::vector<Input> inputs;
  std::vector<Output> outputs;
  std::function<void(Arguments&)> call;  //!< Throws Failure.
};

//! Runs a problem of the C API. \throws Failure It is refused.
template <typename Problem>
void submit(Problem problem, S6Status (*run)(const Problem*, S6Stream), S6Stream stream) {
  problem.struct_size = sizeof(Problem);
  const S6Status status = run(&problem, stream);
  require(status == S6_STATUS_OK, "the C API refuses: ", s6_status_text(status));
}

//! Attributes that every node has.
Fields fieldsOfContract();

std::vector<Case> sequenceCases();
std::vector<Case> matrixCases();
std::vector<Case> stepCases();

}  // namespace s6::exercise
