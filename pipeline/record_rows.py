# SPDX-License-Identifier: MIT
"""One flat row for each benchmark record: what a report of a fleet needs of it.

Ten thousand records hold gigabytes of samples that no table shows, so only the fields of a row
are taken out of a file, and the rest of it is passed over without being built or checked.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.errors import RecordError
from pipeline.records import RECORD_KIND, Check, read_record

OUTCOME_KIND = "mamba-orin benchmark outcome"
SYNTHETIC = "synthetic"
"""Records whose generator begins like this are test data and never shown as measurements."""


@dataclass(frozen=True)
class RecordRow:
    """What a report says of one record; None is unknown.

    Attributes are named as in `records`, with these of their own:

    Attributes:
        host: Name of the board in the network.
        machine: What kind of machine it is.
        first_ms: Median time to the first token.
        ms_per_token: Median time of each further token.
        mean_w: Mean power while decoding.
        j_per_token: Energy of a decoded token, idle power included.
        j_uncertainty: Of the latter.
        share_percent: Share of the roofline.
        failed: Names of the checks that failed.
        failed_details: What they found.
    """

    record_id: str
    path: str
    date_utc: str
    generator: str
    host: str
    machine: str
    power_mode: str
    model: str
    parameters: int
    precision: str
    backend: str
    scenario: str
    batch: int
    sequence_length: int
    first_ms: float
    ms_per_token: float
    tokens_per_second: float
    spread_percent: float | None
    rail: str | None
    idle_w: float | None
    mean_w: float | None
    j_per_token: float | None
    j_uncertainty: float | None
    net_j_per_token: float | None
    start_c: float | None
    peak_c: float | None
    clock_lowest_mhz: float | None
    clock_limit_mhz: float | None
    share_percent: float | None
    sampler_cpu_percent: float | None
    failed: tuple[str, ...]
    failed_details: tuple[str, ...]

    @property
    def is_synthetic(self) -> bool:
        """Whether it is test data."""
        return self.generator.startswith(SYNTHETIC)


COLUMNS = tuple(field.name for field in fields(RecordRow))


@dataclass(frozen=True)
class Outcome:
    """A board that gave no record, and why.

    Attributes:
        host: Its name.
        date_utc: When.
        reason: What happened, for people.
    """

    host: str
    date_utc: str
    reason: str


@dataclass(frozen=True)
class Broken:
    """A file that is no part of the report.

    Attributes:
        path: Where it is.
        reason: Why.
        fix: What the user can do.
    """

    path: str
    reason: str
    fix: str


@dataclass(frozen=True)
class Collected:
    """Everything that was found, once each."""

    rows: list[RecordRow]
    outcomes: list[Outcome]
    broken: list[Broken]


def collect(sources: Sequence[Path]) -> Collected:
    """Reads record files, and folders that are searched for `*.json` at any depth.

    JSON of other kinds in a folder is passed over; what cannot be read is listed with the
    reason.

    Args:
        sources: Files and folders.
    """
    rows: dict[str, RecordRow] = {}
    outcomes: dict[tuple[str, str], Outcome] = {}
    broken = []
    for path, is_named in _files(sources):
        try:
            found = read_row(path, is_named=is_named)
        except RecordError as error:
            broken.append(Broken(str(path), str(error), error.fix))
            continue
        if isinstance(found, Outcome):
            outcomes[found.host, found.date_utc] = found
        elif found is not None and found.record_id in rows:
            reason = f"the same record as {rows[found.record_id].path}"
            broken.append(Broken(str(path), reason, "nothing to do: it counts once"))
        elif found is not None:
            rows[found.record_id] = found
    ordered = sorted(
        rows.values(),
        key=lambda r: (r.parameters, r.model, r.precision, r.machine, r.date_utc, r.record_id),
    )
    return Collected(ordered, sorted(outcomes.values(), key=lambda o: o.host), broken)


def read_row(path: Path, *, is_named: bool = True) -> RecordRow | Outcome | None:
    """Reads one file.

    Args:
        path: The file.
        is_named: Whether the user named it, so that it must be a record.

    Returns:
        None for a file that was found, not named, and never claimed to be a record.

    Raises:
        RecordError: It cannot be read, or is no record; see `records.read_record`.
    """
    try:
        data = path.read_bytes()
    except OSError:
        return _explained(path, is_named)
    # Nearly every file is a record, so it is tried as one first: once through it is enough.
    with contextlib.suppress(ValidationError):
        return _row(_Record.model_validate_json(data), path)
    with contextlib.suppress(ValidationError):
        return Outcome(**_OutcomeFile.model_validate_json(data).model_dump(exclude={"kind"}))
    return _explained(path, is_named)


def _explained(path: Path, is_named: bool) -> RecordRow | None:
    """The slow way, which also reads older schemas and says exactly what is wrong."""
    if not is_named:
        try:
            values = json.loads(path.read_bytes())
        except (OSError, ValueError, RecursionError):
            values = {"kind": RECORD_KIND}
        if not isinstance(values, dict) or values.get("kind") not in (RECORD_KIND, OUTCOME_KIND):
            return None
    record = read_record(path)
    return _row(_Record.model_validate(record.model_dump()), path)


def _files(sources: Sequence[Path]) -> Iterator[tuple[Path, bool]]:
    """Each file once, and whether the user named it."""
    seen = set()
    for source in sources:
        is_folder = source.is_dir()
        for path in sorted(source.rglob("*.json")) if is_folder else [source]:
            place = path.resolve()
            if place not in seen and not path.is_dir():
                seen.add(place)
                yield path, not is_folder


# --- the part of a record that a row is made of -----------------------------------------------


class _Part(BaseModel):
    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)


class _OutcomeFile(_Part):
    kind: Literal["mamba-orin benchmark outcome"]
    host: str
    date_utc: str
    reason: str


class _Jetson(_Part):
    power_mode: str | None
    is_super: bool | None


class _Board(_Part):
    name: str
    hostname: str | None
    jetson: _Jetson | None


class _Model(_Part):
    name: str
    parameters: int
    precision: str


class _Settings(_Part):
    scenario: str
    batch: int
    sequence_length: int


class _Latency(_Part):
    median_ms: float
    spread_percent: float | None


class _Timings(_Part):
    first_token: _Latency
    decode: _Latency
    tokens_per_second: float


class _PhaseEnergy(_Part):
    phase: str
    net_energy_per_token_j: float | None


class _Power(_Part):
    rail: str
    idle_w: float | None
    mean_w: float | None
    energy_per_token_j: float | None
    energy_per_token_uncertainty_j: float | None
    phases: tuple[_PhaseEnergy, ...]


class _Heat(_Part):
    start_c: float
    peak_c: float


class _Clocks(_Part):
    lowest_mhz: float
    limit_mhz: float | None


class _Share(_Part):
    share_percent: float | None


class _Telemetry(_Part):
    cpu_percent: float | None


class _Served(_Part):
    tokens_per_second: float


class _Record(_Part):
    kind: Literal["mamba-orin benchmark"]
    schema_version: Literal[2]
    record_id: str
    date_utc: str
    generator: str
    board: _Board
    model: _Model
    backend: str
    settings: _Settings
    timings: _Timings
    telemetry: _Telemetry | None
    power: _Power | None
    temperature: _Heat | None
    clocks: _Clocks | None
    served: _Served | None
    roofline: _Share | None
    checks: tuple[Check, ...]


def _row(record: _Record, path: Path) -> RecordRow:
    power, heat, clocks = record.power, record.temperature, record.clocks
    decode = next((p for p in power.phases if p.phase == "decode"), None) if power else None
    failed = [check for check in record.checks if check.passed is False]
    jetson = record.board.jetson
    served = record.served
    return RecordRow(
        record_id=record.record_id,
        path=str(path),
        date_utc=record.date_utc,
        generator=record.generator,
        host=record.board.hostname or "unnamed",
        machine=record.board.name,
        power_mode=(jetson.power_mode if jetson else None) or "none",
        model=record.model.name,
        parameters=record.model.parameters,
        precision=record.model.precision,
        backend=record.backend,
        scenario=record.settings.scenario,
        batch=record.settings.batch,
        sequence_length=record.settings.sequence_length,
        first_ms=record.timings.first_token.median_ms,
        ms_per_token=record.timings.decode.median_ms,
        # Of answers that run beside each other, only the sum over all of them says anything.
        tokens_per_second=(served or record.timings).tokens_per_second,
        spread_percent=record.timings.decode.spread_percent,
        rail=power.rail if power else None,
        idle_w=power.idle_w if power else None,
        mean_w=power.mean_w if power else None,
        j_per_token=power.energy_per_token_j if power else None,
        j_uncertainty=power.energy_per_token_uncertainty_j if power else None,
        net_j_per_token=decode.net_energy_per_token_j if decode else None,
        start_c=heat.start_c if heat else None,
        peak_c=heat.peak_c if heat else None,
        clock_lowest_mhz=clocks.lowest_mhz if clocks else None,
        clock_limit_mhz=clocks.limit_mhz if clocks else None,
        share_percent=record.roofline.share_percent if record.roofline else None,
        sampler_cpu_percent=record.telemetry.cpu_percent if record.telemetry else None,
        failed=tuple(check.name for check in failed),
        failed_details=tuple(check.detail for check in failed),
    )
