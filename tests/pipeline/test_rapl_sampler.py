# SPDX-License-Identifier: MIT
"""Counters of x86 packages: their sum, their overflow, their refusal."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.errors import TelemetryError
from pipeline.rapl_sampler import RaplSampler
from tests.pipeline.board_sensors import write

ZONE = "sys/class/powercap/intel-rapl:0"


def laptop(root: Path) -> Path:
    return write(
        root,
        {
            f"{ZONE}/name": "package-0\n",
            f"{ZONE}/energy_uj": "990000000\n",
            f"{ZONE}/max_energy_range_uj": "1000000000\n",
            "sys/class/powercap/intel-rapl:0:0/name": "core\n",
            "sys/class/powercap/intel-rapl:0:0/energy_uj": "5\n",
            "sys/class/thermal/thermal_zone4/type": "x86_pkg_temp\n",
            "sys/class/thermal/thermal_zone4/temp": "61000\n",
        },
    )


def test_joules_go_on_when_the_counter_begins_again(tmp_path: Path) -> None:
    root = laptop(tmp_path)
    sampler = RaplSampler(root=root)
    assert sampler.read()["energy_j/package-0"] == 0
    (root / ZONE / "energy_uj").write_text("30000000\n")
    values = sampler.read()
    assert values["energy_j/package-0"] == pytest.approx(40.0)
    assert values["temperature_c/package"] == 61.0
    assert "energy_j/core" not in values, "it is a part of the package"
    assert sampler.rail is not None
    assert sampler.rail.counts_energy


def test_a_counter_for_root_alone_is_told_so(tmp_path: Path) -> None:
    root = laptop(tmp_path)
    (root / ZONE / "energy_uj").write_text("permission denied")
    with pytest.raises(TelemetryError, match="root alone") as error:
        RaplSampler(root=root)
    assert "chmod" in error.value.fix
    with pytest.raises(TelemetryError, match="no counter"):
        RaplSampler(root=tmp_path / "elsewhere")
