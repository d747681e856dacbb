// SPDX-License-Identifier: MIT
//! \file memory.h
//! \brief The tensors of one case on the GPU, watched: who writes where nobody should is found.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "case.h"

namespace s6::exercise {

//! \throws Failure CUDA said no.
void requireCuda(cudaError_t status, const char* what);

//! The GPU's name, or an empty text where there is none.
std::string gpuName();

class DeviceMemory {
 public:
  explicit DeviceMemory(std::size_t bytes);
  ~DeviceMemory() { cudaFree(address_); }
  DeviceMemory(const DeviceMemory&) = delete;
  DeviceMemory& operator=(const DeviceMemory&) = delete;
  std::uint8_t* address() const { return address_; }

 private:
  std::uint8_t* address_ = nullptr;
};

//! Memory with as many bytes behind it as an overrun is likely to reach; all is poison at first.
class Watched {
 public:
  explicit Watched(std::size_t bytes);
  std::uint8_t* address() const { return memory_.address(); }
  void poison() const;
  void write(const std::vector<std::uint8_t>& values) const;
  //! \throws Failure What lies behind was written.
  std::vector<std::uint8_t> read(const std::string& name) const;

 private:
  std::size_t bytes_;
  DeviceMemory memory_;
};

class Memory final : public Arguments {
 public:
  //! \param of Outlives this.
  Memory(const Case& of, cudaStream_t on);

  void* input(std::size_t i) const override { return inputs_[i]->address(); }
  void* output(std::size_t i) const override { return outputMemory(i).address(); }
  void* scratch(std::size_t bytes) override;
  void copy(std::size_t input, std::size_t output) override;
  std::vector<void*> inputs() const;
  std::vector<void*> outputs() const;

  //! Inputs as the case has them, outputs poisoned.
  void reset();
  /*!
   * \brief The outputs, once the stream is done.
   * \throws Failure An input was changed, something was written behind a tensor, or an element of
   * an output was never written or is no number.
   */
  std::vector<std::vector<std::uint8_t>> results() const;

 private:
  const Watched& outputMemory(std::size_t i) const;
  bool isWritten(std::size_t input) const;

  const Case& case_;
  std::vector<std::unique_ptr<Watched>> inputs_, outputs_;
  std::vector<std::unique_ptr<DeviceMemory>> scratch_;
};

}  // namespace s6::exercise
