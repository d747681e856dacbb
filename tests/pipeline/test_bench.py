# SPDX-License-Identifier: MIT
"""Benchmarks of a session whose speed the test decides, by a clock that the session turns."""

import gc
import math
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from pipeline.architecture import MambaArchitecture
from pipeline.bench import (
    Bystanders,
    benchmark_folder,
    make_settings,
    run_benchmark,
    write_record,
)
from pipeline.board import Activity, read_board
from pipeline.errors import BackendError, BenchmarkError, UsageError
from pipeline.measuring import BenchProgress, Task, measure, random_prompt
from pipeline.peers import PEERS, Measured, Peer
from pipeline.records import BenchRecord, BenchSettings, Check, read_record
from pipeline.session import Floats, State, TokenIds
from pipeline.telemetry import NoSampler, Rail, Reading
from pipeline.validity import check_activity, check_linear_growth
from tests.pipeline.test_board import super_8gb
from tests.pipeline.test_records import a_board

ARCHITECTURE = MambaArchitecture(
    d_model=4, n_layer=1, d_inner=8, d_state=2, d_conv=4, dt_rank=1, vocab_size=11, vocab_rows=16
)


@dataclass
class FakeSession:
    """Takes exactly the time it is told to, on a clock of its own."""

    prefill_ms: Callable[[int], float] = lambda _: 100.0
    step_ms: Callable[[int, int], float] = lambda _iteration, _position: 5.0
    backend: str = "onnxruntime"
    architecture: MambaArchitecture = ARCHITECTURE
    logit: float = 1.0
    now_s: float = 1000.0
    iteration: int = -1
    position: int = 0
    read: list[Any] = field(default_factory=list)
    collected_inside: bool = False

    def clock(self) -> float:
        return self.now_s

    def prefill(
        self, token_ids: TokenIds, state: State | None = None, *, all_logits: bool = False
    ) -> tuple[Floats, State]:
        assert state is None
        assert not all_logits
        self.iteration += 1
        self.position = 0
        self.read.append(token_ids.copy())
        self.now_s += self.prefill_ms(self.iteration) / 1e3
        return self._answer(len(token_ids)), State.zeros(self.architecture, len(token_ids))

    def step(self, token_ids: TokenIds, state: State) -> tuple[Floats, State]:
        self.collected_inside |= gc.isenabled()
        self.read.append(token_ids.copy())
        self.now_s += self.step_ms(self.iteration, self.position) / 1e3
        self.position += 1
        return self._answer(len(token_ids)), state

    def _answer(self, batch: int) -> Floats:
        """The next token is always one more than how many were decoded."""
        logits = np.zeros((batch, self.architecture.vocab_size), dtype=np.float32)
        logits[:, (self.position + 1) % self.architecture.vocab_size] = self.logit
        return logits


def idle() -> Activity:
    return Activity(busy_s=0.0, own_s=0.0, swapped_pages=0, swap_used_bytes=0)


def run(
    session: FakeSession, peers: tuple[str, ...] = (), bundle: Path = Path(), **settings: Any
) -> BenchRecord:
    manifest = SimpleNamespace(
        architecture=session.architecture,
        precision="fp32",
        model_name="tiny",
        weights_sha256="00" * 32,
        versions={"onnxruntime": "1"},
        weights_bytes=48,
    )
    engine = SimpleNamespace(session=session, tokenizer=None, manifest=manifest, bundle=bundle)
    return run_benchmark(
        cast("Any", engine),
        BenchSettings(**{"sequence_length": 8, "new_tokens": 32, "threads": 2, **settings}),
        peers,
        load_s=0.5,
        world=Bystanders(
            clock=session.clock,
            observe=idle,
            open_sampler=lambda *_: NoSampler("not in this test"),
            board=a_board(),
        ),
    )


def check(record: BenchRecord, name: str) -> Check:
    return next(check for check in record.checks if check.name == name)


