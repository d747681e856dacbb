#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Answers Prometheus with what sysfs says of a Jetson board; needs nothing but Python.

The figures of the newest benchmarks come beside them: lines that `mamba-orin bench --metrics` has
written. Anything else in its files is passed over.

A sensor that cannot be read is left out: a missing value is not zero.
"""

from __future__ import annotations

import argparse
import http.server
import re
from pathlib import Path

METRICS = {
    "power_watts": "Power of a rail as the INA3221 averages it",
    "temperature_celsius": "Temperature of a thermal zone",
    "gpu_clock_hertz": "Clock of the GPU",
    "gpu_clock_limit_hertz": "Highest clock of the GPU that the power mode allows",
    "gpu_load_ratio": "Share of time in which the GPU was busy",
    "cpu_clock_hertz": "Clock of a processor core",
    "overcurrent_events_total": "Times that the hardware throttled for too much current",
    "memory_available_bytes": "Memory that programs can still get",
    "swap_used_bytes": "Swap in use",
    "throttle_state": "How far a cooling device holds clocks down; 0 is not at all",
    "benchmark_joules_per_token": "Energy of a decoded token, idle power included",
    "benchmark_watts": "Mean power while decoding",
    "benchmark_tokens_per_second": "Decoded tokens a second",
    "benchmark_first_token_seconds": "Median time to the first token",
    "benchmark_peak_celsius": "Highest temperature of the run",
    "benchmark_roofline_ratio": "Share of what the memory allows",
    "benchmark_failed_checks": "Validity checks that failed",
    "benchmark_timestamp_seconds": "When the benchmark began",
}
COUNTERS = {"overcurrent_events_total"}
BENCHMARKS = "var/lib/mamba-orin/metrics"
# Cooling devices that hold clocks down; the fan is one, too, and is meant to run.
HOLDS_CLOCKS = re.compile(r"cpu|gpu|devfreq|throttl", re.IGNORECASE)
BENCHMARK = re.compile(r'mamba_orin_(benchmark_\w+)\{((?:\w+="(?:[^"\\]|\\.)*",?)+)\} (\S+)')


def read(path):
    """Content of a file, or None: some sensors of a Nano exist and refuse every read."""
    try:
        return Path(path).read_text().strip("\0\n ")
    except OSError:
        return None


def number(path):
    """A file that holds one integer."""
    text = read(path)
    return int(text) if text and text.lstrip("-").isdigit() else None


def samples(root):
    """All values that can be read now: metric, labels, value."""
    root = Path(root or "/")
    yield from power(root)
    for zone in sorted((root / "sys/class/thermal").glob("thermal_zone*")):
        value, name = number(zone / "temp"), read(zone / "type")
        # A sensor that is off says -256.
        if value is not None and name and value > -200_000:
            yield "temperature_celsius", {"zone": name.replace("-thermal", "")}, value / 1000
    for cooling in sorted((root / "sys/class/thermal").glob("cooling_device*")):
        value, name = number(cooling / "cur_state"), read(cooling / "type")
        if value is not None and name and HOLDS_CLOCKS.search(name):
            yield "throttle_state", {"device": name}, value
    yield from clocks(root)
    for hwmon in sorted((root / "sys/class/hwmon").glob("hwmon*")):
        if read(hwmon / "name") == "soctherm_oc":
            for counter in sorted(hwmon.glob("oc*_event_cnt")):
                value = number(counter)
                if value is not None:
                    yield "overcurrent_events_total", {"kind": counter.name.split("_")[0]}, value
    yield from memory(root)


def power(root):
    """Rails by their label; the number of a hwmon changes between boots."""
    for hwmon in sorted((root / "sys/class/hwmon").glob("hwmon*")):
        if read(hwmon / "name") != "ina3221":
            continue
        # Channel 7 is the sum of the shunts, no rail of its own.
        for channel in range(1, 4):
            label = read(hwmon / f"in{channel}_label")
            millivolts = number(hwmon / f"in{channel}_input")
            milliamperes = number(hwmon / f"curr{channel}_input")
            if label and millivolts is not None and milliamperes is not None:
                yield "power_watts", {"rail": label}, millivolts * milliamperes / 1e6


def clocks(root):
    """Clocks of GPU and processor, in hertz."""
    for gpu in sorted((root / "sys/class/devfreq").glob("*")):
        if not gpu.name.endswith((".gpu", ".ga10b")):
            continue
        for metric, name, scale in (
            ("gpu_clock_hertz", "cur_freq", 1),
            ("gpu_clock_limit_hertz", "max_freq", 1),
            ("gpu_load_ratio", "device/load", 1000),
        ):
            value = number(gpu / name)
            if value is not None:
                yield metric, {}, value / scale
    for cpu in sorted((root / "sys/devices/system/cpu").glob("cpu[0-9]*")):
        value = number(cpu / "cpufreq/scaling_cur_freq")
        if value is not None:
            yield "cpu_clock_hertz", {"cpu": cpu.name[3:]}, value * 1000


def memory(root):
    """Memory and swap."""
    fields = dict(
        line.split(":", 1) for line in (read(root / "proc/meminfo") or "").splitlines() if line
    )
    sizes = {name: int(value.split()[0]) * 1024 for name, value in fields.items()}
    if "MemAvailable" in sizes:
        yield "memory_available_bytes", {}, sizes["MemAvailable"]
    if {"SwapTotal", "SwapFree"} <= sizes.keys():
        yield "swap_used_bytes", {}, sizes["SwapTotal"] - sizes["SwapFree"]


def benchmarks(root):
    """Lines of the newest benchmarks: metric, labels as they are written, value."""
    for file in sorted((Path(root or "/") / BENCHMARKS).glob("*.prom")):
        for line in (read(file) or "").splitlines():
            found = BENCHMARK.fullmatch(line)
            if not found or found[1] not in METRICS:
                continue
            try:
                yield found[1], found[2], float(found[3])
            except ValueError:
                continue


def page(root):
    """The answer in Prometheus' text format, in which a metric's lines stand together."""
    lines = {}
    for metric, labels, value in samples(root):
        inside = ",".join(f'{key}="{text}"' for key, text in labels.items())
        lines.setdefault(metric, {})[inside] = value
    for metric, inside, value in benchmarks(root):
        lines.setdefault(metric, {})[inside] = value
    text = []
    for metric, found in lines.items():
        name = f"mamba_orin_{metric}"
        kind = "counter" if metric in COUNTERS else "gauge"
        text += [f"# HELP {name} {METRICS[metric]}", f"# TYPE {name} {kind}"]
        text += [
            f"{name}{{{inside}}} {value:.10g}" if inside else f"{name} {value:.10g}"
            for inside, value in found.items()
        ]
    return "\n".join(text) + "\n"


def handler(root):
    """A handler that reads below a root."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            if self.path != "/metrics":
                self.send_error(404)
                return
            body = page(root).encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            """A scrape is nothing to log."""

    return Handler


def main():
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", default="", help="prefix of /proc and /sys")
    parser.add_argument("--address", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=9101)
    given = parser.parse_args()
    server = http.server.ThreadingHTTPServer((given.address, given.port), handler(given.root))
    server.serve_forever()


if __name__ == "__main__":
    main()
