# SPDX-License-Identifier: MIT
"""What one may type after `mamba-orin`: verbs, their options, and the help that teaches them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from pipeline import __version__
from pipeline.settings import take_defaults_from_environment


def command_line() -> argparse.ArgumentParser:
    """The command line, with every verb and its help.

    Parsed arguments have the verb's name as `verb`, and as `refused` the error of a variable of the
    environment that stands for one of them, or None.
    """
    parser = argparse.ArgumentParser(
        prog="mamba-orin",
        description="Mamba language models on Jetson Orin Nano, and on any machine with Python.",
        epilog="A first run:  mamba-orin convert models/demo --output demo-bundle && "
        "mamba-orin build demo-bundle --output demo-engine && "
        "mamba-orin generate demo-engine --prompt 'It was a truth'",
    )
    parser.add_argument("--version", action="version", version=f"mamba-orin {__version__}")
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    for add in (
        _add_convert,
        _add_build,
        _add_generate,
        _add_score,
        _add_evaluate,
        _add_bench,
        _add_report,
        _add_serve,
        _add_board,
        _add_predict,
    ):
        add(verbs)
    return parser


def _verb(verbs: Any, name: str, summary: str, example: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = verbs.add_parser(
        name,
        help=summary,
        description=summary[0].upper() + summary[1:] + ".",
        epilog=f"Example:  {example}",
    )
    parser.add_argument("--verbose", action="store_true", help="print what is done, for reports")
    parser.set_defaults(verb=name, refused=None)
    return parser


def _add_convert(verbs: Any) -> None:
    parser = _verb(
        verbs,
        "convert",
        "turn a checkpoint into a bundle: two ONNX graphs, one weight file, the tokenizer",
        "mamba-orin convert ~/mamba-130m-hf --output mamba-130m --precision fp16",
    )
    parser.add_argument(
        "checkpoint",
        metavar="CHECKPOINT",
        help="folder of a Mamba-1 or Falcon-Mamba checkpoint (state-spaces or -hf, .safetensors, "
        ".bin or .pth, sharded too), or its weight file; a .gguf file, whose weights are unpacked "
        "exactly (--group-size 32 keeps Q4_0 in int4 and Q8_0 in int8 as they are); "
        "random:mamba-130m makes random weights in a published shape, for benchmarks",
    )
    parser.add_argument("--output", type=Path, required=True, metavar="BUNDLE", help="new folder")
    parser.add_argument(
        "--precision",
        choices=("fp32", "fp16", "int8", "int4"),
        default="fp32",
        help="type of the matrices; norms, convolutions, A and D stay fp32 (default: fp32)",
    )
    parser.add_argument(
        "--embedding-precision",
        choices=("fp16", "int8", "int4"),
        default="int8",
        help="of the embedding, and of the head where they are one, in an int8 or int4 bundle "
        "(default: int8; 4 bits there harm small models)",
    )
    parser.add_argument(
        "--head-precision",
        choices=("fp16", "int8", "int4"),
        default="int8",
        help="of a head of its own, likewise (default: int8)",
    )
    parser.add_argument(
        "--group-size",
        type=int,
        choices=(16, 32, 64, 128, 256),
        metavar="N",
        help="inputs that share a scale in int8 and int4, at most (default: 128 and 64)",
    )
    parser.add_argument(
        "--method",
        choices=("rtn", "gptq"),
        help="how int8 and int4 are chosen: each weight rounded to the nearest, or calibrated by "
        "a text, GPTQ-style, which is better, above all at 4 bits (default: gptq where a "
        "--calibration-text is given, else rtn)",
    )
    parser.add_argument(
        "--calibration-text",
        type=Path,
        metavar="FILE",
        help="UTF-8 text of the kind the model shall read, to choose int8 and int4 weights by",
    )
    parser.add_argument(
        "--calibration-tokens",
        type=int,
        default=16384,
        metavar="N",
        help="tokens of it to read at most (default: 16384)",
    )
    parser.add_argument(
        "--tokenizer",
        type=Path,
        metavar="FILE",
        help="tokenizer.json or its folder, when it does not lie beside the checkpoint "
        "(state-spaces models use the one of gpt-neox-20b)",
    )


def _add_build(verbs: Any) -> None:
    parser = _verb(
        verbs,
        "build",
        "prepare a bundle for one backend on this machine and test it",
        "mamba-orin build mamba-130m --output mamba-130m-engine",
    )
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="folder made by convert")
    parser.add_argument("--output", type=Path, required=True, metavar="ENGINE", help="new folder")
    parser.add_argument(
        "--backend",
        choices=("auto", "cuda", "tensorrt", "onnxruntime"),
        default="auto",
        help="what shall run it: cuda, the GPU through libs6.so and cuBLAS; tensorrt, the GPU "
        "through an engine with our plugin; onnxruntime, the CPU; auto takes the fastest this "
        "machine has and says why (default: auto)",
    )
    parser.add_argument(
        "--fall-back",
        action="store_true",
        help="where the backend asked for does not run here, take what auto would, and say why",
    )
    parser.add_argument(
        "--activations",
        choices=("float", "int8"),
        help="what packed matrices are multiplied with: float, activations as they come; int8, "
        "rounded to 8 bits, on cuda in a prefill's large products with int8 weights (default: "
        "int8 on onnxruntime, else float; docs/quantisation.md has what it costs and gains)",
    )
    parser.add_argument(
        "--plugin",
        type=Path,
        metavar="FILE",
        help="libs6_plugin.so for tensorrt (default: MAMBA_ORIN_S6_PLUGIN, or the newest under "
        "plugin/build)",
    )
    parser.add_argument(
        "--max-batch", type=int, default=8, metavar="N", help="texts at once (default: 8)"
    )
    parser.add_argument(
        "--max-length",
        type=int,
        metavar="N",
        help="tokens of one prefill call; longer prompts are read in pieces, so this bounds "
        "memory and not the prompt (default: 128 on onnxruntime, 2048 on a GPU)",
    )


def _add_engine(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("engine", type=Path, metavar="ENGINE", help="folder made by build")
    parser.add_argument(
        "--threads",
        type=int,
        metavar="N",
        help="CPU threads (default: MAMBA_ORIN_THREADS, or all cores)",
    )


def _add_generate(verbs: Any) -> None:
    parser = _verb(
        verbs,
        "generate",
        "continue a text, streaming it to the terminal",
        "mamba-orin generate demo-engine --prompt 'It was a truth' --temperature 0.8 --seed 1",
    )
    _add_engine(parser)
    prompt = parser.add_mutually_exclusive_group(required=True)
    prompt.add_argument("--prompt", metavar="TEXT", help="the text to continue")
    prompt.add_argument("--token-ids", metavar="1,2,3", help="the prompt as token ids")
    parser.add_argument(
        "--max-new-tokens", type=int, default=128, metavar="N", help="most tokens (default: 128)"
    )
    parser.add_argument(
        "--temperature",
        type=float,
        default=0.0,
        metavar="T",
        help="0 takes the most likely token each time, 1 follows the model (default: 0)",
    )
    parser.add_argument(
        "--top-k", type=int, default=0, metavar="K", help="only the K most likely; 0: all"
    )
    parser.add_argument(
        "--top-p",
        type=float,
        default=1.0,
        metavar="P",
        help="only the most likely tokens that together reach P (default: 1, all)",
    )
    parser.add_argument("--seed", type=int, metavar="S", help="makes a sampled text repeatable")
    parser.add_argument("--echo", action="store_true", help="print the prompt before its text")
    parser.add_argument("--json", action="store_true", help="print one JSON object at the end")


def _add_bench(verbs: Any) -> None:
    parser = _verb(
        verbs,
        "bench",
        "measure time to the first token and per token, beside peers, into a record",
        "mamba-orin bench demo-engine --compare torch --output record.json",
    )
    _add_engine(parser)
    parser.add_argument("--output", type=Path, required=True, metavar="RECORD", help="JSON file")
    parser.add_argument(
        "--sequence-length", type=int, metavar="N", help="tokens of the prompt (default: 1024)"
    )
    parser.add_argument(
        "--new-tokens", type=int, metavar="N", help="tokens of each continuation (default: 256)"
    )
    parser.add_argument(
        "--iterations",
        type=int,
        metavar="N",
        help="most iterations of prompt and continuation; measuring ends earlier once the "
        "medians stand still (default: 100)",
    )
    parser.add_argument(
        "--minimum-iterations",
        type=int,
        metavar="N",
        help="not fewer than this, unless time runs out (default: 5)",
    )
    parser.add_argument(
        "--noise-percent",
        type=float,
        metavar="P",
        help="the medians stand still when they move by less than this (default: 1)",
    )
    parser.add_argument(
        "--warmup-iterations",
        type=int,
        metavar="N",
        help="iterations before the first that counts (default: 1)",
    )
    parser.add_argument(
        "--maximum-seconds",
        type=float,
        metavar="S",
        help="begin no iteration later than this, each peer likewise (default: 60)",
    )
    parser.add_argument("--batch", type=int, metavar="N", help="texts at once (default: 1)")
    parser.add_argument("--seed", type=int, metavar="S", help="of the random prompt (default: 0)")
    parser.add_argument(
        "--compare",
        metavar="PEER,…",
        help="measure these on the same weights, prompt and threads in the same record: torch, "
        "onnxruntime, mamba-ssm, tensorrt-plain (TensorRT without the plugin), llama.cpp; one that "
        "is not installed is recorded as that",
    )
    parser.add_argument(
        "--llama-model",
        type=Path,
        metavar="GGUF",
        help="the same model for llama.cpp's llama-bench",
    )
    _add_bench_conditions(parser)
    parser.add_argument(
        "--metrics",
        type=Path,
        metavar="FOLDER",
        help="write the main figures for the board's Prometheus exporter as well "
        "(on a provisioned board: /var/lib/mamba-orin/metrics)",
    )
    parser.add_argument("--json", action="store_true", help="print the record to stdout as well")


def _add_bench_conditions(parser: argparse.ArgumentParser) -> None:
    """Options for the load, and for what is watched and held meanwhile."""
    parser.add_argument(
        "--scenario",
        choices=("single", "batch", "server"),
        help="one text, a fixed batch, or requests that arrive by chance (default: by --batch)",
    )
    parser.add_argument(
        "--request-rate",
        type=float,
        metavar="R",
        help="mean requests a second of the scenario server",
    )
    parser.add_argument(
        "--telemetry",
        metavar="SOURCE",
        help="where power and heat are read: sysfs, jtop, tegrastats, nvml, rapl or none "
        "(default: auto, the first that works here)",
    )
    parser.add_argument(
        "--telemetry-interval",
        type=float,
        metavar="S",
        help="seconds between readings (default: what suits the source)",
    )
    parser.add_argument(
        "--idle-seconds",
        type=float,
        metavar="S",
        help="watch the machine rest for this long first, for the idle power (default: 3)",
    )
    parser.add_argument(
        "--energy-seconds",
        type=float,
        metavar="S",
        help="read prompts, then decode, without a pause for this long each, for the energy "
        "(default: 5; longer is more exact)",
    )
    parser.add_argument(
        "--power-mode",
        metavar="NAME",
        help="measure in this mode of a Jetson and put the old one back (root; default: as it is)",
    )
    parser.add_argument(
        "--clocks",
        choices=("auto", "lock", "leave"),
        help="lock a Jetson's clocks meanwhile: when root, insist, or never (default: auto)",
    )
    parser.add_argument(
        "--cool-down",
        type=float,
        metavar="CELSIUS",
        help="do not begin before no zone is warmer than this",
    )
    parser.add_argument(
        "--cool-down-seconds",
        type=float,
        metavar="S",
        help="but wait for it no longer than this (default: 300)",
    )


def _add_report(verbs: Any) -> None:
    parser = _verb(
        verbs,
        "report",
        "one HTML page, readable offline, from one record or a folder of records",
        "mamba-orin report record.json --output report.html",
    )
    parser.add_argument(
        "sources",
        type=Path,
        nargs="+",
        metavar="RECORD_OR_FOLDER",
        help="records, or folders to search for them",
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("report.html"),
        metavar="FILE",
        help="the page (default: report.html)",
    )
    parser.add_argument(
        "--against",
        type=Path,
        action="append",
        default=[],
        metavar="RECORD_OR_FOLDER",
        help="records of an earlier report: tells what has become slower or thirstier since; "
        "may be given again",
    )
    parser.add_argument(
        "--table",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="write one row for each record as well, .csv or .parquet; may be given again",
    )


def _add_serve(verbs: Any) -> None:
    parser = _verb(
        verbs,
        "serve",
        "answer over HTTP as OpenAI's API does, streaming, many at once, with named states",
        "mamba-orin serve demo-engine --port 8000",
    )
    _add_engine(parser)
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        metavar="ADDRESS",
        help="address to listen on; one that the network reaches needs an API key "
        "(default: 127.0.0.1)",
    )
    parser.add_argument(
        "--port",
        type=int,
        default=8000,
        metavar="N",
        help="TCP port; 0 takes a free one (default: 8000)",
    )
    parser.add_argument(
        "--api-key-file",
        type=Path,
        metavar="FILE",
        help="keys that clients may present, one a line; or set MAMBA_ORIN_API_KEY to a single one",
    )
    parser.add_argument(
        "--model-name",
        metavar="NAME",
        help="name of the model in requests (default: the checkpoint's)",
    )
    parser.add_argument(
        "--states",
        type=Path,
        metavar="FOLDER",
        help="where named states are kept (default: ENGINE-states)",
    )
    parser.add_argument(
        "--max-states",
        type=int,
        default=1000,
        metavar="N",
        help="the most named states (default: 1000)",
    )
    parser.add_argument(
        "--prefix-cache-mb",
        type=float,
        default=256.0,
        metavar="MB",
        help="memory for states of prompt beginnings, 0 for none (default: 256)",
    )
    parser.add_argument(
        "--max-queue",
        type=int,
        default=64,
        metavar="N",
        help="requests that wait at most; more get 429 (default: 64)",
    )
    parser.add_argument(
        "--max-queue-seconds",
        type=float,
        default=60.0,
        metavar="S",
        help="how long a request waits for a slot at most (default: 60)",
    )
    parser.add_argument(
        "--max-request-seconds",
        type=float,
        default=600.0,
        metavar="S",
        help="how long a request takes at most, waiting included (default: 600)",
    )
    parser.add_argument(
        "--max-prompt-tokens",
        type=int,
        default=32768,
        metavar="N",
        help="the longest prompt (default: 32768)",
    )
    parser.add_argument(
        "--max-new-tokens",
        type=int,
        default=2048,
        metavar="N",
        help="the longest answer (default: 2048)",
    )
    parser.add_argument(
        "--max-body-mb",
        type=float,
        default=4.0,
        metavar="MB",
        help="the largest request body (default: 4)",
    )
    parser.add_argument(
        "--grace-seconds",
        type=float,
        default=30.0,
        metavar="S",
        help="how long answers may go on after SIGTERM (default: 30)",
    )
    parser.add_argument("--log-prompts", action="store_true", help="write prompts into the log")
    parser.epilog = (parser.epilog or "") + (
        "  Every argument may be set by a variable as well: ENGINE by MAMBA_ORIN_SERVE_ENGINE, "
        "--max-queue by MAMBA_ORIN_SERVE_MAX_QUEUE, a switch by 1; the command line wins."
    )
    take_defaults_from_environment(parser, "MAMBA_ORIN_SERVE_")


def _add_board(verbs: Any) -> None:
    parser = _verb(
        verbs,
        "board",
        "what this machine is: module, Jetson Linux, power mode, clocks, versions",
        "mamba-orin board --json",
    )
    parser.add_argument("--json", action="store_true", help="print JSON; unknown facts are null")


def _add_predict(verbs: Any) -> None:
    parser = _verb(
        verbs,
        "predict",
        "what a model may reach on a board: the roofline, and a range for a token from the "
        "kernel's times on its stand-in; predicted, not measured on a board",
        "mamba-orin predict --model mamba-370m --precision int8 --board orin-nano-8gb",
    )
    subject = parser.add_mutually_exclusive_group(required=True)
    subject.add_argument(
        "bundle", type=Path, nargs="?", metavar="BUNDLE", help="folder made by convert"
    )
    subject.add_argument("--model", metavar="NAME", help="a published model, like mamba-370m")
    parser.add_argument(
        "--precision",
        metavar="P",
        help="fp32, fp16, int8 or int4 (default: the bundle's, or fp16)",
    )
    parser.add_argument(
        "--board",
        default="orin-nano-8gb",
        metavar="NAME",
        help="orin-nano-8gb or orin-nano-4gb (default: orin-nano-8gb)",
    )
    parser.add_argument(
        "--power-mode", metavar="NAME", help="like 15W or MAXN_SUPER (default: the fastest)"
    )
    parser.add_argument(
        "--sequence-length",
        type=int,
        default=1024,
        metavar="N",
        help="tokens of the prompt (default: 1024)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def _add_evaluate(verbs: Any) -> None:
    parser = _verb(
        verbs,
        "evaluate",
        "what quantisation costs: perplexity and agreement with fp16 of several bundles on a text",
        "mamba-orin evaluate demo-fp16 demo-int8 demo-int4 --text models/demo/heldout.txt",
    )
    parser.add_argument(
        "folders",
        type=Path,
        nargs="+",
        metavar="BUNDLE",
        help="versions of one model: bundles, whose weights are judged with float32 activations, "
        "or engines, which run as they were built",
    )
    parser.add_argument(
        "--text",
        type=Path,
        required=True,
        metavar="FILE",
        help="UTF-8 text that neither training nor calibration has seen; ten thousand tokens or "
        "more give a narrow interval",
    )
    parser.add_argument(
        "--reference",
        type=Path,
        metavar="BUNDLE",
        help="the one that the others are compared with (default: the first in fp16, else fp32)",
    )
    parser.add_argument(
        "--max-tokens", type=int, metavar="N", help="read so much of the text at most"
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the result as JSON")
    parser.add_argument(
        "--chart", type=Path, metavar="FILE", help="draw the result: a .svg, .png or .pdf"
    )
    parser.add_argument(
        "--threads",
        type=int,
        metavar="N",
        help="CPU threads (default: MAMBA_ORIN_THREADS, or all cores)",
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def _add_score(verbs: Any) -> None:
    parser = _verb(
        verbs,
        "score",
        "log-probability of each token of a text, and its perplexity",
        "mamba-orin score demo-engine --text-file models/demo/heldout.txt",
    )
    _add_engine(parser)
    text = parser.add_mutually_exclusive_group(required=True)
    text.add_argument("--text-file", type=Path, metavar="FILE", help="UTF-8 text; - reads stdin")
    text.add_argument("--token-ids", metavar="1,2,3", help="the text as token ids")
    parser.add_argument(
        "--json",
        action="store_true",
        help='print {"tokens": …, "logprobs": [null, …], "perplexity": …}, natural logarithms',
    )
