# SPDX-License-Identifier: MIT
"""The schema of a benchmark record and of the machine it names; JSON in and out.

A record keeps the raw samples beside what was derived from them, carries the unit in every
field name, and never stores a zero for something nobody measured: such a field is None and
`missing` says why.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline.errors import RecordError
from pipeline.facts import Facts
from pipeline.power_records import (
    ClockSummary,
    Pinned,
    PowerSummary,
    ServedLoad,
    TelemetryRecord,
    TemperatureSummary,
)

SCHEMA_VERSION: Final = 2
RECORD_KIND: Final = "mamba-orin benchmark"

# A percentile q rests on the samples beyond it; fewer than ten say nothing about a tail.
_SAMPLES_BEYOND_PERCENTILE = 10


class Gpu(Facts):
    """One desktop or server GPU.

    Attributes:
        name: As its driver calls it.
        memory_bytes: Its memory.
        driver: Version of the driver.
    """

    name: str
    memory_bytes: int | None
    driver: str | None


class Jetson(Facts):
    """What only a Jetson has.

    Attributes:
        module: "orin-nano-8gb", "orin-nano-4gb", "orin-nx-16gb" or "orin-nx-8gb".
        module_evidence: What told the module, from firm to weak: "TNSPEC", "compatible" or
            "memory size".
        part: Part number of the module, like "p3767-0005".
        model: The device tree's own name; may be wrong, for display only.
        is_super: Whether the board booted with the Super boot chain: true only when every
            witness in `super_witnesses` agrees.
        super_witnesses: Each fact that tells Super from the original, and what it says.
        l4t: Version of Jetson Linux, like "36.4.3".
        jetpack: Version of JetPack.
        power_mode: Name of the active nvpmodel mode, like "MAXN_SUPER".
        power_modes: Names of all modes this board has.
        gpu_clock_mhz: The GPU's clock at this moment.
        gpu_clock_limit_mhz: The highest the active mode lets it reach.
        gpu_clock_ceiling_mhz: The highest the boot chain lets any mode reach.
        cpu_clock_limit_mhz: The highest the active mode lets CPU 0 reach.
        cpu_clock_ceiling_mhz: The highest the boot chain lets CPU 0 reach.
        memory_clock_cap_mhz: The active mode's cap on the memory clock; None when there is
            none.
        clocks_locked: Whether the GPU's lowest and highest clock are the same.
    """

    module: str | None
    module_evidence: str | None
    part: str | None
    model: str | None
    is_super: bool | None
    super_witnesses: dict[str, bool]
    l4t: str | None
    jetpack: str | None
    power_mode: str | None
    power_modes: tuple[str, ...]
    gpu_clock_mhz: float | None
    gpu_clock_limit_mhz: float | None
    gpu_clock_ceiling_mhz: float | None
    cpu_clock_limit_mhz: float | None
    cpu_clock_ceiling_mhz: float | None
    memory_clock_cap_mhz: float | None
    clocks_locked: bool | None


class Board(Facts):
    """What a machine is: its identity in every record.

    Attributes:
        name: For people: the Jetson module, else the CPU.
        hostname: Its name in the network.
        instruction_set: Like "x86_64" or "aarch64".
        operating_system: Like "Ubuntu 22.04.5 LTS".
        kernel: Release of the kernel.
        python: Version of the interpreter.
        cpu: Name of the CPU.
        cores: Logical processors that are online.
        usable_cores: Those this process may run on.
        memory_bytes: Memory that the kernel manages, without its carve-outs.
        swap_bytes: Size of all swap, zram included.
        cuda: Version of the CUDA toolkit or runtime.
        tensorrt: Version of TensorRT.
        cudnn: Version of cuDNN.
        gpus: Desktop or server GPUs; empty when there is none.
        jetson: None on anything else.
    """

    name: str
    hostname: str | None
    instruction_set: str | None
    operating_system: str | None
    kernel: str | None
    python: str
    cpu: str | None
    cores: int | None
    usable_cores: int | None
    memory_bytes: int | None
    swap_bytes: int | None
    cuda: str | None
    tensorrt: str | None
    cudnn: str | None
    gpus: tuple[Gpu, ...]
    jetson: Jetson | None


class BenchSettings(BaseModel):
    """What a benchmark was asked to do.

    Attributes:
        sequence_length: Tokens of the prompt.
        new_tokens: Tokens decoded after the first one, in each iteration. The longer the
            continuation, the more surely `grows linearly` tells; see `pipeline.bench`.
        iterations: At most this many iterations; one is a prompt and its continuation.
        minimum_iterations: Not fewer than this, unless time runs out.
        maximum_seconds: No iteration begins later than this; each peer gets as much.
        noise_percent: Settled when the medians move by less than this.
        warmup_iterations: Iterations before the first that counts.
        batch: Texts at once.
        threads: CPU threads; None for all usable cores.
        seed: Of the random prompt, and of the arrivals of the scenario "server".
        scenario: "single" text, fixed "batch", or "server": requests that arrive by chance.
        request_rate_per_s: Mean rate of arrivals of the scenario "server".
        idle_seconds: How long to watch the machine rest, model loaded, before it works.
        energy_seconds: How long to read prompts, and then to decode, without a pause, so that
            the energy of each can be told; beside the iterations, which are too short.
        telemetry: Where power and heat are read; one of `pipeline.samplers.CHOICES`.
        telemetry_interval_s: Time between readings; None leaves each source its own.
        power_mode: Name of the mode to measure in; None leaves the active one.
        clocks: Whether to lock the clocks: "auto" does when this user may, "lock" insists.
        cool_down_c: Do not begin before the machine is as cool as this.
        cool_down_seconds: But wait no longer than this for it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    sequence_length: int = Field(default=1024, ge=1)
    new_tokens: int = Field(default=256, ge=1)
    iterations: int = Field(default=100, ge=1)
    minimum_iterations: int = Field(default=5, ge=1)
    maximum_seconds: float = Field(default=60.0, gt=0)
    noise_percent: float = Field(default=1.0, gt=0)
    warmup_iterations: int = Field(default=1, ge=0)
    batch: int = Field(default=1, ge=1)
    threads: int | None = Field(default=None, ge=1)
    seed: int = Field(default=0, ge=0)
    scenario: Literal["single", "batch", "server"] = "single"
    request_rate_per_s: float | None = Field(default=None, gt=0)
    idle_seconds: float = Field(default=3.0, ge=0)
    energy_seconds: float = Field(default=5.0, ge=0)
    telemetry: str = "auto"
    telemetry_interval_s: float | None = Field(default=None, gt=0)
    power_mode: str | None = None
    clocks: Literal["auto", "lock", "leave"] = "auto"
    cool_down_c: float | None = None
    cool_down_seconds: float = Field(default=300.0, ge=0)


