# SPDX-License-Identifier: MIT
"""Records of boards that do not exist: test data, and marked as that in every one of them.

    python -m tests.pipeline.synthetic_fleet FOLDER --boards 200 --records 10000

The numbers are made up so that a report has something to tell apart: boards differ a little,
some throttle, one has a weak supply. They say nothing of any real board.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.power_records import (
    Channel,
    ClockSummary,
    PhaseEnergy,
    PowerSummary,
    Stretch,
    TelemetryRecord,
    TemperatureSummary,
)
from pipeline.records import (
    BenchRecord,
    BenchSettings,
    Board,
    Check,
    Jetson,
    ModelFacts,
    RooflineShare,
    Timings,
)
from pipeline.report import write_report

GENERATOR = "synthetic test data, no measurement"
MODELS = {"mamba-130m": 129_135_360, "mamba-370m": 371_516_416, "mamba-1.4b": 1_372_178_432}
BYTES = {"fp16": 2.0, "int8": 1.06, "int4": 0.56}
MODES = {"15W": (68.3, 9.5), "25W": (102.4, 13.5), "MAXN_SUPER": (102.4, 16.0)}
BOARD_FIELDS = ("cpu", "cuda", "tensorrt", "cudnn", "instruction_set", "operating_system", "kernel")
JETSON_FIELDS = ("module_evidence", "part", "model", "l4t", "jetpack", "gpu_clock_mhz",
                 "gpu_clock_ceiling_mhz", "cpu_clock_limit_mhz", "cpu_clock_ceiling_mhz",
                 "memory_clock_cap_mhz")  # fmt: skip


def without(fields: Any, **values: Any) -> dict[str, Any]:
    """Unknown facts with their reason, beside known ones."""
    return {**dict.fromkeys(fields), **values, "missing": dict.fromkeys(fields, "made up")}


def a_synthetic_record(
    number: int, board: int, day: int = 0, *, slower: float = 1.0, samples: int = 64
) -> BenchRecord:
    """One record; the same arguments give the same record.

    Args:
        number: Of the record; decides model, precision and power mode.
        board: Of the board; every 37th throttles, board 5 has a weak supply.
        day: Since 2026-01-01.
        slower: Factor on all times.
        samples: Decoded tokens of each of five iterations.
    """
    generator = np.random.default_rng((number, board, day))
    names, precisions, modes = list(MODELS), list(BYTES), list(MODES)
    model = names[number % 3]
    precision = precisions[number // 3 % 3]
    mode = modes[number // 9 % 3]
    bandwidth, watts = MODES[mode]
    throttles, is_weak = board % 37 == 11, board == 5
    bound_ms = MODELS[model] * BYTES[precision] / bandwidth / 1e6
    share = 0.62 + 0.02 * np.sin(board) - (0.15 if throttles else 0)
    step_ms = slower * bound_ms / share
    decode = step_ms * (1 + 0.004 * np.abs(generator.standard_normal((5, samples))))
    timings = Timings.from_samples(
        (60 * step_ms * (1 + 0.01 * generator.random(5))).tolist(),
        decode.tolist(), sequence_length=1024, batch=1, stopped="settled",
    )  # fmt: skip
    watts = watts * (0.97 + 0.06 * generator.random()) * (0.8 if throttles else 1.0)
    peak_c = 98.0 if throttles else 58 + 10 * generator.random()
    median_ms = timings.decode.median_ms
    checks = [
        Check(name="enough samples", passed=True, detail="5 prompts"),
        Check(
            name="not throttled",
            passed=not throttles,
            detail=f"held back by gpu in 40 readings; at most {peak_c:.0f} °C (tj)"
            if throttles
            else f"nothing held the clocks down; at most {peak_c:.0f} °C (tj)",
        ),
        Check(name="no over-current", passed=not is_weak, detail=f"oc1: {4 * is_weak} events"),
    ]
    mhz = 612.0 if throttles else 1020.0
    return BenchRecord(
        record_id=f"synthetic-{number:05d}-{board:03d}-{day:03d}",
        date_utc=str(np.datetime64("2026-01-01T08:00:00") + np.timedelta64(day, "D")) + "+00:00",
        generator=GENERATOR,
        command="none: synthetic",
        board=_board(board, mode, mhz),
        versions={"numpy": "2"},
        model=ModelFacts(
            name=model, architecture={"d_model": 768}, parameters=MODELS[model],
            precision=precision, weight_bytes=int(MODELS[model] * BYTES[precision]),
            weights_sha256="00" * 32,
        ),
        backend="cuda",
        settings=BenchSettings(threads=6),
        timings=timings,
        load_s=2.0,
        peak_memory_bytes=900_000_000,
        telemetry=_telemetry(generator, watts, peak_c, mhz),
        power=_power(watts, median_ms),
        temperature=TemperatureSummary(zone="tj", start_c=45.0, mean_c=peak_c - 4, peak_c=peak_c),
        clocks=ClockSummary(lowest_mhz=mhz, mean_mhz=mhz, highest_mhz=1020.0, limit_mhz=1020.0),
        roofline=RooflineShare(
            bytes_per_token=int(MODELS[model] * BYTES[precision]),
            read_gb_per_s=MODELS[model] * BYTES[precision] / median_ms / 1e6,
            board=f"orin-nano-8gb, {mode}",
            bandwidth_gb_per_s=bandwidth,
            bound_ms_per_token=bound_ms,
            share_percent=100 * bound_ms / median_ms,
        ),
        checks=tuple(checks),
        comparisons=(),
        **without(("pinned", "served")),
    )  # fmt: skip


def _board(board: int, mode: str, mhz: float) -> Board:
    jetson = Jetson(
        module="orin-nano-8gb", is_super=True, super_witnesses={}, power_mode=mode,
        power_modes=tuple(MODES), gpu_clock_limit_mhz=mhz, clocks_locked=True,
        **without(JETSON_FIELDS),
    )  # fmt: skip
    return Board(
        name="Jetson Orin Nano 8 GB Super", hostname=f"orin-{board:03d}", python="3.10.12",
        cores=6, usable_cores=6, memory_bytes=7_976_910_848, swap_bytes=0, gpus=(), jetson=jetson,
        **without(BOARD_FIELDS),
    )  # fmt: skip


def _power(watts: float, median_ms: float) -> PowerSummary:
    j_per_token = watts * median_ms / 1e3
    idle_w, tokens = 4.6, 256
    decode = PhaseEnergy(
        phase="decode", seconds=5.0, readings=50, energy_j=5 * watts, uncertainty_j=0.2,
        mean_w=watts, peak_w=watts * 1.04, net_energy_j=5 * (watts - idle_w),
        net_uncertainty_j=0.3, tokens=tokens, energy_per_token_j=j_per_token,
        net_energy_per_token_j=j_per_token * (watts - idle_w) / watts,
    )  # fmt: skip
    return PowerSummary(
        rail="VDD_IN", excludes="carrier board", idle_w=idle_w, mean_w=watts, peak_w=watts * 1.04,
        energy_per_token_j=j_per_token, energy_per_token_uncertainty_j=0.2 / tokens,
        phases=(decode,),
    )  # fmt: skip


def _telemetry(generator: Any, watts: float, peak_c: float, mhz: float) -> TelemetryRecord:
    times = np.round(np.arange(0, 13, 0.1), 4)
    power = np.where(times < 3, 4.6, watts * (1 + 0.01 * generator.standard_normal(len(times))))
    slow = times[::5]
    heat = 45 + (peak_c - 45) * (1 - np.exp(-slow / 3))

    def channel(moments: Any, values: Any) -> Channel:
        return Channel(times_s=tuple(moments.tolist()), values=tuple(np.round(values, 3).tolist()))

    return TelemetryRecord(
        source="sysfs", interval_s=0.1, median_interval_s=0.1, cpu_percent=0.2, gaps_s=(),
        phases=tuple(
            Stretch(name=name, start_s=start, end_s=end)
            for name, start, end in (("idle", 0, 3), ("prefill", 3, 8), ("decode", 8, 13))
        ),
        channels={
            "power_w/VDD_IN": channel(times, power),
            "temperature_c/tj": channel(slow, heat),
            "clock_mhz/gpu": channel(slow, np.full(len(slow), mhz)),
        },
    )  # fmt: skip


def write_fleet(
    folder: Path, boards: int, records: int, *, slower: float = 1.0, samples: int = 64
) -> None:
    """Writes records, one file each, a folder for each board."""
    for number in range(records):
        board = number % boards
        round_number = number // boards
        record = a_synthetic_record(
            round_number, board, round_number, slower=slower, samples=samples
        )
        place = folder / f"orin-{board:03d}"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{record.record_id}.json").write_text(json.dumps(record.model_dump(mode="json")))


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--boards", type=int, default=200)
    parser.add_argument("--records", type=int, default=10_000)
    parser.add_argument("--report", action="store_true", help="make the report, and time it")
    given = parser.parse_args()
    write_fleet(given.folder, given.boards, given.records, samples=256)
    if given.report:
        begin, used_s = time.monotonic(), time.process_time()
        write_report([given.folder], given.folder / "report.html")
        seconds = time.monotonic() - begin
        used_s = time.process_time() - used_s
        # Of this process, which has written the records as well.
        peak_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        sys.stdout.write(
            f"{given.folder}/report.html: {given.records:,} records in {seconds:.1f} s "
            f"({used_s:.1f} s of processor time), {peak_kb / 1e3:.0f} MB\n"
        )


if __name__ == "__main__":
    main()
