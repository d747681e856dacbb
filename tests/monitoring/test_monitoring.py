# SPDX-License-Identifier: MIT
"""The exporter, the scrape configuration, the alerts and the dashboard, with a real Prometheus."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.bench_metrics import metrics, write_metrics
from pipeline.records import BenchRecord
from tests.pipeline.board_sensors import HWMON, THERMAL, nano_sensors, write
from tests.pipeline.synthetic_fleet import a_synthetic_record

ROOT = Path(__file__).parents[2]
MONITORING = ROOT / "monitoring"
EXPORTER = ROOT / "roles/telemetry/files/board_exporter.py"
PROMETHEUS, PROMTOOL = shutil.which("prometheus"), shutil.which("promtool")
needs_prometheus = pytest.mark.skipif(
    PROMETHEUS is None or PROMTOOL is None, reason="prometheus and promtool are not installed"
)
PATIENCE_S = 60


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
    return port


def fetch(url: str) -> str:
    """The answer, once there is one."""
    pause = threading.Event()
    for _ in range(PATIENCE_S * 20):
        try:
            with urllib.request.urlopen(url, timeout=PATIENCE_S) as answer:
                text: str = answer.read().decode()
                return text
        except (urllib.error.URLError, ConnectionError):
            pause.wait(0.05)
    raise AssertionError(f"{url} does not answer")


@pytest.fixture
def board(tmp_path: Path) -> Path:
    root = nano_sensors(tmp_path / "board")
    write_metrics(a_synthetic_record(0, 0), root / "var/lib/mamba-orin/metrics")
    write_metrics(a_synthetic_record(3, 0), root / "var/lib/mamba-orin/metrics")
    return root


@pytest.fixture
def exporter(board: Path) -> Iterator[str]:
    """Address of a running exporter of the board."""
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, str(EXPORTER), "--root", str(board), "--port", str(port)]
    )
    yield f"127.0.0.1:{port}"
    process.terminate()
    process.wait(PATIENCE_S)


def value_of(page: str, series: str) -> float:
    found = re.search(rf"^{re.escape(series)} (\S+)$", page, re.MULTILINE)
    assert found, series
    return float(found[1])


def test_the_exporter_tells_what_the_board_says(exporter: str, board: Path) -> None:
    page = fetch(f"http://{exporter}/metrics")
    assert value_of(page, 'mamba_orin_power_watts{rail="VDD_IN"}') == pytest.approx(4.54)
    assert value_of(page, 'mamba_orin_temperature_celsius{zone="tj"}') == 47.75
    assert value_of(page, 'mamba_orin_throttle_state{device="17000000.gpu"}') == 0
    assert value_of(page, 'mamba_orin_overcurrent_events_total{kind="oc3"}') == 3
    assert 'zone="cv0"' not in page
    assert "pwm-fan" not in page
    (board / HWMON / "in1_input").unlink()
    (board / THERMAL / "cooling_device2/cur_state").write_text("3\n")
    page = fetch(f"http://{exporter}/metrics")
    assert 'rail="VDD_IN"' not in page, "a missing value is not zero"
    assert value_of(page, 'mamba_orin_throttle_state{device="17000000.gpu"}') == 3


def test_the_newest_benchmarks_are_passed_on_and_nothing_else(exporter: str, board: Path) -> None:
    record = a_synthetic_record(0, 0)
    assert record.power is not None
    labels = '{model="mamba-130m",precision="fp16",power_mode="15W",backend="cuda"}'
    write(
        board,
        {
            "var/lib/mamba-orin/metrics/broken.prom": "mamba_orin_benchmark_watts{a=\n"
            'mamba_orin_benchmark_watts{a="b"} many\nother_metric{a="b"} 1\n# TYPE x gauge\n'
            'mamba_orin_benchmark_surprise{a="b"} 1\n'
        },
    )
    page = fetch(f"http://{exporter}/metrics")
    found = value_of(page, f"mamba_orin_benchmark_joules_per_token{labels}")
    assert found == pytest.approx(record.power.energy_per_token_j, rel=1e-9)
    assert page.count("# TYPE mamba_orin_benchmark_joules_per_token gauge") == 1
    assert page.count("mamba_orin_benchmark_joules_per_token{") == 2
    assert "other_metric" not in page
    assert "surprise" not in page
    assert 'a="b"' not in page


def test_figures_that_were_not_measured_are_left_out() -> None:
    values = a_synthetic_record(0, 0).model_dump()
    absent = {"power": None, "temperature": None, "roofline": None}
    missing = {**values["missing"], **dict.fromkeys(absent, "no sensor")}
    text = metrics(BenchRecord.model_validate({**values, **absent, "missing": missing}))
    assert "tokens_per_second" in text
    for name in ("joules", "watts", "celsius", "roofline"):
        assert name not in text


@needs_prometheus
def test_promtool_finds_nothing_wrong(exporter: str, tmp_path: Path) -> None:
    assert PROMTOOL is not None
    folder = tmp_path / "monitoring"
    shutil.copytree(MONITORING, folder)
    for name in ("boards.json", "servers.json"):
        (folder / name).write_text("[]")
    (folder / "api_key").write_text("key")
    page = fetch(f"http://{exporter}/metrics")
    for command, given in (
        (["check", "config", "prometheus.yml"], None),
        (["check", "rules", "alerts.yml"], None),
        (["test", "rules", "alerts_test.yml"], None),
        (["check", "metrics"], page),
    ):
        done = subprocess.run(
            [PROMTOOL, *command], cwd=folder, input=given, capture_output=True, text=True,
            timeout=PATIENCE_S, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr


def dashboard_questions() -> list[str]:
    """Every expression of the dashboard, for all boards."""
    dashboard = json.loads((MONITORING / "grafana_dashboard.json").read_text())
    targets = [t for panel in dashboard["panels"] for t in panel.get("targets", ())]
    return [target["expr"].replace("$board", ".*") for target in targets]


@needs_prometheus
def test_prometheus_scrapes_a_board_and_answers_the_dashboard(
    exporter: str, tmp_path: Path
) -> None:
    assert PROMETHEUS is not None
    folder = tmp_path / "monitoring"
    shutil.copytree(MONITORING, folder)
    (folder / "boards.json").write_text(json.dumps([{"targets": [exporter]}]))
    (folder / "servers.json").write_text("[]")
    (folder / "api_key").write_text("key")
    config = folder / "prometheus.yml"
    config.write_text(config.read_text().replace("15s", "1s"))
    address = f"127.0.0.1:{free_port()}"
    process = subprocess.Popen(
        [PROMETHEUS, f"--config.file={config}", f"--storage.tsdb.path={tmp_path}/data",
         f"--web.listen-address={address}"],
        stderr=subprocess.DEVNULL,
    )  # fmt: skip

    def ask(question: str) -> list[dict[str, Any]]:
        query = urllib.parse.urlencode({"query": question})
        answer = json.loads(fetch(f"http://{address}/api/v1/query?{query}"))
        assert answer["status"] == "success", question
        result: list[dict[str, Any]] = answer["data"]["result"]
        return result

    try:
        pause = threading.Event()
        for _ in range(PATIENCE_S * 10):
            if ask('mamba_orin_power_watts{rail="VDD_IN"}'):
                break
            pause.wait(0.1)
        (power,) = ask('mamba_orin_power_watts{rail="VDD_IN"}')
        assert float(power["value"][1]) == pytest.approx(4.54)
        assert power["metric"]["job"] == "boards"
        unanswered = [q for q in dashboard_questions() if not ask(q)]
        # Only a server knows these; whether their names are right is the next test's matter.
        assert all(re.search("generated_tokens|queue_depth|active_slots|first_token_seconds_bucket"
                             "|increase", q) for q in unanswered), unanswered  # fmt: skip
    finally:
        process.terminate()
        process.wait(PATIENCE_S)


def test_every_metric_of_the_dashboard_and_the_alerts_exists(exporter: str) -> None:
    pytest.importorskip("prometheus_client")
    from pipeline.metrics import Metrics

    served = Metrics()
    for name in ("queue_depth", "active_slots"):
        served.watch(name, "as the scheduler does", lambda: 0)
    known = served.render().decode() + fetch(f"http://{exporter}/metrics")
    # A counter is exposed under the name that its samples have.
    text = "\n".join(dashboard_questions()) + (MONITORING / "alerts.yml").read_text()
    for name in set(re.findall(r"\bmamba_orin_\w+", text)):
        assert re.search(rf"^# TYPE {re.sub('(_bucket)$', '', name)} ", known, re.MULTILINE), name
