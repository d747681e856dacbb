// SPDX-License-Identifier: MIT
#include "memory.h"

#include <algorithm>

#include "failure.h"

namespace s6::exercise {
namespace {

//! As a float it is no number, as an id it is -1.
constexpr std::uint8_t kPoison = 0xff;
constexpr std::size_t kBehind = 4096;

std::size_t byteCount(const TensorSpec& spec) {
  return static_cast<std::size_t>(elementCount(spec.shape) * elementBytes(spec.type));
}

}  // namespace

void requireCuda(cudaError_t status, const char* what) {
  require(status == cudaSuccess, what, ": ", cudaGetErrorString(status));
}

std::string gpuName() {
  int count = 0;
  cudaDeviceProp properties;
  if (cudaGetDeviceCount(&count) != cudaSuccess || count == 0 ||
      cudaGetDeviceProperties(&properties, 0) != cudaSuccess) {
    return "";
  }
  return properties.name;
}

DeviceMemory::DeviceMemory(std::size_t bytes) {
  requireCuda(cudaMalloc(reinterpret_cast<void**>(&address_), bytes), "cudaMalloc");
}

Watched::Watched(std::size_t bytes) : bytes_(bytes), memory_(bytes + kBehind) { poison(); }

void Watched::poison() const {
  requireCuda(cudaMemset(address(), kPoison, bytes_ + kBehind), "cudaMemset");
}

void Watched::write(const std::vector<std::uint8_t>& values) const {
  require(values.size() == bytes_, "a tensor of ", bytes_, " bytes has ", values.size());
  requireCuda(cudaMemcpy(address(), values.data(), bytes_, cudaMemcpyHostToDevice), "cudaMemcpy");
}

std::vector<std::uint8_t> Watched::read(const std::string& name) const {
  std::vector<std::uint8_t> all(bytes_ + kBehind);
  requireCuda(cudaMemcpy(all.data(), address(), all.size(), cudaMemcpyDeviceToHost), "cudaMemcpy");
  const auto end = all.begin() + static_cast<std::ptrdiff_t>(bytes_);
  require(std::all_of(end, all.end(), [](std::uint8_t byte) { return byte == kPoison; }),
          "something was written behind ", name);
  all.resize(bytes_);
  return all;
}

Memory::Memory(const Case& of, cudaStream_t on) : case_(of) {
  stream = on;
  for (const Input& one : of.inputs) {
    inputs_.push_back(std::make_unique<Watched>(byteCount(one.spec)));
  }
  for (const Output& one : of.outputs) {
    const bool owns = one.in_place_of == kOwnMemory;
    outputs_.push_back(owns ? std::make_unique<Watched>(byteCount(one.spec)) : nullptr);
  }
}

const Watched& Memory::outputMemory(std::size_t i) const {
  return outputs_[i] ? *outputs_[i]
                     : *inputs_[static_cast<std::size_t>(case_.outputs[i].in_place_of)];
}

void* Memory::scratch(std::size_t bytes) {
  scratch_.push_back(std::make_unique<DeviceMemory>(bytes));
  requireCuda(cudaMemsetAsync(scratch_.back()->address(), 0, bytes, stream), "cudaMemsetAsync");
  return scratch_.back()->address();
}

void Memory::copy(std::size_t from, std::size_t to) {
  if (input(from) == output(to)) return;
  requireCuda(cudaMemcpyAsync(output(to), input(from), byteCount(case_.inputs[from].spec),
                              cudaMemcpyDeviceToDevice, stream),
              "cudaMemcpyAsync");
}

std::vector<void*> Memory::inputs() const {
  std::vector<void*> addresses;
  for (std::size_t i = 0; i < inputs_.size(); ++i) addresses.push_back(input(i));
  return addresses;
}

std::vector<void*> Memory::outputs() const {
  std::vector<void*> addresses;
  for (std::size_t i = 0; i < outputs_.size(); ++i) addresses.push_back(output(i));
  return addresses;
}

void Memory::reset() {
  for (std::size_t i = 0; i < inputs_.size(); ++i) inputs_[i]->write(case_.inputs[i].values);
  for (const auto& one : outputs_) {
    if (one) one->poison();
  }
  // The copies above are of the default stream, which other streams need not wait for.
  requireCuda(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
}

bool Memory::isWritten(std::size_t input) const {
  return std::any_of(case_.outputs.begin(), case_.outputs.end(), [&](const Output& output) {
    return output.in_place_of == static_cast<int>(input);
  });
}

std::vector<std::vector<std::uint8_t>> Memory::results() const {
  requireCuda(cudaStreamSynchronize(stream), "a kernel");
  for (std::size_t i = 0; i < inputs_.size(); ++i) {
    const std::string name = "input " + std::to_string(i);
    const auto values = inputs_[i]->read(name);
    require(isWritten(i) || values == case_.inputs[i].values, name, " was changed");
  }
  std::vector<std::vector<std::uint8_t>> found;
  for (std::size_t i = 0; i < outputs_.size(); ++i) {
    const std::string name = "output " + std::to_string(i);
    const DataType type = case_.outputs[i].spec.type;
    const auto size = static_cast<std::size_t>(elementBytes(type));
    found.push_back(outputMemory(i).read(name));
    for (std::size_t at = 0; at < found.back().size(); at += size) {
      require(isNumber(type, &found.back()[at]), name, " has no number at element ", at / size);
    }
  }
  return found;
}

}  // namespace s6::exercise
