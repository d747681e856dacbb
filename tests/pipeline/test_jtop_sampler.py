# SPDX-License-Identifier: MIT
"""The real client of jetson-stats against a stand-in of its service.

The stand-in listens on a real socket and speaks what the service speaks: a manager of Python's
multiprocessing, with a queue of control messages, the data of the last tick and an event.
"""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import TelemetryError
from pipeline.jtop_sampler import JtopSampler, parse_facts
from pipeline.telemetry import Recorder

STAND_IN = Path(__file__).with_name("jtop_service.py")

RAILS_7 = {
    "rail": {
        "VDD_CPU_GPU_CV": {"volt": 5000, "curr": 104, "power": 520, "avg": 500, "online": True},
        "VDD_SOC": {"volt": 5000, "curr": 289, "power": 1445, "avg": 1440, "online": True},
    },
    "tot": {"name": "VDD_IN", "volt": 5000, "curr": 908, "power": 4540, "avg": 4500},
}


def test_values_of_version_7() -> None:
    values = parse_facts(
        {
            "power": RAILS_7,
            "temperature": {
                "tj": {"temp": 47.7, "online": True},
                "cv0": {"temp": -256, "online": False},
            },
            "memory": {
                "SWAP": {"tot": 100, "used": 10},
                "EMC": {"cur": 2133000, "val": 12, "online": True},
            },
            "gpu": {
                "ga10b": {"freq": {"cur": 612000, "max": 1020000}, "status": {"load": 62.5}},
            },
        }
    )
    assert values["power_w/VDD_IN"] == 4.54
    assert values["power_w/VDD_SOC"] == 1.445
    assert values["temperature_c/tj"] == 47.7
    assert "temperature_c/cv0" not in values
    assert values["swap_used_bytes"] == 10240
    assert values["clock_mhz/memory"] == 2133
    assert (values["clock_mhz/gpu"], values["clock_limit_mhz/gpu"]) == (612, 1020)
    assert values["load_percent/gpu"] == 62.5


def test_values_of_version_4_without_a_total_sensor() -> None:
    values = parse_facts(
        {
            "power": {"rail": {"A": {"power": 500, "avg": 9}}, "tot": {"power": 700, "avg": 9}},
            "temperature": {"CPU": {"temp": 40.0}},
            "gpu": {"gpu": {"freq": {"cur": 306000}, "status": {}}},
        }
    )
    assert values["power_w/TOT"] == 0.7
    assert values["temperature_c/CPU"] == 40.0
    assert values["clock_mhz/gpu"] == 306
    assert parse_facts({"power": {}}) == {}


# fmt: off
NAMES = st.sampled_from(
    ["power", "rail", "tot", "name", "temp", "temperature", "memory", "SWAP", "used",
     "EMC", "cur", "gpu", "freq", "status", "load", "online", "x"]
)
# fmt: on
JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=24,
)


@given(st.dictionaries(NAMES, JSON))
def test_any_answer_is_read_without_a_crash(facts: dict[str, Any]) -> None:
    assert all(math.isfinite(value) for value in parse_facts(facts).values())


@pytest.fixture
def service(tmp_path: Path) -> Iterator[tuple[Path, subprocess.Popen[bytes]]]:
    """A running stand-in: where it listens, and its process."""
    pytest.importorskip("jtop", reason="jetson-stats is not installed")
    place = tmp_path / "jtop.sock"
    process = subprocess.Popen([sys.executable, str(STAND_IN), str(place)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    yield place, process
    process.send_signal(signal.SIGTERM)
    process.wait(20)
    process.stdout.close()


def test_the_real_client_brings_the_services_values(
    service: tuple[Path, subprocess.Popen[bytes]],
) -> None:
    socket, _ = service
    sampler = JtopSampler(0.1, socket)
    assert sampler.rail is not None
    assert sampler.rail.name == "VDD_IN"
    assert sampler.missing == {}
    pause = threading.Event()
    with Recorder(sampler) as recorder:
        while len(recorder.recording.values.get("power_w/VDD_IN", [])) < 5:
            pause.wait(0.02)
    recording = recorder.stop()
    # The stand-in draws a tenth of a watt more at each of its ticks; none is read twice.
    watts = recording.values["power_w/VDD_IN"]
    assert watts == sorted(set(watts))
    assert watts[0] >= 4.5
    assert recording.values["temperature_c/tj"][0] == 50.5
    assert "temperature_c/cv0" not in recording.values
    assert recording.values["clock_mhz/gpu"][0] == 612
    # Moments are the feed's own, of the clock that all processes share.
    assert 0 < time.monotonic() - recording.times_s["power_w/VDD_IN"][-1] < 60


def test_a_service_that_dies_ends_the_readings_and_says_so(
    service: tuple[Path, subprocess.Popen[bytes]],
) -> None:
    socket, process = service
    with Recorder(JtopSampler(0.1, socket)) as recorder:
        os.kill(process.pid, signal.SIGKILL)
        recorder._thread.join(60)
        assert not recorder._thread.is_alive()
    assert "jtop ended" in recorder.stop().missing["power"]


def test_no_service_is_told_with_how_to_start_it(tmp_path: Path) -> None:
    with pytest.raises(TelemetryError, match="does not run") as error:
        JtopSampler(socket=tmp_path / "absent.sock")
    assert "systemctl start jtop" in error.value.fix


def test_a_stale_socket_is_refused_with_the_clients_words(tmp_path: Path) -> None:
    pytest.importorskip("jtop", reason="jetson-stats is not installed")
    stale = tmp_path / "jtop.sock"
    stale.touch()
    with pytest.raises(TelemetryError, match="ended with code"):
        JtopSampler(socket=stale)


def test_a_feed_of_broken_lines_is_passed_over(tmp_path: Path) -> None:
    feed = tmp_path / "feed.py"
    feed.write_text(
        "import time\n"
        "print('not JSON'); print('[1, 2]'); print('{\"power\": 3}')\n"
        'print(\'{"time_s": 5, "power": {"tot": {"power": 900}}}\', flush=True)\n'
        "time.sleep(600)\n"
    )
    (tmp_path / "jtop.sock").touch()
    sampler = JtopSampler(0.1, tmp_path / "jtop.sock", [sys.executable, str(feed)])
    assert sampler.rail is not None
    assert sampler.rail.name == "sum of all rails"
    sampler.close()
