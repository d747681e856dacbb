# SPDX-License-Identifier: MIT
"""Writes docs/record.schema.json, the JSON Schema of benchmark records, from the code."""

from __future__ import annotations

import json
from pathlib import Path

from pipeline.records import SCHEMA_VERSION, BenchRecord

SCHEMA = Path(__file__).with_name("record.schema.json")


def schema() -> str:
    """The schema as JSON."""
    values = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"urn:mamba-orin:record:{SCHEMA_VERSION}",
        **BenchRecord.model_json_schema(mode="serialization"),
    }
    return json.dumps(values, indent=1) + "\n"


if __name__ == "__main__":
    SCHEMA.write_text(schema())
