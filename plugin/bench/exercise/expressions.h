// SPDX-License-Identifier: MIT
//! \file expressions.h
//! \brief TensorRT's symbolic sizes without a TensorRT: a number that is fixed, or open and known.
#pragma once

#include <memory>
#include <vector>

#include "shell_version.h"

namespace s6::exercise {

//! 32 bits in TensorRT 8, 64 later.
using Integer = std::remove_reference_t<decltype(nvinfer1::Dims::d[0])>;

class Expression final : public nvinfer1::IDimensionExpr {
 public:
  //! \param is_open To the plugin it is a size that is not known yet.
  Expression(Integer value, bool is_open) : impl_(value, is_open) { mImpl = &impl_; }
  ~Expression() noexcept override = default;

 private:
  class Impl final : public nvinfer1::apiv::VDimensionExpr {
   public:
    Impl(Integer value, bool is_open) : value_(value), is_open_(is_open) {}
    bool isConstant() const override { return !is_open_; }
    Integer getConstantValue() const override { return value_; }
#if S6_HAS_PLUGIN_V3
    bool isSizeTensor() const override { return false; }
#endif

   private:
    Integer value_;
    bool is_open_;
  };
  Impl impl_;
};

//! Owns what it makes. The plugin's sizes are inputs' or attributes', so nothing is ever computed.
class Expressions final : public nvinfer1::IExprBuilder {
 public:
  Expressions() { mImpl = &impl_; }
  ~Expressions() noexcept override = default;

  const nvinfer1::IDimensionExpr* make(Integer value, bool is_open) {
    return impl_.make(value, is_open);
  }

 private:
  class Impl final : public nvinfer1::apiv::VExprBuilder {
   public:
    const nvinfer1::IDimensionExpr* make(Integer value, bool is_open) {
      made_.push_back(std::make_unique<Expression>(value, is_open));
      return made_.back().get();
    }
    const nvinfer1::IDimensionExpr* constant(Integer value) override { return make(value, false); }
    const nvinfer1::IDimensionExpr* operation(nvinfer1::DimensionOperation,
                                              const nvinfer1::IDimensionExpr&,
                                              const nvinfer1::IDimensionExpr&) override {
      return nullptr;
    }
#if S6_HAS_PLUGIN_V3
    const nvinfer1::IDimensionExpr* declareSizeTensor(int32_t, const nvinfer1::IDimensionExpr&,
                                                      const nvinfer1::IDimensionExpr&) override {
      return nullptr;
    }
#endif

   private:
    std::vector<std::unique_ptr<Expression>> made_;
  };
  Impl impl_;
};

}  // namespace s6::exercise