def test_times_are_those_that_passed() -> None:
    record = run(FakeSession())
    assert record.timings.first_token.median_ms == pytest.approx(100)
    assert record.timings.decode.median_ms == pytest.approx(5)
    assert record.timings.tokens_per_second == pytest.approx(200)
    assert record.timings.prompt_tokens_per_second == pytest.approx(80)
    assert record.roofline is not None
    assert record.roofline.read_gb_per_s == pytest.approx(
        record.roofline.bytes_per_token / 5e-3 / 1e9
    )
    assert record.roofline.share_percent is None
    assert record.is_valid


def test_warm_up_does_not_count() -> None:
    slow_start = FakeSession(prefill_ms=lambda i: 9000.0 if i < 2 else 100.0)
    record = run(slow_start, warmup_iterations=2)
    assert record.timings.first_token.maximum_ms == pytest.approx(100)


def test_each_token_is_the_one_the_model_chose() -> None:
    session = FakeSession()
    run(session, warmup_iterations=0, minimum_iterations=1, iterations=1, new_tokens=4, batch=2)
    prompt, *steps = session.read
    assert prompt.shape == (2, 8)
    assert [list(step) for step in steps] == [[1, 1], [2, 2], [3, 3], [4, 4]]


def test_the_prompt_is_seeded_and_inside_the_vocabulary() -> None:
    settings = BenchSettings(sequence_length=500, batch=2, seed=7)
    prompt = random_prompt(ARCHITECTURE, settings)
    assert prompt.dtype == np.int64
    assert prompt.min() >= 0
    assert prompt.max() == ARCHITECTURE.vocab_size - 1
    np.testing.assert_array_equal(prompt, random_prompt(ARCHITECTURE, settings))
    assert (prompt != random_prompt(ARCHITECTURE, settings.model_copy(update={"seed": 8}))).any()


def test_stops_when_the_medians_stand_still() -> None:
    """The first iterations get faster; nothing moves from the sixth on."""
    record = run(FakeSession(prefill_ms=lambda i: 100.0 + max(0, 5 - i) * 50))
    assert record.timings.stopped == "settled"
    assert 8 <= record.timings.first_token.count < 20
    assert check(record, "settled").passed


def test_stops_at_the_most_iterations() -> None:
    record = run(FakeSession(prefill_ms=lambda i: 100.0 * 1.3**i), iterations=7)
    assert record.timings.stopped == "iterations"
    assert record.timings.first_token.count == 7
    assert check(record, "settled").passed is False
    assert "after 7 iterations" in check(record, "settled").detail
    assert not record.is_valid


def test_stops_when_time_is_up_with_what_it_has() -> None:
    record = run(FakeSession(prefill_ms=lambda _: 5000.0), maximum_seconds=12.0)
    assert record.timings.stopped == "time"
    assert record.timings.first_token.count == 3
    assert check(record, "enough samples").passed is False
    assert "3 prompts (at least 5)" in check(record, "enough samples").detail


def test_scattered_samples_fail_the_check() -> None:
    record = run(FakeSession(step_ms=lambda _, position: 5.0 if position % 2 else 8.0))
    assert check(record, "spread of decoding").passed is False
    assert check(record, "spread of the first token").passed is True


def test_nothing_happens_inside_a_timed_region() -> None:
    session = FakeSession()
    reports: list[tuple[int, int]] = []

    def progress(report: BenchProgress) -> None:
        assert report.phase in {"warm-up", "measure"}
        session.now_s += 3600  # a slow terminal must not be part of any sample
        reports.append((session.iteration, session.position))

    settings = BenchSettings(sequence_length=8, new_tokens=32, iterations=3, maximum_seconds=1e9)
    task = Task(
        Path(), ARCHITECTURE, random_prompt(ARCHITECTURE, settings), settings, session.clock,
        progress,
    )  # fmt: skip
    timings = measure(session, task, "fake")
    assert timings.decode.maximum_ms == pytest.approx(5)
    assert timings.first_token.maximum_ms == pytest.approx(100)
    assert all(position in {0, 32} for _, position in reports)
    assert not session.collected_inside
    assert gc.isenabled()


def test_a_cost_that_does_not_grow_passes() -> None:
    found = check_linear_growth([[5.0] * 64] * 3, sequence_length=64)
    assert found.passed
    assert "1.000 times" in found.detail


