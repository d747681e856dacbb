// SPDX-License-Identifier: MIT
#include "contract.h"

#include "refusal.h"

namespace s6::plugin {
namespace {
#include "contract_tables.inc"
}  // namespace

int contractVersion() { return kContractVersion; }

const std::vector<OpRule>& contractOps() { return allOps(); }

const OpRule& findOp(const std::string& name) {
  for (const OpRule& op : allOps()) {
    if (name == op.name) return op;
  }
  refuse("the contract has no op ", name);
}

}  // namespace s6::plugin
