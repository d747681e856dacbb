// SPDX-License-Identifier: MIT
#include "refusals.h"

#include <algorithm>

#include "case.h"
#include "failure.h"
#include "phases.h"

namespace s6::exercise {
namespace {

const Case& firstOf(const std::string& op, const std::vector<Case>& cases) {
  return *std::find_if(cases.begin(), cases.end(), [&](const Case& one) { return one.op == op; });
}

//! Where a node's bytes begin; IPluginV2DynamicExt's have something before them.
std::size_t beginOf(const Bytes& bytes) {
  const std::string magic = "S6PLUGIN";
  const auto found = std::search(bytes.begin(), bytes.end(), magic.begin(), magic.end());
  require(found != bytes.end(), "the engine's bytes have no magic number");
  return static_cast<std::size_t>(found - bytes.begin());
}

bool hasAll(const std::string& line, const std::vector<std::string>& words) {
  return std::all_of(words.begin(), words.end(),
                     [&](const std::string& word) { return line.find(word) != std::string::npos; });
}

}  // namespace

std::vector<Refusal> refusals(const Library& library) {
  const Case linear = firstOf("QuantLinear", matrixCases());
  const Case scan = firstOf("SelectiveScan", sequenceCases());
  Creator& linears = library.creator(linear.op);
  const auto creates = [&linears](const Fields& fields) {
    return [&linears, fields] { return Node::create(linears, fields) == nullptr; };
  };
  const auto restores = [](Creator& creator, const Bytes& bytes) {
    return [&creator, bytes] { return Node::restore(creator, bytes) == nullptr; };
  };
  const std::string op = linear.op;
  std::vector<Refusal> all;

  Fields fields = linear.fields;
  all.push_back({op,
                 "an attribute is missing",
                 creates(fields.without("bits")),
                 {op, kNodeName, "createPlugin", "bits is missing"}});
  fields = linear.fields;
  all.push_back({op,
                 "no contract version",
                 creates(fields.without("contract_version")),
                 {op, "contract_version"}});
  fields = linear.fields;
  all.push_back({op,
                 "a graph of a later contract",
                 creates(fields.integer("contract_version", 9)),
                 {op, "the graph has version 9", "build the plugin again"}});
  fields = linear.fields;
  all.push_back({op,
                 "an unknown attribute",
                 creates(fields.integer("colour", 3)),
                 {op, "colour is unknown", "group_size"}});
  fields = linear.fields;
  all.push_back({op,
                 "an attribute out of range",
                 creates(fields.integer("bits", 5)),
                 {op, "bits is 5", "16 8 4"}});

  const Bytes bytes = build(library, linear).engine_bytes;
  const std::size_t version = beginOf(bytes) + 8;
  Bytes changed = bytes;
  changed[version] = 9;
  all.push_back({op,
                 "an engine of a later contract",
                 restores(linears, changed),
                 {op, "the engine has version 9", "build the plugin again"}});
  changed[version] = 0;
  all.push_back({op,
                 "an engine of an earlier contract",
                 restores(linears, changed),
                 {op, "the engine has version 0", "build the engine again"}});
  changed = bytes;
  changed.back() ^= 1;
  all.push_back({op, "damaged bytes", restores(linears, changed), {op, "are damaged"}});
  all.push_back({op,
                 "bytes of another operator",
                 restores(linears, build(library, scan).engine_bytes),
                 {op, "are those of the op SelectiveScan"}});
  all.push_back({op,
                 "bytes cut anywhere",
                 [&library, &linears, bytes] {
                   Log& log = library.log();
                   for (std::size_t size = 0; size < bytes.size(); ++size) {
                     const Bytes part(bytes.begin(),
                                      bytes.begin() + static_cast<std::ptrdiff_t>(size));
                     log.complaints.clear();
                     if (Node::restore(linears, part) != nullptr) return false;
                     if (log.complaints.size() != 1) return false;
                   }
                   return true;
                 },
                 {op, "the engine's data of this node"}});

  all.push_back({scan.op,
                 "an input is missing",
                 [&library, scan] {
                   const auto node = Node::create(library.creator(scan.op), scan.fields);
                   Expressions builder;
                   Shapes found;
                   return !node->outputShapes(Shapes(scan.inputs.size() - 1), found, builder);
                 },
                 {scan.op, "has 8 inputs", "allowed: 9"}});
  all.push_back({scan.op,
                 "shapes that do not fit each other, at a run",
                 [&library, scan] {
                   auto inputs = inputsOf(scan);
                   const auto outputs = outputsOf(scan);
                   const auto node = load(library, scan, build(library, scan));
                   inputs[0].shape[1] = 36;
                   const Descriptions in = descriptionsOf(inputs), out = descriptionsOf(outputs);
                   const std::vector<void*> none(in.size());
                   library.log().complaints.clear();
                   return !node->enqueue(in, out, none, none, nullptr, nullptr);
                 },
                 {scan.op, "delta is", "l is 36"}});
  return all;
}

std::string tryRefusal(const Library& library, const Refusal& refusal) {
  std::vector<std::string>& complaints = library.log().complaints;
  complaints.clear();
  require(refusal.is_refused(), "it is not refused");
  for (const std::string& line : complaints) {
    if (hasAll(line, refusal.words)) return line;
  }
  throw Failure("the log does not say why: " + (complaints.empty() ? "" : complaints.back()));
}

}  // namespace s6::exercise