def test_reading_the_text_again_for_each_token_is_found() -> None:
    samples = [[0.1 * (1024 + position) for position in range(256)]] * 3
    found = check_linear_growth(samples, sequence_length=1024)
    assert found.passed is False
    assert "would make it 1.18" in found.detail


def test_a_short_continuation_cannot_tell_growth() -> None:
    assert check_linear_growth([[5.0] * 8], sequence_length=64).passed is None


def test_growth_shows_in_the_record() -> None:
    record = run(FakeSession(step_ms=lambda _, position: 0.1 * (8 + position)))
    assert check(record, "grows linearly").passed is False


def test_load_of_other_processes_fails_the_check() -> None:
    before = Activity(busy_s=100.0, own_s=10.0, swapped_pages=5, swap_used_bytes=0)
    quiet = Activity(busy_s=118.5, own_s=28.0, swapped_pages=5, swap_used_bytes=0)
    loud = Activity(busy_s=122.0, own_s=28.0, swapped_pages=9, swap_used_bytes=2_000_000)
    load, swap = check_activity(before, quiet, seconds=10, cores=2)
    assert (load.passed, swap.passed) == (True, True)
    assert "2.5 % of 2 cores" in load.detail
    load, swap = check_activity(before, loud, seconds=10, cores=2)
    assert (load.passed, swap.passed) == (False, False)
    assert "20.0 % of 2 cores" in load.detail
    assert "4 pages moved to or from swap; 2 MB in use" in swap.detail


def test_a_system_that_tells_nothing_is_unsure_not_fine() -> None:
    nothing = Activity(busy_s=None, own_s=1.0, swapped_pages=None, swap_used_bytes=None)
    assert [c.passed for c in check_activity(nothing, nothing, 10, 2)] == [None, None]


def test_a_board_with_known_memory_gets_a_share(tmp_path: Path) -> None:
    session = FakeSession()
    board = read_board(super_8gb(tmp_path))
    manifest = SimpleNamespace(
        architecture=ARCHITECTURE, precision="fp16", model_name="tiny", weights_sha256="0",
        versions={}, weights_bytes=48,
    )  # fmt: skip
    engine = SimpleNamespace(session=session, manifest=manifest, bundle=tmp_path)
    record = run_benchmark(
        cast("Any", engine),
        BenchSettings(sequence_length=8, new_tokens=32, threads=1, clocks="leave"),
        world=Bystanders(
            clock=session.clock,
            observe=idle,
            open_sampler=lambda *_: NoSampler("not in this test"),
            board=board,
            root=tmp_path,
        ),
    )
    roof = record.roofline
    assert roof is not None
    assert roof.board == "orin-nano-8gb, MAXN_SUPER"
    assert roof.bound_ms_per_token is not None
    assert roof.bound_ms_per_token == pytest.approx(roof.bytes_per_token / (2 * 3199e6 * 16) * 1e3)
    assert roof.share_percent == pytest.approx(100 * roof.bound_ms_per_token / 5)
    assert record.missing["load_s"]


def test_logits_that_are_no_numbers_are_no_result() -> None:
    with pytest.raises(BenchmarkError, match="not finite"):
        run(FakeSession(logit=float("nan")))
    assert gc.isenabled()


def test_an_unknown_peer_is_answered_with_the_known_ones() -> None:
    session = FakeSession()
    with pytest.raises(UsageError) as error:
        run(session, peers=("tensorflow",))
    assert "torch" in error.value.fix
    assert session.iteration == -1, "nothing may be measured before the command line is right"


def test_a_peer_that_is_not_there_is_recorded_as_that(monkeypatch: pytest.MonkeyPatch) -> None:
    absent = Peer(lambda _: "not installed", lambda _: pytest.fail("must not run"))
    monkeypatch.setitem(PEERS, "absent", absent)
    record = run(FakeSession(), peers=("absent", "onnxruntime"))
    assert [c.missing["timings"] for c in record.comparisons] == [
        "not installed",
        "it is what this record itself measures",
    ]
    assert record.comparisons[0].timings is None


