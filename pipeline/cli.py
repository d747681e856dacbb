# SPDX-License-Identifier: MIT
"""The command `mamba-orin`: what its verbs do; `command_line` has what may be typed.

Results go to stdout, progress and messages to stderr. Nothing heavy is imported before a verb
runs, so `--help` answers at once. Every error that is a user's to mend ends in one message
with its fix and in the exit code of its class (see `errors`).
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.command_line import command_line
from pipeline.errors import MissingDependencyError, PipelineError, UsageError
from pipeline.settings import Progress, no_progress

if TYPE_CHECKING:
    from pipeline.engine import LoadedEngine

# Optional packages and the extra that brings each.
_EXTRAS = {
    "cuda": "cuda",
    "torch": "convert",
    "gguf": "convert",
    "safetensors": "convert",
    "jinja2": "report",
    "markupsafe": "report",
    "matplotlib": "report",
    "duckdb": "report",
    "fastapi": "serve",
    "prometheus_client": "serve",
    "uvicorn": "serve",
}

# Packages that no index has for a board.
_INSTALLATIONS = {
    "tensorrt": "on a Jetson: apt install python3-libnvinfer, and let the environment see it "
    "(python3 -m venv --system-site-packages)",
}

_INTERRUPTED = 130
_OUTPUT_CLOSED = 141


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one verb.

    Args:
        arguments: Words of the command line; None takes this process's own.

    Returns:
        The exit code: 0, or one of `errors`.
    """
    args = command_line().parse_args(arguments)
    logging.basicConfig(
        stream=sys.stderr,
        level=logging.DEBUG if args.verbose else logging.WARNING,
        format="%(name)s: %(message)s",
    )
    try:
        with _missing_dependencies_explained():
            if args.refused is not None:
                raise args.refused
            VERBS[args.verb](args)
        sys.stdout.flush()
    except KeyboardInterrupt:
        _say("interrupted; nothing half-written was kept")
        return _INTERRUPTED
    except BrokenPipeError:
        # The reader of a pipe has gone, as with `| head`; Python must not try to flush again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _OUTPUT_CLOSED
    except PipelineError as error:
        return _explain(error, args)
    except MemoryError:
        return _explain(
            PipelineError(
                "this machine has not enough memory for the model",
                fix="use a smaller model or a lower precision, or add swap",
            ),
            args,
        )
    except Exception as error:
        if args.verbose:
            raise
        return _explain(
            PipelineError(
                f"unexpected {type(error).__name__}: {error}",
                fix="this is a fault of mamba-orin: run it again with --verbose and report what "
                "it prints",
            ),
            args,
        )
    return 0


def _explain(error: PipelineError, args: argparse.Namespace) -> int:
    _say(f"error: {error}" + (f"\n  fix: {error.fix}" if error.fix else ""))
    if args.verbose and error.__cause__:
        _say(f"  cause: {error.__cause__!r}")
    return error.exit_code


@contextmanager
def _missing_dependencies_explained() -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").split(".")[0]
        if package == "pipeline":
            raise
        extra = _EXTRAS.get(package)
        wanted = f"mamba-orin[{extra}]" if extra else "mamba-orin"
        raise MissingDependencyError(
            f"the package {package} is not installed",
            fix=_INSTALLATIONS.get(package, f"pip install '{wanted}'"),
        ) from error


# --- the verbs -----------------------------------------------------------------------------


def _run_convert(args: argparse.Namespace) -> None:
    from pipeline.bundle import convert
    from pipeline.quantize import QuantisationChoice

    if args.method is not None and (args.method == "gptq") != (args.calibration_text is not None):
        raise UsageError(
            f"--method {args.method} "
            + ("needs a text" if args.method == "gptq" else "reads no --calibration-text"),
            fix="give both --method gptq and --calibration-text FILE, or neither",
        )
    choice = QuantisationChoice(
        args.embedding_precision,
        args.head_precision,
        args.group_size,
        args.calibration_text,
        args.calibration_tokens,
    )
    with _progress("converting", unit="bytes") as progress:
        manifest = convert(
            args.checkpoint, args.output, args.precision, args.tokenizer, progress, choice
        )
    weights = manifest.files["weights.safetensors"]
    _say(
        f"{args.output}: {manifest.architecture.parameters:,} parameters in {manifest.precision}, "
        f"{weights.bytes / 1e6:.1f} MB, from {manifest.source['format']} checkpoint "
        f"{manifest.source['name']}"
    )