class LatencySummary(Facts):
    """What a set of samples says.

    Attributes:
        count: Number of samples.
        mean_ms: Their mean.
        median_ms: Their median.
        minimum_ms: The fastest.
        maximum_ms: The slowest.
        standard_deviation_ms: Of the sample (n - 1); None below two samples.
        spread_percent: `spread_percent(samples)`; None below three samples.
        p10_ms: 10th percentile; None below 100 samples, and so on for the others.
        p90_ms: 90th percentile.
        p95_ms: 95th percentile.
        p99_ms: 99th percentile.
    """

    count: int = Field(ge=1)
    mean_ms: float
    median_ms: float
    minimum_ms: float
    maximum_ms: float
    standard_deviation_ms: float | None
    spread_percent: float | None
    p10_ms: float | None
    p90_ms: float | None
    p95_ms: float | None
    p99_ms: float | None


class Timings(BaseModel):
    """The samples of one session and what they say.

    Attributes:
        first_token_samples_ms: Time to the first token of each iteration: the prompt is read
            at once and the most likely token chosen; tokenising is not part of it.
        decode_samples_ms: (iteration, new token) time of one more token of every text, choice
            included; each begins where the one before ended, so they add up to all the time.
        first_token: Summary of the former.
        decode: Summary of the latter, over all iterations and positions.
        tokens_per_second: All decoded tokens of all texts over the time all of them took, so
            every pause counts; 1000 / median would leave them out.
        prompt_tokens_per_second: The same for the tokens of the prompts.
        stopped: Why no more iterations ran: "settled", "iterations" or "time".
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    first_token_samples_ms: tuple[float, ...]
    decode_samples_ms: tuple[tuple[float, ...], ...]
    first_token: LatencySummary
    decode: LatencySummary
    tokens_per_second: float
    prompt_tokens_per_second: float
    stopped: Literal["settled", "iterations", "time"]

    @classmethod
    def from_samples(
        cls,
        first_token_samples_ms: Sequence[float],
        decode_samples_ms: Sequence[Sequence[float]],
        *,
        sequence_length: int,
        batch: int,
        stopped: Literal["settled", "iterations", "time"],
    ) -> Timings:
        """Derives all but the samples.

        Args:
            first_token_samples_ms: One an iteration.
            decode_samples_ms: (iteration, new token).
            sequence_length: Tokens of each prompt.
            batch: Texts at once.
            stopped: See the attribute.
        """
        # A tenth of a microsecond is finer than any clock tells; the summaries are made from
        # the rounded samples, so that a reader can derive them again to the last digit.
        first = tuple(round(sample, 4) for sample in first_token_samples_ms)
        decode = tuple(tuple(round(sample, 4) for sample in row) for row in decode_samples_ms)
        flat = [sample for row in decode for sample in row]
        return cls(
            first_token_samples_ms=first,
            decode_samples_ms=decode,
            first_token=summarize(first),
            decode=summarize(flat),
            tokens_per_second=1e3 * batch * len(flat) / math.fsum(flat),
            prompt_tokens_per_second=1e3 * batch * sequence_length * len(first) / math.fsum(first),
            stopped=stopped,
        )


class ModelFacts(BaseModel):
    """Which model, exactly.

    Attributes:
        name: Name of the bundle.
        architecture: Sizes, as `MambaArchitecture.to_dict` gives them.
        parameters: Number of parameters; a tied head counts once.
        precision: Of the matrices: "fp32", "fp16", "int8" or "int4".
        weight_bytes: Size of the weight file.
        weights_sha256: Hash of the weight file.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    architecture: dict[str, Any]
    parameters: int
    precision: str
    weight_bytes: int
    weights_sha256: str


