# SPDX-License-Identifier: MIT
"""A board's power and heat among the metrics of its server."""

from __future__ import annotations

from pathlib import Path

from pipeline.metrics import Metrics
from tests.pipeline.board_sensors import nano_sensors, set_power


def test_power_and_heat_are_read_at_each_scrape(tmp_path: Path) -> None:
    root = nano_sensors(tmp_path)
    metrics = Metrics(root)
    first = metrics.render().decode().splitlines()
    assert 'mamba_orin_power_watts{rail="VDD_IN"} 4.54' in first
    assert 'mamba_orin_temperature_celsius{zone="tj"} 47.75' in first
    set_power(root, 12.0)
    second = metrics.render().decode().splitlines()
    assert 'mamba_orin_power_watts{rail="VDD_IN"} 12.0' in second
    assert 'mamba_orin_temperature_celsius{zone="tj"} 47.75' in second


def test_a_machine_without_these_sensors_tells_nothing_of_them(tmp_path: Path) -> None:
    text = Metrics(tmp_path).render().decode()
    assert "mamba_orin_power_watts" not in text
    assert "mamba_orin_queue" not in text
    assert "mamba_orin_generated_tokens_total 0.0" in text