def _run_build(args: argparse.Namespace) -> None:
    from pipeline.engine import build
    from pipeline.s6_library import PLUGIN_LIBRARY_VARIABLE

    if args.plugin is not None:
        os.environ[PLUGIN_LIBRARY_VARIABLE] = str(args.plugin)
    begin = time.monotonic()
    with _progress("building", unit="bytes") as progress:
        manifest = build(
            args.bundle,
            args.output,
            args.backend,
            args.max_batch,
            args.max_length,
            progress,
            fall_back=args.fall_back,
            activations=args.activations,
        )
    _say(
        f"{args.output}: engine for {manifest.backend} ({manifest.backend_reason}) on "
        f"{manifest.machine['name']}, built and self-tested in {time.monotonic() - begin:.1f} s"
    )


def _run_generate(args: argparse.Namespace) -> None:
    from pipeline.generation import Sampling, generate

    sampling = Sampling(args.temperature, args.top_k, args.top_p, args.seed)
    engine = _load(args)
    prompt_ids = _prompt_ids(args, engine)
    end_ids = engine.tokenizer.end_ids if engine.tokenizer else frozenset()
    stream = engine.tokenizer.stream() if engine.tokenizer else None
    tokens: list[int] = []
    times = [time.perf_counter()]
    if args.echo and args.prompt and not args.json:
        sys.stdout.write(args.prompt)
    for token_id in generate(engine.session, prompt_ids, args.max_new_tokens, sampling, end_ids):
        times.append(time.perf_counter())
        tokens.append(token_id)
        if not args.json:
            sys.stdout.write(stream.push(token_id) if stream else f"{token_id} ")
            sys.stdout.flush()
    timing = _timing(times)
    if args.json:
        _print_json(
            {
                "prompt_tokens": len(prompt_ids),
                "tokens": tokens,
                "text": engine.tokenizer.decode(tokens) if engine.tokenizer else None,
                "finish_reason": "length" if len(tokens) == args.max_new_tokens else "stop",
                **timing,
            }
        )
        return
    sys.stdout.write("\n")
    if timing["ms_per_token"] is not None:
        _say(
            f"{len(prompt_ids)} prompt tokens, first token after {timing['ttft_ms']:.1f} ms; "
            f"{len(tokens)} tokens, {timing['ms_per_token']:.2f} ms each "
            f"({1000 / timing['ms_per_token']:.0f} tokens/s)"
        )


def _timing(times: list[float]) -> dict[str, float | None]:
    """Time to the first token and mean time of the others, from the start and each arrival."""
    if len(times) < 2:
        return {"ttft_ms": None, "ms_per_token": None}
    following = len(times) - 2
    return {
        "ttft_ms": (times[1] - times[0]) * 1e3,
        "ms_per_token": (times[-1] - times[1]) * 1e3 / following if following else None,
    }


def _run_score(args: argparse.Namespace) -> None:
    from pipeline.scoring import score

    engine = _load(args)
    if args.token_ids is not None:
        token_ids = _parse_ids(args.token_ids)
    else:
        token_ids = _tokenizer(engine, "--text-file", "--token-ids").encode(
            _read_text(args.text_file)
        )
    with _progress("scoring", unit="tokens") as progress:
        result = score(engine.session, token_ids, progress)
    if args.json:
        _print_json(result.model_dump())
        return
    print(f"tokens      {len(result.tokens)}")
    if result.perplexity is not None:
        print(f"perplexity  {result.perplexity:.4f}")
        print(f"nats/token  {_mean(result.logprobs[1:]):.4f}")


