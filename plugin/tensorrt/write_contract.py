# SPDX-License-Identifier: MIT
"""Writes contract_tables.inc, the engine forms of plugin/ops.json as tables of contract.h.

Symbols of shapes are resolved here, so that the plugin compares and copies numbers only.

    python plugin/tensorrt/write_contract.py
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

PLUGIN = Path(__file__).resolve().parents[1]
CONTRACT = PLUGIN / "ops.json"
TABLES = PLUGIN / "tensorrt" / "contract_tables.inc"

TYPES = {
    "T": "kActivation",
    "S": "kState",
    "W": "kWeight",
    "float32": "kFloat32",
    "float16": "kFloat16",
    "int32": "kInt32",
}
ATTRIBUTE_TYPES = {"int": "kInteger", "ints": "kIntegers", "float": "kNumber"}
DIMENSION = re.compile(r"(?P<symbol>[A-Za-z_]+)(?P<offset>-\d+)?(?P<more>\+)?")


def quoted(text: str) -> str:
    """A C++ string literal."""
    return json.dumps(text)


def attribute_row(attribute: dict[str, Any]) -> str:
    """One AttributeRule."""
    least = attribute.get("minimum")
    allowed = ", ".join(str(value) for value in attribute.get("allowed", ()))
    return (
        f"{{{quoted(attribute['name'])}, AttributeType::{ATTRIBUTE_TYPES[attribute['type']]}, "
        f"{'false' if 'default' in attribute else 'true'}, {attribute.get('default', 0)}, "
        f"{attribute.get('length', 1)}, {'kNoMinimum' if least is None else least}, {{{allowed}}}}}"
    )


class OpTable:
    """The tables of one op; refuses a contract that leaves a dimension of an output open."""

    def __init__(self, op: dict[str, Any]) -> None:
        self._op = op
        self._attributes = [attribute["name"] for attribute in op["attributes"]]
        self._inputs = [tensor["shape"].split() for tensor in op["inputs"]]
        self._symbols: list[str] = []
        for tensor in (*op["inputs"], *op["outputs"]):
            for word in tensor["shape"].split():
                symbol = self._parse(word)["symbol"]
                if symbol not in self._symbols:
                    self._symbols.append(symbol)

    def rows(self) -> list[str]:
        """Lines of one OpRule."""
        symbols = ", ".join(
            f"{{{quoted(symbol)}, {self._attribute_of(symbol)}}}" for symbol in self._symbols
        )
        lines = [f"{{{quoted(self._op['name'])},", "{"]
        lines += [f"{attribute_row(attribute)}," for attribute in self._op["attributes"]]
        lines += ["},", f"{{{symbols}}},", "{"]
        lines += [f"{self._tensor_row(tensor, is_output=False)}," for tensor in self._op["inputs"]]
        lines += ["},", "{"]
        lines += [f"{self._tensor_row(tensor, is_output=True)}," for tensor in self._op["outputs"]]
        return [*lines, "}},"]

    def _parse(self, word: str) -> re.Match[str]:
        match = DIMENSION.fullmatch(word)
        if match is None:
            raise ValueError(f"{self._op['name']}: no rule for the dimension {word!r}")
        return match

    def _attribute_of(self, symbol: str) -> int:
        return self._attributes.index(symbol) if symbol in self._attributes else -1

    def _tensor_row(self, tensor: dict[str, Any], *, is_output: bool) -> str:
        dimensions = ", ".join(
            self._dimension(word, is_output=is_output) for word in tensor["shape"].split()
        )
        optional = "true" if tensor.get("optional") else "false"
        return (
            f"{{{quoted(tensor['name'])}, TypeRule::{TYPES[tensor['type']]}, {optional}, "
            f"{quoted(tensor['shape'])}, {{{dimensions}}}}}"
        )

    def _dimension(self, word: str, *, is_output: bool) -> str:
        match = self._parse(word)
        symbol, offset = match["symbol"], int(match["offset"] or 0)
        source = self._source(word) if is_output else (-1, -1, -1)
        more = "true" if match["more"] else "false"
        numbers = ", ".join(str(number) for number in source)
        return f"{{{self._symbols.index(symbol)}, {offset}, {more}, {{{numbers}}}}}"

    def _source(self, word: str) -> tuple[int, int, int]:
        """Input and axis that have the same size, or the attribute that states it."""
        for number, shape in enumerate(self._inputs):
            if word in shape and not self._op["inputs"][number].get("optional"):
                return number, shape.index(word), -1
        if self._attribute_of(word) < 0:
            raise ValueError(f"{self._op['name']}: nothing says how large the output's {word} is")
        return -1, -1, self._attribute_of(word)


def tables_of(contract: dict[str, Any]) -> str:
    """The whole file."""
    lines = [
        "// SPDX-License-Identifier: MIT",
        "// Written by write_contract.py from ops.json. Do not edit.",
        "// clang-format off",
        f"constexpr int kContractVersion = {contract['contract_version']};",
        "",
        "const std::vector<OpRule>& allOps() {",
        "static const std::vector<OpRule> ops = {",
    ]
    for op in contract["ops"]:
        if "engine" in op["forms"]:
            lines += OpTable(op).rows()
    return "\n".join([*lines, "};", "return ops;", "}", ""])


def main() -> None:
    """Writes the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=TABLES)
    arguments = parser.parse_args()
    arguments.output.write_text(tables_of(json.loads(CONTRACT.read_text())))


if __name__ == "__main__":
    main()
