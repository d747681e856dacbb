// SPDX-License-Identifier: MIT
#include "serialisation.h"

#include <cstring>
#include <string>

#include "refusal.h"

namespace s6::plugin {
namespace {

// In this order: magic, contract version, digest of all that follows, name, values. Boards and the
// machines that build for them are little-endian alike.
constexpr char kMagic[8] = {'S', '6', 'P', 'L', 'U', 'G', 'I', 'N'};
constexpr std::size_t kHeaderBytes = sizeof(kMagic) + 2 * sizeof(std::uint32_t);

//! FNV-1a; against damage, not against an enemy.
std::uint32_t digestOf(const std::uint8_t* bytes, std::size_t size) {
  std::uint32_t digest = 2166136261u;
  for (std::size_t i = 0; i < size; ++i) digest = (digest ^ bytes[i]) * 16777619u;
  return digest;
}

template <typename Value>
void append(std::vector<std::uint8_t>& bytes, const Value& value) {
  const std::size_t at = bytes.size();
  bytes.resize(at + sizeof(Value));
  std::memcpy(bytes.data() + at, &value, sizeof(Value));
}

class Reader {
 public:
  Reader(const OpRule& op, const void* bytes, std::size_t size)
      : op_(op), bytes_(static_cast<const std::uint8_t*>(bytes)), size_(size) {}

  const std::uint8_t* take(std::size_t count) {
    if (count > size_ - at_) {
      refuse(op_.name, ": the engine's data of this node end after ", size_, " bytes");
    }
    at_ += count;
    return bytes_ + at_ - count;
  }
  template <typename Value>
  Value value() {
    Value found;
    std::memcpy(&found, take(sizeof(Value)), sizeof(Value));
    return found;
  }
  const std::uint8_t* rest() const { return bytes_ + at_; }
  std::size_t restBytes() const { return size_ - at_; }

 private:
  const OpRule& op_;
  const std::uint8_t* bytes_;
  std::size_t size_, at_ = 0;
};

}  // namespace

std::vector<std::uint8_t> serialise(const OpRule& op, const Attributes& attributes) {
  std::vector<std::uint8_t> body;
  const std::string name = op.name;
  append(body, static_cast<std::uint32_t>(name.size()));
  body.insert(body.end(), name.begin(), name.end());
  for (const AttributeValue& value : attributes.values()) {
    append(body, static_cast<std::uint32_t>(value.integers.size()));
    for (const std::int64_t integer : value.integers) append(body, integer);
    append(body, value.number);
  }
  std::vector<std::uint8_t> bytes(kMagic, kMagic + sizeof(kMagic));
  append(bytes, static_cast<std::uint32_t>(contractVersion()));
  append(bytes, digestOf(body.data(), body.size()));
  bytes.insert(bytes.end(), body.begin(), body.end());
  return bytes;
}

Attributes restore(const OpRule& op, const void* bytes, std::size_t size) {
  if (bytes == nullptr || size < kHeaderBytes || std::memcmp(bytes, kMagic, sizeof(kMagic)) != 0) {
    refuse(op.name, ": the engine's data of this node are not from this plugin");
  }
  Reader reader(op, bytes, size);
  reader.take(sizeof(kMagic));
  requireContractVersion(op, "the engine", reader.value<std::uint32_t>());
  const auto digest = reader.value<std::uint32_t>();
  if (digest != digestOf(reader.rest(), reader.restBytes())) {
    refuse(op.name, ": the engine's data of this node are damaged; build the engine again");
  }
  const auto length = reader.value<std::uint32_t>();
  const std::string name(reinterpret_cast<const char*>(reader.take(length)), length);
  if (name != op.name) refuse(op.name, ": the engine's data are those of the op ", name);
  std::vector<AttributeValue> values;
  for (const AttributeRule& rule : op.attributes) {
    AttributeValue value;
    const auto count = reader.value<std::uint32_t>();
    const int wanted = rule.type == AttributeType::kNumber ? 0 : rule.length;
    if (count != static_cast<std::uint32_t>(wanted)) {
      refuse(op.name, ": the engine has ", count, " values of ", rule.name, ", not ", wanted);
    }
    for (std::uint32_t i = 0; i < count; ++i) {
      value.integers.push_back(reader.value<std::int64_t>());
    }
    value.number = reader.value<double>();
    values.push_back(std::move(value));
  }
  return Attributes::take(op, std::move(values));
}

}  // namespace s6::plugin
