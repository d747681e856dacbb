// SPDX-License-Identifier: MIT
//! \file fields.h
//! \brief The attributes of a node, as TensorRT's parser hands them to a creator.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "shell_version.h"

namespace s6::exercise {

//! Owns what its fields point to.
class Fields {
 public:
  Fields& integers(const char* name, const std::vector<std::int32_t>& values) {
    return add(name, nvinfer1::PluginFieldType::kINT32, values.data(), values.size());
  }
  Fields& integer(const char* name, std::int32_t value) { return integers(name, {value}); }
  Fields& number(const char* name, float value) {
    return add(name, nvinfer1::PluginFieldType::kFLOAT32, &value, 1);
  }
  Fields& without(const char* name) {
    for (std::size_t i = 0; i < entries_.size(); ++i) {
      if (entries_[i].name == name) entries_.erase(entries_.begin() + static_cast<long>(i));
    }
    return *this;
  }

  //! Valid while this object is neither changed nor gone.
  std::vector<nvinfer1::PluginField> all() const {
    std::vector<nvinfer1::PluginField> fields;
    for (const Entry& entry : entries_) {
      fields.emplace_back(entry.name.c_str(), entry.bytes.data(), entry.type, entry.length);
    }
    return fields;
  }

 private:
  struct Entry {
    std::string name;
    nvinfer1::PluginFieldType type;
    std::int32_t length;
    std::vector<unsigned char> bytes;
  };
  //! Replaces a field of that name.
  template <typename Value>
  Fields& add(const char* name, nvinfer1::PluginFieldType type, const Value* values,
              std::size_t count) {
    without(name);
    Entry entry = {name, type, static_cast<std::int32_t>(count), {}};
    entry.bytes.resize(count * sizeof(Value));
    std::memcpy(entry.bytes.data(), values, entry.bytes.size());
    entries_.push_back(std::move(entry));
    return *this;
  }
  std::vector<Entry> entries_;
};

}  // namespace s6::exercise
