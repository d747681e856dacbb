# SPDX-License-Identifier: MIT
"""The figures of the newest benchmark as lines that the board's exporter passes on."""

from __future__ import annotations

import re
from datetime import datetime
from pathlib import Path

from pipeline.records import BenchRecord
from pipeline.storage import write_atomically


def write_metrics(record: BenchRecord, folder: Path) -> Path:
    """Writes one file for each model and precision, which a newer record replaces.

    Args:
        record: What was measured.
        folder: Where the exporter looks (`roles/telemetry`, `board_exporter.py`).

    Returns:
        The file.

    Raises:
        StorageError: It cannot be written.
    """
    name = re.sub(r"[^\w.-]", "_", f"{record.model.name}-{record.model.precision}")
    path = folder / f"{name}.prom"
    write_atomically(path, metrics(record).encode())
    path.chmod(0o644)  # the exporter runs as another user
    return path


def metrics(record: BenchRecord) -> str:
    """Lines of Prometheus' text format; a figure that was not measured is left out."""
    jetson = record.board.jetson
    labels = {
        "model": record.model.name,
        "precision": record.model.precision,
        "power_mode": (jetson.power_mode if jetson else None) or "none",
        "backend": record.backend,
    }
    inside = ",".join(f'{name}="{_escaped(value)}"' for name, value in labels.items())
    power, heat = record.power, record.temperature
    values = {
        "joules_per_token": power.energy_per_token_j if power else None,
        "watts": power.mean_w if power else None,
        "tokens_per_second": record.timings.tokens_per_second,
        "first_token_seconds": record.timings.first_token.median_ms / 1e3,
        "peak_celsius": heat.peak_c if heat else None,
        "roofline_ratio": record.roofline.share_percent / 100
        if record.roofline and record.roofline.share_percent is not None
        else None,
        "failed_checks": sum(check.passed is False for check in record.checks),
        "timestamp_seconds": datetime.fromisoformat(record.date_utc).timestamp(),
    }
    return "".join(
        f"mamba_orin_benchmark_{name}{{{inside}}} {value!r}\n"
        for name, value in values.items()
        if value is not None
    )


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