def _run_evaluate(args: argparse.Namespace) -> None:
    from pipeline.evaluation import evaluate, write_evaluation
    from pipeline.evaluation_view import CHART_FORMATS, render_table, write_chart

    if args.chart is not None and args.chart.suffix[1:] not in CHART_FORMATS:
        raise UsageError(
            f"--chart {args.chart} names no format that charts are drawn in",
            fix=f"let its name end in one of: {', '.join('.' + name for name in CHART_FORMATS)}",
        )
    with _progress("evaluating", unit="tokens") as progress:
        evaluation = evaluate(
            args.folders,
            args.text,
            args.reference,
            args.max_tokens,
            args.threads,
            progress,
            command=_typed_command(),
        )
    if args.output is not None:
        write_evaluation(evaluation, args.output)
    if args.chart is not None:
        write_chart(evaluation, args.chart)
    if args.json:
        sys.stdout.write(evaluation.to_json())
    else:
        sys.stdout.write(render_table(evaluation))


def _mean(logprobs: Sequence[float | None]) -> float:
    return -sum(value or 0.0 for value in logprobs) / len(logprobs)


def _run_bench(args: argparse.Namespace) -> None:
    from pipeline.bench import benchmark_folder, make_settings, write_record
    from pipeline.measuring import BenchProgress

    settings = make_settings(
        sequence_length=args.sequence_length,
        new_tokens=args.new_tokens,
        iterations=args.iterations,
        minimum_iterations=args.minimum_iterations,
        maximum_seconds=args.maximum_seconds,
        noise_percent=args.noise_percent,
        warmup_iterations=args.warmup_iterations,
        batch=args.batch,
        threads=args.threads,
        seed=args.seed,
        scenario=args.scenario,
        request_rate_per_s=args.request_rate,
        idle_seconds=args.idle_seconds,
        energy_seconds=args.energy_seconds,
        telemetry=args.telemetry,
        telemetry_interval_s=args.telemetry_interval,
        power_mode=args.power_mode,
        clocks=args.clocks,
        cool_down_c=args.cool_down,
        cool_down_seconds=args.cool_down_seconds,
    )
    peers = [name for name in (args.compare or "").split(",") if name]
    with _spinner("measuring") as say:

        def show(progress: BenchProgress) -> None:
            say(f"{progress.subject}: {progress.phase} {progress.iteration or ''}")

        record = benchmark_folder(
            args.engine,
            settings,
            peers,
            show,
            command=_typed_command(),
            llama_model=args.llama_model,
        )
    write_record(record, args.output)
    if args.metrics is not None:
        from pipeline.bench_metrics import write_metrics

        write_metrics(record, args.metrics)
    if args.json:
        sys.stdout.write(record.to_json().decode())
        return
    print(record.summary_text())
    _say(f"{args.output}: the record; see it with: mamba-orin report {args.output}")


def _run_report(args: argparse.Namespace) -> None:
    from pipeline.report import write_report

    page = write_report(args.sources, args.output, against=args.against, tables=args.table)
    for path in (page, *args.table):
        _say(f"wrote {path}")


def _run_board(args: argparse.Namespace) -> None:
    from pipeline.board import describe, read_board

    board = read_board()
    if args.json:
        _print_json(board.model_dump(mode="json"))
    else:
        print(describe(board), end="")


def _run_predict(args: argparse.Namespace) -> None:
    from pipeline.expectation import expected_decoding, render_expected
    from pipeline.roofline import find_model, predict, render

    if args.bundle is None:
        architecture, name = find_model(args.model), args.model
        precision = args.precision or "fp16"
    else:
        from pipeline.manifest import read_bundle

        manifest = read_bundle(args.bundle)
        architecture, name = manifest.architecture, args.bundle.name
        precision = args.precision or manifest.precision
    prediction = predict(
        architecture,
        precision,
        args.board,
        args.power_mode,
        model=name,
        sequence_length=args.sequence_length,
    )
    expected = expected_decoding(architecture, precision, args.board)
    if args.json:
        ranges = [of_mode.model_dump(mode="json") for of_mode in expected]
        _print_json({**prediction.model_dump(mode="json"), "expected_decoding": ranges})
    else:
        print(render(prediction), render_expected(expected), sep="\n", end="")


