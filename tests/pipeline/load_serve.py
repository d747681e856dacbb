# SPDX-License-Identifier: MIT
"""Many clients at once for minutes: what `mamba-orin serve` does under load, as a measurement.

    python -m tests.pipeline.load_serve build/demo/engine --output docs/measurements/serve_load.json

Starts a server process with one engine, asks each of a set of requests alone, measures tokens
a second with 1 and with 8 clients, then lets the clients stream for minutes, comparing every
answer with the one that the request got alone, and at last reads a long prefix once and reuses
it. Some clients leave in the middle of their stream. Exits with 1 when an answer differs, a
request fails or memory grows.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from pipeline.board import read_board
from pipeline.manifest import now, read_engine
from pipeline.storage import write_atomically
from pipeline.tokenizer import Tokenizer

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "models" / "demo" / "heldout.txt").read_text(encoding="utf-8")

REQUESTS = 96
WARM_UP_SHARE = 0.25
# The median of memory may grow by this much from the first third after the warm-up to the last:
# an allocator's noise goes up and down, a leak goes up.
GROWTH_LIMIT = 0.05
# One client in this many goes away after a few events.
LEAVES_EVERY = 25
PREFIX_TOKENS = 4000
PREFIXES = 5
# Nothing here takes this long; it only ends a run that would hang.
PATIENCE_S = 120.0


@dataclass(frozen=True)
class Question:
    """The body of a request."""

    body: dict[str, Any]

    @classmethod
    def make(cls, number: int) -> Question:
        """A request of its own for each number: other text, length, temperature and seed."""
        begin = 211 * number % 30_000
        return cls(
            {
                "model": "demo",
                "prompt": TEXT[begin : begin + 20 + 37 * number % 900],
                "max_tokens": 16 + 29 * number % 96,
                "temperature": number % 3 / 2,
                "top_p": 0.9,
                "seed": number,
                "stop": ["\n\n"] if number % 4 == 0 else None,
                "stream": True,
                "stream_options": {"include_usage": True},
            }
        )


@dataclass
class Answer:
    """What came back."""

    text: str = ""
    tokens: int = 0
    first_s: float | None = None


@dataclass
class Tally:
    """What many clients saw."""

    answers: int = 0
    tokens: int = 0
    left: int = 0
    first_s: list[float] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


async def ask(client: httpx.AsyncClient, question: Question, leave_after: int = 0) -> Answer:
    """Streams one answer; goes away after some events when told to."""
    answer = Answer()
    begin = time.perf_counter()
    async with client.stream("POST", "/v1/completions", json=question.body) as response:
        if response.status_code != 200:
            raise RuntimeError(f"{response.status_code}: {(await response.aread()).decode()}")
        events = 0
        async for line in response.aiter_lines():
            if not line.startswith("data: {"):
                continue
            event = json.loads(line[6:])
            if "error" in event:
                raise RuntimeError(str(event["error"]))
            if answer.first_s is None:
                answer.first_s = time.perf_counter() - begin
            answer.text += "".join(choice["text"] for choice in event["choices"])
            if event["usage"]:
                answer.tokens = event["usage"]["completion_tokens"]
            events += 1
            if events == leave_after:
                break
    return answer


async def crowd(
    client: httpx.AsyncClient,
    questions: Sequence[Question],
    alone: Sequence[Answer],
    clients: int,
    seconds: float,
) -> Tally:
    """Clients that ask one question after the other until the time is over."""
    tally = Tally()
    numbers = itertools.count()
    end = time.perf_counter() + seconds

    async def one() -> None:
        while time.perf_counter() < end:
            number = next(numbers)
            leaves = 5 if number % LEAVES_EVERY == LEAVES_EVERY - 1 else 0
            which = number % len(questions)
            try:
                answer = await ask(client, questions[which], leaves)
            except (httpx.HTTPError, RuntimeError) as error:
                tally.faults.append(repr(error))
                continue
            if answer.first_s is not None:
                tally.first_s.append(answer.first_s)
            if leaves:
                tally.left += 1
                continue
            tally.answers += 1
            tally.tokens += answer.tokens
            if answer.text != alone[which].text:
                tally.faults.append(f"request {which} has another answer than alone")

    await asyncio.gather(*(one() for _ in range(clients)))
    return tally


async def watch_memory(process: int, seconds: float) -> list[float]:
    """Resident memory of a process once a second, MB."""
    samples = []
    for _ in range(int(seconds)):
        samples.append(resident_mb(process))
        await asyncio.sleep(1)
    return samples


def resident_mb(process: int) -> float:
    """Resident memory of a process."""
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


async def throughput(
    client: httpx.AsyncClient, questions: Sequence[Question], clients: int, seconds: float
) -> dict[str, Any]:
    """Tokens a second with some clients that never leave."""
    begin = time.perf_counter()
    end = begin + seconds
    numbers = itertools.count()
    tokens = 0

    async def one() -> None:
        nonlocal tokens
        while time.perf_counter() < end:
            answer = await ask(client, questions[next(numbers) % len(questions)])
            tokens += answer.tokens

    await asyncio.gather(*(one() for _ in range(clients)))
    took = time.perf_counter() - begin
    return {
        "what": "throughput",
        "clients": clients,
        "seconds": round(took, 1),
        "tokens": tokens,
        "tokens_per_s": round(tokens / took, 1),
    }


@dataclass
class Restores:
    """Times to one token and answers after a long prefix, one entry a prefix."""

    times_ms: list[float] = field(default_factory=list)
    answers: list[Any] = field(default_factory=list)


async def after_prefix(client: httpx.AsyncClient, tokenizer: Tokenizer, how: str) -> Restores:
    """Asks for one token, timed, and then for 32 with log-probabilities.

    Args:
        client: Of a server that has seen nothing yet.
        tokenizer: Of its model.
        how: "read": the whole prompt at once. "reused": after another prompt with the same
            prefix. "named": from a state that was saved after the prefix.
    """
    ids = tokenizer.encode(TEXT)
    result = Restores()
    for number in range(PREFIXES):
        prefix = ids[1000 * number : 1000 * number + PREFIX_TOKENS]
        ending = ids[9000 + 100 * number : 9008 + 100 * number]
        body = {"model": "demo", "temperature": 0, "prompt": prefix + ending}
        if how == "reused":
            other = body | {"prompt": prefix + ending[::-1], "max_tokens": 1}
            (await client.post("/v1/completions", json=other)).raise_for_status()
        elif how == "named":
            name = f"prefix-{number}"
            made = await client.post("/v1/states", json={"name": name, "prompt": prefix})
            made.raise_for_status()
            body |= {"prompt": ending, "state": name}
        begin = time.perf_counter()
        first = await client.post("/v1/completions", json=body | {"max_tokens": 1})
        result.times_ms.append((time.perf_counter() - begin) * 1e3)
        first.raise_for_status()
        whole = await client.post("/v1/completions", json=body | {"max_tokens": 32, "logprobs": 1})
        result.answers.append(whole.json()["choices"][0])
    return result


def restore_rows(read: Restores, reused: Restores, named: Restores) -> list[dict[str, Any]]:
    """Three ways to come to the end of a long prefix, and whether the answers are equal."""
    rows = []
    for how, restores in (("read", read), ("reused", reused), ("named", named)):
        texts = [answer["text"] for answer in restores.answers]
        rows.append(
            {
                "what": "first token after a prefix",
                "how": how,
                "prefix_tokens": PREFIX_TOKENS,
                "repeats": len(restores.times_ms),
                "median_ms": round(statistics.median(restores.times_ms), 2),
                "times_ms": [round(value, 2) for value in restores.times_ms],
                "equal_text": texts == [answer["text"] for answer in read.answers],
                "equal_to_the_bit": restores.answers == read.answers,
            }
        )
    return rows


def load_row(tally: Tally, memory_mb: list[float], clients: int, seconds: float) -> dict[str, Any]:
    """The long run in figures."""
    first = np.array(tally.first_s) * 1e3
    settled = memory_mb[int(len(memory_mb) * WARM_UP_SHARE) :]
    third = len(settled) // 3
    slope = float(np.polyfit(np.arange(len(settled)), settled, 1)[0]) * 60
    return {
        "what": "load",
        "clients": clients,
        "seconds": seconds,
        "answers": tally.answers,
        "clients_that_left": tally.left,
        "faults": len(tally.faults),
        "answers_that_differ_from_alone": sum("another answer" in each for each in tally.faults),
        "tokens_per_s": round(tally.tokens / seconds, 1),
        "ttft_p50_ms": round(float(np.percentile(first, 50)), 1),
        "ttft_p99_ms": round(float(np.percentile(first, 99)), 1),
        "rss_first_third_mb": round(statistics.median(settled[:third]), 1),
        "rss_last_third_mb": round(statistics.median(settled[-third:]), 1),
        "rss_highest_mb": round(max(settled), 1),
        "rss_slope_mb_per_minute": round(slope, 2),
        "rss_mb_every_10_s": [round(value, 1) for value in memory_mb[::10]],
    }


@contextmanager
def serving(engine: Path, threads: int, folder: Path, *options: str) -> Iterator[tuple[str, int]]:
    """A server process; yields its address and process id."""
    words = ["serve", str(engine.resolve()), "--port", "0", "--threads", str(threads)]
    words += ["--states", str(folder), *options]
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline", *words], stderr=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert process.stderr is not None
    first_line = json.loads(process.stderr.readline())
    # A pipe that nobody reads would stop the server at some line of its log.
    reader = threading.Thread(target=lambda log: [None for _ in log], args=(process.stderr,))
    reader.start()
    try:
        yield first_line["url"], process.pid
    finally:
        process.terminate()
        process.wait()
        reader.join()


async def measure(args: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """All measurements; the rows of the file."""
    tokenizer = Tokenizer(args.engine / read_engine(args.engine).bundle)
    rows: list[dict[str, Any]] = []
    restores = {}
    for how, cache_mb in (("read", "0"), ("reused", "256"), ("named", "0")):
        with serving(args.engine, args.threads, folder, "--prefix-cache-mb", cache_mb) as (url, _):
            async with httpx.AsyncClient(base_url=url, timeout=PATIENCE_S) as client:
                restores[how] = await after_prefix(client, tokenizer, how)
    rows += restore_rows(restores["read"], restores["reused"], restores["named"])
    questions = [Question.make(number) for number in range(REQUESTS)]
    with serving(args.engine, args.threads, folder) as (url, process):
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=url, timeout=PATIENCE_S, limits=limits) as client:
            alone = [await ask(client, question) for question in questions]
            for clients in (1, 8, 1, 8):
                rows.append(await throughput(client, questions, clients, args.throughput_seconds))
            tally, memory_mb = await asyncio.gather(
                crowd(client, questions, alone, args.clients, args.seconds),
                watch_memory(process, args.seconds),
            )
    sys.stderr.writelines(f"{fault}\n" for fault in sorted(set(tally.faults)))
    rows.append(load_row(tally, memory_mb, args.clients, args.seconds))
    return rows


def summary(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """The figures, a line each."""
    for row in rows:
        if row["what"] == "throughput":
            yield f"{row['clients']} clients: {row['tokens_per_s']} tokens/s"
        elif row["what"] == "load":
            yield (
                f"{row['clients']} clients for {row['seconds']:.0f} s: {row['answers']} answers, "
                f"{row['faults']} faults, {row['tokens_per_s']} tokens/s"
            )
            yield f"first token: p50 {row['ttft_p50_ms']} ms, p99 {row['ttft_p99_ms']} ms"
            yield (
                f"resident memory: {row['rss_first_third_mb']} MB in the first third after the "
                f"warm-up, {row['rss_last_third_mb']} MB in the last"
            )
        else:
            yield (
                f"first token after {row['prefix_tokens']} tokens, {row['how']}: "
                f"{row['median_ms']} ms"
            )


def verdict(rows: Sequence[dict[str, Any]]) -> list[str]:
    """What is not as it must be."""
    load = rows[-1]
    speed = {
        clients: statistics.mean(
            row["tokens_per_s"]
            for row in rows
            if row["what"] == "throughput" and row["clients"] == clients
        )
        for clients in (1, 8)
    }
    claims = {
        "every request is answered, and as it is alone": load["faults"] == 0,
        "memory is flat after the warm-up": load["rss_last_third_mb"]
        <= load["rss_first_third_mb"] * (1 + GROWTH_LIMIT),
        "8 clients get more tokens a second than 1": speed[8] > speed[1],
        "a reused prefix gives the same answer to the bit": rows[1]["equal_to_the_bit"],
        "a named prefix gives the same text": rows[2]["equal_text"],
    }
    return [claim for claim, holds in claims.items() if not holds]


def main() -> int:
    """Measures and writes the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("engine", type=Path, help="an engine of the demo model")
    parser.add_argument("--output", type=Path, required=True, help="the JSON file to write")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--throughput-seconds", type=float, default=20.0)
    parser.add_argument("--threads", type=int, default=1, help="of the server")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = asyncio.run(measure(args, Path(folder)))
    board = read_board()
    cores = len(os.sched_getaffinity(0))
    result = {
        "subject": "serve_load",
        "date": now(),
        "machine": f"{board.name}, {cores} cores",
        "gpu": None,
        "versions": {
            name: version(name) for name in ("mamba-orin", "onnxruntime", "fastapi", "uvicorn")
        },
        "command": shlex.join(["python", "-m", "tests.pipeline.load_serve", *sys.argv[1:]]),
        "note": "clients and server share the cores; waiting for a slot counts as time to first "
        "token; the engine has 8 slots",
        "rows": rows,
    }
    write_atomically(args.output, (json.dumps(result, indent=1) + "\n").encode())
    failed = verdict(rows)
    sys.stdout.writelines(f"{line}\n" for line in summary(rows))
    sys.stdout.writelines(f"does not hold: {claim}\n" for claim in failed)
    return len(failed)


if __name__ == "__main__":
    sys.exit(main())
