# SPDX-License-Identifier: MIT
"""The benchmark playbook over twenty boards: one dead, one throttling, one out of disk.

The program is the real one, and so is the engine; it reads the board's simulated sensors. The
times it finds are those of this machine, and nobody looks at them.
"""

from __future__ import annotations

import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.boards.engine import Engine
from tests.boards.fleet import Fleet, Run
from tests.boards.image import ROOT
from tests.boards.simulated import Board

pytestmark = pytest.mark.boards

PROGRAM = str(Path(sys.executable).parent / "mamba-orin")
DEAD, THROTTLING, FULL = "orin-04", "orin-11", "orin-17"
NAMES = [f"orin-{number:02d}" for number in range(1, 21)]
# What a benchmark holds still, and must put back.
HELD = "cat /fake/nvpmodel.json /var/lib/nvpmodel/status /fake/sys/class/devfreq/*.gpu/m??_freq"
OPTIONS = (
    "--sequence-length 8 --new-tokens 16 --iterations 2 --minimum-iterations 1 "
    "--idle-seconds 0.5 --energy-seconds 1 --threads 1 --power-mode 25W"
)


@dataclass
class Story:
    """What happened to the fleet, and what was left on this machine."""

    run: Run
    folder: Path
    page: str
    restored: dict[str, bool]


class MountedFleet(Fleet):
    """Boards that see some folders of this machine."""

    def __init__(self, engine: Engine, boards: list[Board], mounts: list[str]) -> None:
        super().__init__(engine, boards)
        self.mounts = mounts

    def options(self, name: str) -> tuple[str, ...]:
        """See `Fleet.options`."""
        return (*super().options(name), *self.mounts)


@pytest.fixture(scope="module")
def story(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Story:
    from pipeline.bundle import convert
    from pipeline.engine import build

    place = tmp_path_factory.mktemp("benchmark")
    convert(ROOT / "models/demo", place / "demo-bundle")
    build(place / "demo-bundle", place / "demo")
    # The program comes with the Python that it runs on, and the engine with its bundle.
    seen = (ROOT, sys.base_prefix, place)
    mounts = [f"--volume={folder}:{folder}:ro" for folder in seen]
    boards = [Board(name, sku="0005", mode=0) for name in NAMES]
    with MountedFleet(engine, boards, mounts) as fleet:
        for name in NAMES:
            # One tree for all that the board has, as the program sees it.
            fleet.run_in(name, "for part in etc var; do mkdir -p /fake/$part && "
                         "/usr/bin/mount --bind /$part /fake/$part; done")  # fmt: skip
        zone = "/fake/sys/class/thermal"
        fleet.run_in(
            THROTTLING,
            f"mkdir -p {zone}/cooling_device0 && echo 17000000.gpu > {zone}/cooling_device0/type "
            f"&& echo 2 > {zone}/cooling_device0/cur_state && echo 98000 > {zone}/thermal_zone0/temp",
        )
        fleet.run_in(FULL, "mkdir -p /var/lib/mamba-orin && "
                     "/usr/bin/mount -t tmpfs -o size=1m none /var/lib/mamba-orin")  # fmt: skip
        before = {name: fleet.run_in(name, HELD) for name in NAMES}
        engine.docker("stop", "--time", "1", DEAD)
        run = fleet.play(
            "benchmark.yml",
            variables={
                "benchmark_engines": [str(place / "demo")],
                "benchmark_command": [PROGRAM],
                "benchmark_options": OPTIONS.split(),
                "benchmark_environment": {"MAMBA_ORIN_BOARD_ROOT": "/fake"},
                "benchmark_cool_down_seconds": 1,
                "benchmark_collect_to": str(place / "collected"),
                "benchmark_report_command": [PROGRAM],
            },
            tag="benchmark",
        )
        living = [name for name in NAMES if name != DEAD]
        restored = {name: fleet.run_in(name, HELD) == before[name] for name in living}
    (folder,) = (place / "collected").iterdir()
    return Story(run, folder, (folder / "report.html").read_text(), restored)


def records(story: Story) -> dict[str, dict[str, Any]]:
    return {
        path.parent.name: json.loads(path.read_text())
        for path in sorted(story.folder.glob("*/demo.json"))
    }


def words(page: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page))


def test_the_run_goes_on_and_ends_well(story: Story) -> None:
    assert story.run.code == 0, story.run.output[-3000:]


def test_every_board_that_could_be_measured_was(story: Story) -> None:
    found = records(story)
    assert sorted(found) == [name for name in NAMES if name not in (DEAD, FULL)]
    for name, record in found.items():
        assert record["board"]["hostname"] == name
        assert record["board"]["jetson"]["power_mode"] == "25W"
        assert record["pinned"]["power_mode_before"] == "15W"
        assert record["pinned"]["restored"] is True
        assert record["power"]["rail"] == "VDD_IN"
        assert record["power"]["mean_w"] == pytest.approx(4.54)
        assert record["power"]["energy_per_token_j"] > 0
        assert record["telemetry"]["source"] == "sysfs"


def test_mode_and_clocks_are_as_they_were(story: Story) -> None:
    assert set(story.restored.values()) == {True}


def test_the_report_names_the_three(story: Story) -> None:
    text = words(story.page)
    assert "18 benchmark records" in text
    assert "2 boards lack a record" in text
    assert re.search(rf"{DEAD} the board did not answer: .*(No route to host|timed out)", text)
    assert re.search(rf"{FULL} no space left on the board: \d+ MB are free", text)
    embedded = re.search(r'id="rows">(.*?)</script>', story.page, re.DOTALL)
    assert embedded
    table = json.loads(embedded[1])
    rows = [dict(zip(table["columns"], row, strict=True)) for row in table["rows"]]
    throttled = [row["host"] for row in rows if "not throttled" in row["failed"]]
    assert throttled == [THROTTLING]
    check = next(
        check for check in records(story)[THROTTLING]["checks"] if check["name"] == "not throttled"
    )
    assert re.search(r"held back by 17000000.gpu in \d+ readings; at most 98 °C", check["detail"])


def test_the_rows_are_there_for_other_tools(story: Story) -> None:
    import duckdb

    answer = duckdb.sql(f"SELECT count(DISTINCT host) FROM '{story.folder}/records.parquet'")
    assert answer.fetchone() == (18,)
