// SPDX-License-Identifier: MIT
//! \file plugin_node.h
//! \brief Nodes of an engine's graph as tests write them: fields, tensors, and what was refused.
#pragma once

#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <string>
#include <vector>

#include "adaptor.h"
#include "expect.h"
#include "refusal.h"

namespace s6::test {

using plugin::Adaptor;
using plugin::ElementType;
using plugin::Field;
using plugin::FieldType;
using plugin::Tensor;

constexpr auto kHalf = ElementType::kFloat16;
constexpr auto kFloat = ElementType::kFloat32;
constexpr auto kBfloat = ElementType::kBfloat16;
constexpr auto kInt = ElementType::kInt32;

//! Owns what its fields point to.
class Fields {
 public:
  Fields() { integers(plugin::kContractVersionField, {plugin::contractVersion()}); }

  Fields& integers(const char* name, const std::vector<int32_t>& values) {
    return add(name, FieldType::kInt32, values);
  }
  Fields& integer(const char* name, int32_t value) { return integers(name, {value}); }
  Fields& wide(const char* name, int64_t value) {
    return add(name, FieldType::kInt64, std::vector<int64_t>{value});
  }
  Fields& number(const char* name, float value) {
    return add(name, FieldType::kFloat32, std::vector<float>{value});
  }
  Fields& number64(const char* name, double value) {
    return add(name, FieldType::kFloat64, std::vector<double>{value});
  }
  Fields& without(const char* name) {
    for (std::size_t i = 0; i < entries_.size(); ++i) {
      if (entries_[i].name == name) entries_.erase(entries_.begin() + static_cast<long>(i));
    }
    return *this;
  }

  std::vector<Field> all() const {
    std::vector<Field> fields;
    for (const Entry& entry : entries_) {
      fields.push_back({entry.name.c_str(), entry.type, entry.bytes.data(), entry.length});
    }
    return fields;
  }
  Adaptor adaptor(const char* op) const { return Adaptor(plugin::findOp(op), all()); }

 private:
  struct Entry {
    std::string name;
    FieldType type;
    int length;
    std::vector<unsigned char> bytes;
  };
  //! Replaces a field of that name.
  template <typename Value>
  Fields& add(const char* name, FieldType type, const std::vector<Value>& values) {
    without(name);
    Entry entry = {name, type, static_cast<int>(values.size()), {}};
    entry.bytes.resize(values.size() * sizeof(Value));
    std::memcpy(entry.bytes.data(), values.data(), entry.bytes.size());
    entries_.push_back(std::move(entry));
    return *this;
  }
  std::vector<Entry> entries_;
};

//! Addresses are never read: any multiple of 256 does.
inline char* address(int number) {
  return reinterpret_cast<char*>(std::uintptr_t{0x100000} * static_cast<std::uintptr_t>(number));
}

inline Tensor tensor(ElementType type, std::initializer_list<int64_t> dimensions, int number = 1) {
  Tensor made;
  made.type = type;
  made.rank = static_cast<int>(dimensions.size());
  int axis = 0;
  for (const int64_t size : dimensions) made.dimensions[axis++] = size;
  made.address = address(number);
  return made;
}

//! Expects a Refusal whose text has all the words.
template <typename Body>
void expectRefusal(Body body, std::initializer_list<const char*> words, int line) {
  try {
    body();
  } catch (const plugin::Refusal& refusal) {
    for (const char* word : words) {
      const bool has = std::strstr(refusal.what(), word) != nullptr;
      if (!has) std::fprintf(stderr, "no \"%s\" in: %s\n", word, refusal.what());
      expect(has, "the refusal says so", __FILE__, line);
    }
    return;
  }
  expect(false, "is refused", __FILE__, line);
}
#define EXPECT_REFUSAL(body, ...) s6::test::expectRefusal([&] { body; }, {__VA_ARGS__}, __LINE__)

inline Fields linearFields(int bits) {
  return Fields()
      .integer("bits", bits)
      .integer("group_size", bits == 16 ? 0 : 32)
      .integer("outputs", 24);
}

}  // namespace s6::test