class RooflineShare(Facts):
    """How near a decoded token came to what the memory allows.

    Attributes:
        bytes_per_token: Bytes that must move for a token; counted, see `pipeline.roofline`.
        read_gb_per_s: Those bytes over the measured median time.
        board: Name and power mode in the board table.
        bandwidth_gb_per_s: What the board's memory moves at most, from its data sheet.
        bound_ms_per_token: The predicted floor; not a measurement.
        share_percent: Floor over measured median; 100 would be the floor itself.
    """

    bytes_per_token: int
    read_gb_per_s: float
    board: str | None
    bandwidth_gb_per_s: float | None
    bound_ms_per_token: float | None
    share_percent: float | None


class Check(BaseModel):
    """One reason to trust a record, or not to.

    Attributes:
        name: What was checked, in a few words.
        passed: None when this machine cannot tell.
        detail: What was found and what it should have been.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    passed: bool | None
    detail: str


class Comparison(Facts):
    """A peer on the same weights, prompt, threads and machine, in the same run.

    Attributes:
        peer: Its name, like "torch".
        version: Its version.
        precision: What it computed in; the weights are the same file.
        timings: What it took; None when it failed.
        first_token_ratio: The peer's median over ours; above 1 we are faster.
        ms_per_token_ratio: The same for decoding.
    """

    peer: str
    version: str | None
    precision: str | None
    timings: Timings | None
    first_token_ratio: float | None
    ms_per_token_ratio: float | None


class BenchRecord(Facts):
    """One benchmark of one engine on one machine.

    Attributes:
        schema_version: Of this schema; readers refuse a newer one.
        kind: Tells a record from any other JSON file.
        record_id: Unique among all records.
        date_utc: When the measurement began; ISO 8601.
        generator: Program and version.
        command: The command line.
        board: The machine.
        versions: Version of every library that took part.
        model: The model.
        backend: What ran it.
        settings: What was asked for; `threads` is the number that was used.
        timings: Samples and summaries.
        load_s: Time to load and check the engine, its libraries included.
        peak_memory_bytes: Highest resident size of the process, before any peer ran.
        pinned: What was done to hold mode and clocks still; None on what is no Jetson.
        telemetry: The raw readings, where a sampler could read any.
        power: Power, likewise.
        temperature: Temperature, likewise.
        clocks: Clock of the GPU, likewise.
        served: The load of the scenario "server"; None in the others.
        roofline: How near to the memory's limit.
        checks: What speaks for and against the record.
        comparisons: Peers in the same run.
    """

    schema_version: Literal[2] = SCHEMA_VERSION
    kind: Literal["mamba-orin benchmark"] = RECORD_KIND
    record_id: str
    date_utc: str
    generator: str
    command: str
    board: Board
    versions: dict[str, str]
    model: ModelFacts
    backend: str
    settings: BenchSettings
    timings: Timings
    load_s: float | None
    peak_memory_bytes: int | None
    pinned: Pinned | None
    telemetry: TelemetryRecord | None
    power: PowerSummary | None
    temperature: TemperatureSummary | None
    clocks: ClockSummary | None
    served: ServedLoad | None
    roofline: RooflineShare | None
    checks: tuple[Check, ...]
    comparisons: tuple[Comparison, ...]

    @property
    def is_valid(self) -> bool:
        """Whether no check failed; one that could not be made does not count."""
        return all(check.passed is not False for check in self.checks)

    def summary_text(self) -> str:
        """The result in a few lines for a terminal, without a newline at the end."""
        timings, settings = self.timings, self.settings
        first, decode = timings.first_token, timings.decode
        lines = [
            f"{self.model.name} {self.model.precision}, {self.backend} on {self.board.name}, "
            f"{settings.threads} thread{'s' if settings.threads != 1 else ''}",
            "",
            f"first token   {number(first.median_ms):>8} ms  {_scatter(first):<8}"
            f"  after {settings.sequence_length:,} tokens",
            f"each further  {number(decode.median_ms):>8} ms  {_scatter(decode):<8}"
            f"  {number(timings.tokens_per_second)} tokens/s",
        ]
        if self.power is not None and self.power.energy_per_token_j is not None:
            power = self.power
            lines.append(
                f"energy        {number(power.energy_per_token_j or 0):>8} J  "
                f"{'±' + number(power.energy_per_token_uncertainty_j or 0):<8}"
                f"  per token, {number(power.mean_w or 0)} W of {power.rail}"
            )
        if self.temperature is not None:
            heat = self.temperature
            lines.append(
                f"{heat.zone:<14}{number(heat.peak_c):>8} °C at most, from {heat.start_c:.0f}"
            )
        for peer in self.comparisons:
            if peer.timings is None or peer.first_token_ratio is None:
                lines.append(f"{peer.peer}: {peer.missing['timings']}")
                continue
            lines += [
                "",
                f"{peer.peer} {peer.version or ''}".rstrip()
                + f" takes {number(peer.first_token_ratio)} times as long to the first token and "
                f"{number(peer.ms_per_token_ratio or 0)} times for each further one",
            ]
        failed = [check for check in self.checks if check.passed is False]
        lines.append("")
        if not failed:
            lines.append(f"valid: none of {len(self.checks)} checks failed")
        lines += [f"check failed: {check.name}: {check.detail}" for check in failed]
        return "\n".join(lines)

    def to_json(self) -> bytes:
        """The record as UTF-8 JSON, one field a line but one line an array of samples."""
        values = self.model_dump(mode="json")
        return (_indented(values) + "\n").encode()


def spread_percent(samples: Sequence[float]) -> float:
    """How far samples scatter; the one definition, wherever the word spread appears.

    Half of the samples lie within this many percent of the median: the median absolute
    deviation over the median. A few long pauses leave it alone; they show in the mean, the
    maximum and the high percentiles instead.

    Args:
        samples: At least one, positive.
    """
    values = np.asarray(samples, dtype=np.float64)
    median = float(np.median(values))
    return 100.0 * float(np.median(np.abs(values - median))) / median


def has_percentile(percent: float, count: int) -> bool:
    """Whether `count` samples are enough for a percentile: ten must lie beyond it.

    Args:
        percent: Which percentile, above 0 and below 100.
        count: Number of samples.
    """
    beyond = min(percent, 100.0 - percent) / 100.0
    # The product of two floats may fall a hair short of the whole number it stands for.
    return count * beyond >= _SAMPLES_BEYOND_PERCENTILE * (1 - 1e-12)


def summarize(samples_ms: Sequence[float]) -> LatencySummary:
    """Everything the samples are enough for; the rest is None with the reason.

    Args:
        samples_ms: At least one, in milliseconds.
    """
    values = np.asarray(samples_ms, dtype=np.float64)
    count = len(values)
    missing: dict[str, str] = {}
    percentiles: dict[str, float | None] = {}
    for percent in (10, 90, 95, 99):
        field = f"p{percent}_ms"
        enough = has_percentile(percent, count)
        percentiles[field] = float(np.percentile(values, percent)) if enough else None
        if not enough:
            needed = round(100 * _SAMPLES_BEYOND_PERCENTILE / min(percent, 100 - percent))
            missing[field] = f"needs {needed} samples, there are {count}"
    if count < 2:
        missing["standard_deviation_ms"] = "needs 2 samples, there is 1"
    if count < 3:
        missing["spread_percent"] = f"needs 3 samples, there are {count}"
    return LatencySummary(
        count=count,
        mean_ms=float(values.mean()),
        median_ms=float(np.median(values)),
        minimum_ms=float(values.min()),
        maximum_ms=float(values.max()),
        standard_deviation_ms=float(values.std(ddof=1)) if count >= 2 else None,
        spread_percent=spread_percent(samples_ms) if count >= 3 else None,
        missing=missing,
        **percentiles,
    )


def number(value: float) -> str:
    """Three significant digits, whole numbers in full, thousands separated."""
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:.{digits}f}"


def percent(value: float) -> str:
    """Two significant digits; a third would be noise."""
    return f"{value:.0f} %" if abs(value) >= 10 else f"{value:.2g} %"


def is_record(values: object) -> bool:
    """Whether parsed JSON claims to be a benchmark record of any version."""
    return isinstance(values, dict) and values.get("kind") == RECORD_KIND


def read_record(path: Path) -> BenchRecord:
    """Reads one record.

    Raises:
        RecordError: There is no such file, it is not a record, it was cut off, it was written
            by a newer version, or a value is not what the schema says.
    """
    again = "run `mamba-orin bench ENGINE --output record.json` to make one"
    try:
        data = path.read_bytes()
    except OSError as error:
        raise RecordError(
            f"cannot read {path}: {error.strerror or error}",
            fix=f"check the path, or {again}",
        ) from error
    try:
        values = json.loads(data)
    except (ValueError, RecursionError) as error:
        found = "an empty file" if not data.strip() else f"{len(data)} bytes that end too early"
        if data.strip() and not data.lstrip().startswith(b"{"):
            found = "something that is not JSON"
        raise RecordError(
            f"{path} is not a benchmark record: found {found} ({error})",
            fix=f"copy the file again if it was cut off on its way, or {again}",
        ) from error
    return parse_record(values, path)


def parse_record(values: object, path: Path) -> BenchRecord:
    """Makes a record of parsed JSON.

    Args:
        values: What `json.loads` gave.
        path: Where it came from, for messages.

    Raises:
        RecordError: It is not a record, of a newer schema, or a value is wrong.
    """
    if not isinstance(values, dict) or not is_record(values):
        kind = values.get("kind") if isinstance(values, dict) else None
        found = f"a file of kind {kind!r}" if kind else "JSON without a record's `kind`"
        raise RecordError(
            f"{path} is not a benchmark record: found {found}",
            fix="name a file that `mamba-orin bench` wrote, or a folder of them",
        )
    values = _upgraded(values)
    version = values.get("schema_version")
    if version != SCHEMA_VERSION:
        newer = isinstance(version, int) and version > SCHEMA_VERSION
        raise RecordError(
            f"{path} has record schema {version!r}; this version reads {SCHEMA_VERSION}",
            fix="update mamba-orin to read it" if newer else "measure again with this version",
        )
    try:
        # Strict on types, so that a "12" or a true where a number belongs is found.
        return BenchRecord.model_validate_json(json.dumps(values), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "the record"
        raise RecordError(
            f"{path} is not a valid benchmark record: {place}: {first['msg']} "
            f"(found {str(first['input'])[:60]!r})",
            fix="measure again; a record is not meant to be edited by hand",
        ) from error


def _upgraded(values: dict[str, Any]) -> dict[str, Any]:
    """A record of schema 1, which knew no power, as one of schema 2."""
    settings, missing = values.get("settings"), values.get("missing")
    if (
        values.get("schema_version") != 1
        or not isinstance(settings, dict)
        or not isinstance(missing, dict)
    ):
        return values
    added = ("pinned", "telemetry", "clocks", "served")
    return {
        **values,
        "schema_version": SCHEMA_VERSION,
        "settings": {
            **settings,
            "scenario": "single" if settings.get("batch") == 1 else "batch",
            "idle_seconds": 0.0,
            "energy_seconds": 0.0,
            "telemetry": "none",
            "clocks": "leave",
        },
        "missing": {**missing, **dict.fromkeys(added, "no part of a record of schema 1")},
        **dict.fromkeys(added),
    }


def _scatter(summary: LatencySummary) -> str:
    return "" if summary.spread_percent is None else f"±{percent(summary.spread_percent)}"


def _indented(value: object, indent: str = "") -> str:
    """JSON with objects broken into lines and arrays of numbers kept on one."""
    deeper = indent + "  "
    if isinstance(value, dict) and value:
        lines = (
            f"{deeper}{json.dumps(key)}: {_indented(item, deeper)}" for key, item in value.items()
        )
        return "{\n" + ",\n".join(lines) + f"\n{indent}}}"
    if isinstance(value, list) and any(isinstance(item, (dict, list)) for item in value):
        items = (deeper + _indented(item, deeper) for item in value)
        return "[\n" + ",\n".join(items) + f"\n{indent}]"
    return json.dumps(value, ensure_ascii=False, allow_nan=False)