def test_a_peer_gets_the_same_work_and_its_ratio(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = FakeSession(), FakeSession(lambda _: 300.0, lambda _i, _p: 20.0)
    tasks = []

    def measure_peer(task: Task) -> Measured:
        tasks.append(task)
        settings = task.settings
        timings = measure(theirs, Task(task.bundle, task.architecture, task.prompt, settings,
                                       theirs.clock, task.progress), "peer")  # fmt: skip
        return Measured(timings, np.__version__, "fp32")

    monkeypatch.setitem(PEERS, "peer", Peer(lambda _: None, measure_peer, package="numpy"))
    record = run(ours, peers=("peer",), bundle=Path("somewhere"))
    (comparison,) = record.comparisons
    assert comparison.first_token_ratio == pytest.approx(3)
    assert comparison.ms_per_token_ratio == pytest.approx(4)
    assert comparison.version == np.__version__
    np.testing.assert_array_equal(ours.read[0], theirs.read[0])
    assert tasks[0].settings.threads == 2
    assert tasks[0].bundle == Path("somewhere")
    assert record.versions["numpy"] == np.__version__


def test_a_peer_that_fails_does_not_take_our_result_along(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(_: Task) -> Measured:
        raise BackendError("out of memory")

    monkeypatch.setitem(PEERS, "peer", Peer(lambda _: None, fail))
    record = run(FakeSession(), peers=("peer",))
    (comparison,) = record.comparisons
    assert comparison.timings is None
    assert comparison.missing["timings"] == "out of memory"
    assert record.timings.decode.median_ms == pytest.approx(5)


def test_the_record_names_what_was_used(tmp_path: Path) -> None:
    record = run(FakeSession(), seed=3)
    write_record(record, tmp_path / "deep" / "record.json")
    again = read_record(tmp_path / "deep" / "record.json")
    assert again == record
    assert (again.settings.threads, again.settings.seed) == (2, 3)
    assert again.versions["onnxruntime"] == "1"
    assert again.model.weight_bytes == 48
    assert again.load_s == 0.5
    assert again.power is None
    assert again.missing["power"]


@pytest.mark.parametrize(
    ("values", "option"),
    [({"iterations": 0}, "--iterations"), ({"sequence_length": -1}, "--sequence-length")],
)
def test_settings_out_of_range_name_the_option(values: dict[str, int], option: str) -> None:
    with pytest.raises(UsageError) as error:
        make_settings(**values)
    assert option in str(error.value)
    assert "greater than or equal to 1" in error.value.fix


def test_options_that_were_not_given_keep_their_default() -> None:
    assert make_settings(iterations=None, seed=4) == BenchSettings(seed=4)


def test_a_real_engine_beside_torch(engine: Path) -> None:
    """The whole way on the embedded default; only that it works, not how fast."""
    reports: list[BenchProgress] = []
    settings = BenchSettings(
        sequence_length=4, new_tokens=16, iterations=3, minimum_iterations=1, threads=1
    )
    record = benchmark_folder(engine, settings, ["torch"], reports.append, command="bench")
    assert record.backend == "onnxruntime"
    assert record.timings.first_token.count <= 3
    assert record.load_s is not None
    assert record.model.weight_bytes
    (torch,) = record.comparisons
    assert torch.timings is not None, torch.missing
    assert torch.ms_per_token_ratio == pytest.approx(
        torch.timings.decode.median_ms / record.timings.decode.median_ms
    )
    assert {report.subject for report in reports} == {"engine", "onnxruntime", "torch"}


@pytest.mark.parametrize(
    ("values", "option"),
    [
        ({"scenario": "server"}, "--request-rate"),
        ({"request_rate_per_s": 2.0}, "--request-rate"),
        ({"scenario": "single", "batch": 2}, "--batch"),
        ({"telemetry": "thermometer"}, "--telemetry"),
    ],
)
def test_options_that_contradict_each_other_are_refused(
    values: dict[str, Any], option: str
) -> None:
    with pytest.raises(UsageError) as error:
        make_settings(**values)
    assert option in str(error.value) + error.value.fix


def test_the_scenario_follows_from_the_batch() -> None:
    assert make_settings(batch=4).scenario == "batch"
    assert make_settings(batch=1).scenario == "single"


@dataclass
class Board:
    """A simulated board on a simulated clock: sensors and a session move the same time."""

    session: FakeSession
    temperature_c: float = 50.0
    watts_by_phase: Callable[[float], float] = lambda _: 10.0
    interval_s: float = 0.1
    source: str = "sysfs"
    rail: Rail | None = field(
        default_factory=lambda: Rail("VDD_IN", ("power_w/VDD_IN",), False, "the carrier board")
    )
    missing: Mapping[str, str] = field(default_factory=dict)

    def sleep(self, seconds: float) -> None:
        self.session.now_s += seconds

    def readings(self, stop: threading.Event) -> Iterator[Reading]:
        """All readings of the finished run, made once it is over: time here is not real."""
        stop.wait()
        now = 1000.0
        while now < self.session.now_s:
            values = {"power_w/VDD_IN": self.watts_by_phase(now)}
            values |= {"temperature_c/tj": self.temperature_c, "clock_mhz/gpu": 1020.0}
            values |= {"energy_j/gpu": 10.0 * (now - 1000.0)}
            values |= {"events/oc3": (now - 1000.0) * 5, "swap_used_bytes": 0.0}
            yield Reading(now, values)
            now += self.interval_s

    def close(self) -> float:
        return 0.0


def measured_on(board: Board, **settings: Any) -> BenchRecord:
    manifest = SimpleNamespace(
        architecture=ARCHITECTURE, precision="fp16", model_name="tiny", weights_sha256="0",
        versions={}, weights_bytes=48,
    )  # fmt: skip
    engine = SimpleNamespace(session=board.session, manifest=manifest, bundle=Path())
    return run_benchmark(
        cast("Any", engine),
        BenchSettings(**{"sequence_length": 8, "new_tokens": 32, "threads": 1, **settings}),
        load_s=1.0,
        world=Bystanders(
            clock=board.session.clock,
            observe=idle,
            open_sampler=lambda *_: board,
            board=a_board(),
            sleep=board.sleep,
        ),
    )


def test_energy_of_idling_prompts_and_tokens_is_told_apart() -> None:
    """Two readings, 3 s of idling at 4 W; 5 s of prompts of 0.1 s, 5 s of tokens of 5 ms at 12."""
    board = Board(FakeSession(), watts_by_phase=lambda now: 4.0 if now < 1003.2 else 12.0)
    record = measured_on(board)
    power = record.power
    assert power is not None
    assert (power.rail, power.excludes) == ("VDD_IN", "the carrier board")
    phases = {phase.phase: phase for phase in power.phases}
    assert set(phases) == {"idle", "prefill", "decode", "measure"}
    idling = phases["idle"]
    assert idling.energy_j is not None
    assert idling.uncertainty_j is not None
    assert abs(idling.energy_j - 4.0 * 3.0) <= idling.uncertainty_j
    assert power.idle_w is not None
    assert power.idle_w == pytest.approx(idling.energy_j / 3.0)
    decode, prefill = phases["decode"], phases["prefill"]
    # Each begins once more before the time is up: 50 prompts; 32 continuations of 0.16 s.
    assert prefill.tokens == 8 * 50
    assert decode.tokens == 32 * 32
    assert decode.energy_j == pytest.approx(12 * 32 * 32 * 0.005, rel=1e-6)
    assert power.energy_per_token_j == pytest.approx(12 * 0.005)
    assert decode.net_energy_per_token_j == pytest.approx((12 - power.idle_w) * 0.005)
    assert prefill.energy_per_token_j == pytest.approx(12 * 0.1 / 8, rel=0.01)
    assert power.energy_per_token_uncertainty_j is not None
    assert power.mean_w == pytest.approx(12.0)
    assert record.temperature is not None
    assert record.temperature.zone == "tj"
    assert record.clocks is not None
    assert record.clocks.lowest_mhz == 1020
    assert record.telemetry is not None
    raw = record.telemetry.channels["power_w/VDD_IN"]
    assert raw.values[0] == 4.0
    assert raw.values[-1] == 12.0
    assert record.telemetry.phases[0].name == "idle"
    for name in ("not throttled", "no over-current", "no swap in use", "clocks stood still",
                 "heat settled", "enough power readings"):  # fmt: skip
        assert check(record, name).passed is True, check(record, name)
    assert "60" in record.summary_text() or "0.06" in record.summary_text()


def test_idling_is_counted_too_though_nothing_was_read_before_the_session() -> None:
    record = measured_on(Board(FakeSession(), rail=Rail("GPU", ("energy_j/gpu",), True, "host")))
    assert record.power is not None
    idling = record.power.phases[0]
    assert idling.phase == "idle"
    assert idling.energy_j == pytest.approx(30.0), idling.missing


def test_the_last_phase_is_counted_whichever_it_is() -> None:
    counter = Rail("GPU", ("energy_j/gpu",), True, "host")
    record = measured_on(Board(FakeSession(), rail=counter), energy_seconds=0)
    assert record.power is not None
    last = record.power.phases[-1]
    assert last.phase == "measure"
    assert last.energy_j == pytest.approx(10.0 * last.seconds), last.missing


@dataclass
class CountingBoard(Board):
    """A GPU of 100 W at work, 40 idle, whose counter moves every 50 ms and takes 3 to read."""

    rail: Rail | None = field(
        default_factory=lambda: Rail("GPU", ("energy_j/gpu",), True, "the host")
    )

    def joules(self, now: float) -> float:
        update = math.floor((now - 1000.0) / 0.05) * 0.05
        return 40 * min(update, 3.2) + 100 * max(update - 3.2, 0)

    def edge_readings(self) -> Iterator[Reading]:
        found: list[Reading] = []
        while not found or found[-1].values == found[0].values:
            self.session.now_s += 0.003
            joules = self.joules(self.session.now_s)
            found.append(Reading(self.session.now_s, {"energy_j/gpu": joules}))
        yield found[0]
        yield found[-1]

    def readings(self, stop: threading.Event) -> Iterator[Reading]:
        stop.wait()
        for number in range(int((self.session.now_s - 1000) / self.interval_s)):
            now = 1000 + number * self.interval_s
            yield Reading(now, {"power_w/gpu": 100.0 if now > 1003.3 else 40.0})


def test_a_counter_that_is_read_at_the_edges_tells_each_phase() -> None:
    record = measured_on(CountingBoard(FakeSession()))
    assert record.power is not None
    phases = {phase.phase: phase for phase in record.power.phases}
    assert set(phases) == {"idle", "measure", "prefill", "decode"}
    for name, watts in (("idle", 40), ("prefill", 100), ("decode", 100)):
        phase = phases[name]
        assert phase.energy_j is not None
        assert phase.uncertainty_j is not None
        assert abs(phase.energy_j - watts * phase.seconds) <= phase.uncertainty_j
        assert phase.uncertainty_j <= 0.06 * phase.energy_j
        assert phase.peak_w == watts
    assert check(record, "enough power readings").passed is True
    assert "tells the energy of decoding to" in check(record, "enough power readings").detail


def test_a_record_with_power_comes_back_as_it_was_written(tmp_path: Path) -> None:
    record = measured_on(Board(FakeSession()))
    write_record(record, tmp_path / "record.json")
    assert read_record(tmp_path / "record.json") == record


def test_without_sensors_no_time_is_spent_on_them() -> None:
    session = FakeSession()
    record = run(session)
    assert record.telemetry is None
    assert record.power is None
    assert record.missing["power"] == "not in this test"
    expected_s = 0.1 + 32 * 0.005
    assert session.now_s - 1000.0 == pytest.approx((session.iteration + 1) * expected_s)
    assert check(record, "not throttled").passed is None


def test_energy_can_be_left_out() -> None:
    record = measured_on(Board(FakeSession()), energy_seconds=0, idle_seconds=0)
    assert record.power is not None
    assert record.power.energy_per_token_j is None
    assert "not measured" in record.power.missing["energy_per_token_j"]
    assert record.power.missing["idle_w"] == "idling was not measured"
