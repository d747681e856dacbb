# SPDX-License-Identifier: MIT
"""The scenario "server": requests arrive by chance at a mean rate and share the model.

They go to the scheduler of `serve`, without HTTP around it. A request's first token is counted
from its arrival, waiting included, so a rate that the machine cannot keep up with shows. Arrivals
do not wait for answers, as those of real users do not.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

import numpy as np

from pipeline.batch_rows import find_row_multiple
from pipeline.errors import BenchmarkError
from pipeline.generation import Sampling
from pipeline.generation_request import Ended, Event, Failed, Progressed, Request
from pipeline.measuring import BenchProgress, Stopped, Task, stop_reason
from pipeline.metrics import Metrics
from pipeline.power_records import ServedLoad
from pipeline.prefix_cache import PrefixCache
from pipeline.records import Timings
from pipeline.scheduler import Limits, Scheduler
from pipeline.text_assembly import TextAssembler
from pipeline.tokenizer import TextStream

if TYPE_CHECKING:
    from pipeline.engine import LoadedEngine

_LOOK_S = 0.05


class _Marks:
    """A stream in which every token gives text at once, so that each can be timed."""

    def push(self, token_id: int) -> str:
        """Any text will do."""
        del token_id
        return "."

    def finish(self) -> str:
        """Nothing is held back."""
        return ""


@dataclass(eq=False)
class _Answer:
    """One request and the moments of its tokens."""

    arrived_s: float
    clock: Callable[[], float]
    moments_s: list[float] = field(default_factory=list)
    is_done: bool = False
    error: Exception | None = None

    def note(self, event: Event) -> None:
        """Called by the scheduler's thread."""
        if isinstance(event, Progressed):
            self.moments_s.append(self.clock())
        elif isinstance(event, (Ended, Failed)):
            self.error = event.error if isinstance(event, Failed) else None
            self.is_done = True

    def milliseconds(self) -> tuple[float, list[float]]:
        """First token from the arrival, and each further one."""
        first = 1e3 * (self.moments_s[0] - self.arrived_s)
        return first, [float(ms) for ms in 1e3 * np.diff(self.moments_s)]


def measure_server(
    engine: LoadedEngine,
    task: Task,
    phase: Callable[[str], contextlib.AbstractContextManager[None]],
) -> tuple[Timings, ServedLoad]:
    """Lets requests arrive until the medians stand still, and waits for all answers.

    Args:
        engine: What answers.
        task: The work; a request is a prompt of `sequence_length` and `new_tokens` after the
            first.
        phase: Marks what the block does.

    Raises:
        BenchmarkError: Not one request was answered.
    """
    multiple = find_row_multiple(engine.session, engine.manifest.max_batch)
    limits = Limits(
        slots=engine.manifest.max_batch // multiple * multiple,
        row_multiple=multiple,
        queue=1_000_000,
        queue_s=1e9,
        request_s=1e9,
    )
    # Every prompt is another one, and none is kept.
    cache = PrefixCache(engine.manifest.max_length, 0)
    scheduler = Scheduler(engine.session, cache, limits, Metrics())
    scheduler.start()
    try:
        with phase("warm-up"):
            for _ in range(task.settings.warmup_iterations):
                _wait_for([_submit(scheduler, task, np.random.default_rng(0))])
        with phase("measure"):
            answers, most_at_once, stopped = _let_arrive(scheduler, task)
    finally:
        scheduler.stop()
    done = [answer for answer in answers if answer.error is None]
    if not done:
        raise BenchmarkError(f"not one of {len(answers)} requests was answered: {answers[0].error}")
    samples = [answer.milliseconds() for answer in done]
    first_s = answers[0].arrived_s
    seconds = max(answer.moments_s[-1] for answer in done) - first_s
    arriving_s = answers[-1].arrived_s - first_s
    timings = Timings.from_samples(
        [first for first, _ in samples],
        [each for _, each in samples],
        sequence_length=task.settings.sequence_length,
        batch=1,
        stopped=stopped,
    )
    rate = task.settings.request_rate_per_s
    assert rate is not None
    return timings, ServedLoad(
        requested_rate_per_s=rate,
        offered_rate_per_s=(len(answers) - 1) / arriving_s if arriving_s > 0 else rate,
        requests=len(done),
        failed=len(answers) - len(done),
        most_at_once=most_at_once,
        seconds=seconds,
        tokens_per_second=sum(len(answer.moments_s) for answer in done) / seconds,
    )


def _let_arrive(scheduler: Scheduler, task: Task) -> tuple[list[_Answer], int, Stopped]:
    settings, clock = task.settings, task.clock
    generator = np.random.default_rng(settings.seed)
    answers: list[_Answer] = []
    medians: dict[int, tuple[float, float]] = {}
    most_at_once = 0
    start = due = clock()
    stopped: Stopped | None = None
    while stopped is None:
        answers.append(_submit(scheduler, task, generator))
        due += float(generator.exponential(1 / (settings.request_rate_per_s or 1)))
        while stopped is None and clock() < due:
            time.sleep(min(_LOOK_S, max(0.0, due - clock())))
            done = [answer for answer in answers if answer.is_done]
            most_at_once = max(most_at_once, len(answers) - len(done))
            good = [answer.milliseconds() for answer in done if answer.error is None]
            if good and len(good) not in medians:
                first = float(np.median([first for first, _ in good]))
                medians[len(good)] = first, float(np.median([each for _, each in good]))
                task.progress(BenchProgress("server", "measure", len(good), clock() - start))
            stopped = stop_reason(list(medians.values()), settings, clock() - start)
        if len(answers) >= settings.iterations and stopped is None:
            stopped = "iterations"
    _wait_for(answers)
    return answers, most_at_once, stopped


def _submit(scheduler: Scheduler, task: Task, generator: np.random.Generator) -> _Answer:
    settings = task.settings
    prompt = generator.integers(0, task.architecture.vocab_size, settings.sequence_length)
    answer = _Answer(task.clock(), task.clock)
    scheduler.submit(
        [
            Request(
                prompt_ids=[int(token_id) for token_id in prompt],
                samplings=[Sampling()],
                assembler=lambda: TextAssembler(cast("TextStream", _Marks())),
                on_event=answer.note,
                max_new_tokens=settings.new_tokens + 1,
            )
        ]
    )
    return answer


def _wait_for(answers: list[_Answer]) -> None:
    pause = threading.Event()
    while not all(answer.is_done for answer in answers):
        pause.wait(_LOOK_S)