def _run_serve(args: argparse.Namespace) -> None:
    from pipeline.http_server import run_server
    from pipeline.server_settings import ServerSettings, read_api_keys

    settings = ServerSettings(
        host=args.host,
        port=args.port,
        keys=read_api_keys(args.api_key_file),
        model_name=args.model_name,
        states_folder=args.states,
        max_states=args.max_states,
        prefix_cache_bytes=int(args.prefix_cache_mb * 1e6),
        max_queue=args.max_queue,
        max_queue_s=args.max_queue_seconds,
        max_request_s=args.max_request_seconds,
        max_prompt_tokens=args.max_prompt_tokens,
        max_new_tokens=args.max_new_tokens,
        max_body_bytes=int(args.max_body_mb * 1e6),
        grace_s=args.grace_seconds,
        logs_prompts=args.log_prompts,
    )
    run_server(args.engine, args.threads, settings)


#: What each verb of the command line does.
VERBS: dict[str, Callable[[argparse.Namespace], None]] = {
    "convert": _run_convert,
    "build": _run_build,
    "generate": _run_generate,
    "score": _run_score,
    "evaluate": _run_evaluate,
    "bench": _run_bench,
    "report": _run_report,
    "serve": _run_serve,
    "board": _run_board,
    "predict": _run_predict,
}


# --- what several verbs share --------------------------------------------------------------


def _load(args: argparse.Namespace) -> LoadedEngine:
    from pipeline.engine import load_engine

    with _progress("loading", unit="bytes") as progress:
        return load_engine(args.engine, args.threads, progress)


def _prompt_ids(args: argparse.Namespace, engine: LoadedEngine) -> list[int]:
    if args.token_ids is not None:
        return _parse_ids(args.token_ids)
    token_ids: list[int] = _tokenizer(engine, "--prompt", "--token-ids").encode(args.prompt)
    return token_ids


def _tokenizer(engine: LoadedEngine, option: str, instead: str) -> Any:
    if engine.tokenizer is None:
        raise UsageError(
            f"{engine.folder} has no tokenizer, so {option} cannot be read",
            fix=f"give {instead}, or convert again with --tokenizer FOLDER",
        )
    return engine.tokenizer


def _parse_ids(text: str) -> list[int]:
    words = text.replace(",", " ").split()
    try:
        return [int(word) for word in words]
    except ValueError as error:
        raise UsageError(
            f"--token-ids {text!r} is not a list of whole numbers", fix="write it like 1,2,3"
        ) from error


def _read_text(path: Path) -> str:
    try:
        return sys.stdin.read() if str(path) == "-" else path.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(
            f"cannot read {path}: {error.strerror}", fix="give a text file that exists, or -"
        ) from error
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{path} is not UTF-8 text: {error.reason} at byte {error.start}",
            fix="convert the file to UTF-8 first",
        ) from error


@contextmanager
def _progress(title: str, unit: str) -> Iterator[Progress]:
    """A progress bar on stderr while the block runs; silent unless stderr is a terminal.

    Args:
        title: What is being done.
        unit: "bytes", or what else is counted.

    Yields:
        A function to call with what is done and what there is to do.
    """
    if not sys.stderr.isatty():
        yield no_progress
        return
    from rich import progress as bars
    from rich.console import Console

    count = bars.DownloadColumn() if unit == "bytes" else bars.MofNCompleteColumn()
    with bars.Progress(
        bars.TextColumn("{task.description}"),
        bars.BarColumn(),
        count,
        bars.TextColumn(unit if unit != "bytes" else ""),
        bars.TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    ) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@contextmanager
def _spinner(title: str) -> Iterator[Callable[[str], None]]:
    """A turning sign on stderr for work whose end is not known; silent without a terminal.

    Yields:
        A function to call with what is being done now.
    """
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console

    with Console(stderr=True).status(title) as status:
        yield status.update


def _print_json(value: object) -> None:
    import json

    print(json.dumps(value, indent=2, ensure_ascii=False))


def _typed_command() -> str:
    import shlex

    return shlex.join(["mamba-orin", *sys.argv[1:]])


def _say(message: str) -> None:
    print(f"mamba-orin: {message}", file=sys.stderr)
