# SPDX-License-Identifier: MIT
"""Writes the tables of the documents from the raw measurements beside this file.

`python docs/render_tables.py` rewrites them; a test holds them equal to what this makes.
"""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.architecture import PUBLISHED
from pipeline.expectation import expected_decoding
from pipeline.measured_decode import BUS_SHARE, MILLISECONDS
from pipeline.records import BenchRecord, read_record
from pipeline.roofline import BOARDS

ROOT = Path(__file__).parents[1]
DOCUMENTS = tuple(
    ROOT / name
    for name in (
        "README.md",
        "docs/provisioning.md",
        "docs/quantisation.md",
        "docs/serving.md",
        "docs/tensorrt.md",
    )
)
MEASUREMENTS = ROOT / "docs" / "measurements"


def three_digits(value: float) -> str:
    """A measured value below 1000 to three digits, zeros at their end included."""
    return f"{value:#.3g}".rstrip(".")


def embedded() -> str:
    """The embedded default on a plain CPU, beside its peers."""
    record = read_record(MEASUREMENTS / "embedded_130m.json")
    ours, machine = record.timings, record.board
    rows = [
        _embedded_row(
            f"**mamba-orin**, ONNX Runtime {record.versions['onnxruntime']}",
            record.model.precision,
            ours.first_token.median_ms,
            ours.decode.median_ms,
            ours.decode.spread_percent,
        )
    ]
    rows += [
        _embedded_row(
            f"{peer.peer} {peer.version}",
            str(peer.precision),
            peer.timings.first_token.median_ms,
            peer.timings.decode.median_ms,
            peer.timings.decode.spread_percent,
        )
        for peer in record.comparisons
        if peer.timings is not None
    ]
    return "\n".join(
        [
            f"Measured on {record.date_utc[:10]} on {machine.cores} cores of an {machine.cpu} "
            f"({record.settings.sequence_length} tokens of prompt, random weights, medians; "
            "± holds half of the samples, of llama.cpp those of whole continuations; "
            f"{_validity(record)}).",
            f"Raw record: [`docs/measurements/embedded_130m.json`]"
            f"(docs/measurements/embedded_130m.json), made by `{record.command}`.",
            "",
            "| mamba-130m shapes, one text | weights | first token | each further | tokens/s |",
            "|---|---|---|---|---|",
            *rows,
        ]
    )


def _embedded_row(
    name: str, weights: str, first_ms: float, each_ms: float, spread: float | None
) -> str:
    around = "" if spread is None else f" ±{spread:.1f} %"
    times = f"{first_ms:,.0f} ms | {each_ms:.1f} ms{around} | {1e3 / each_ms:.0f}"
    return f"| {name} | {weights} | {times} |"


def _validity(record: BenchRecord) -> str:
    failed = [check.name for check in record.checks if check.passed is False]
    return f"checks failed: {', '.join(failed)}" if failed else "all validity checks passed"


def scan() -> str:
    """The selective scan on the development GPU, whole and as the board's stand-in."""
    document = json.loads((MEASUREMENTS / "scan.json").read_text())
    rows = [
        row
        for row in document["rows"]
        if (row["op"], row["dtype"], row["l"]) == ("selective_scan", "float16", 2048)
    ]
    lines = [
        f"Measured on {document['date']} on {document['machine']}: fp16, 2048 tokens, 16 states, "
        "microseconds a launch. Eight of its SMs (a CUDA green context) have the Orin Nano's count "
        "of execution units at 1.94 times its clock: they show the compute side and are no "
        "Orin figure. The SFU floor is the time of the exponentials alone.",
        "Raw rows: [`docs/measurements/scan.json`](docs/measurements/scan.json), made by "
        f"`{document['command']}`.{_earlier_peer(rows, document['date'])}",
        "",
        "| channels | whole GPU: ours | mamba-ssm | SFU floor "
        "| 8 SMs: ours | mamba-ssm | SFU floor |",
        "|---|---|---|---|---|---|---|",
    ]
    for channels in sorted({row["d"] for row in rows}):
        cells = [f"| {channels}"]
        for sms in (132, 8):
            (row,) = (row for row in rows if (row["d"], row["sms"]) == (channels, sms))
            ratio = f" ({row['peer_us'] / row['time_us']:.1f} x)" if row["peer_us"] else ""
            peer = f"{row['peer_us']:,.0f}{ratio}" if row["peer_us"] else "not measured"
            cells.append(f"**{row['time_us']:,.0f}** | {peer} | {row['exp_bound_us']:,.0f}")
        lines.append(" | ".join(cells) + " |")
    return "\n".join(lines)


def _earlier_peer(rows: list[dict[str, Any]], date: str) -> str:
    dates = sorted({row.get("peer_date") or date for row in rows} - {date})
    return f" mamba-ssm was measured on {', '.join(dates)}, on the same GPU model." if dates else ""


def decode() -> str:
    """One token through a whole model on the development GPU, whole and as the board's stand-in."""
    document = json.loads((MEASUREMENTS / "decode.json").read_text())
    rows = {
        (row["model"], row["precision"], row["sms"]): row
        for row in document["rows"]
        if row["batch"] == 1
    }
    models = list(dict.fromkeys(model for model, _, _ in rows))
    precisions = list(dict.fromkeys(precision for _, precision, _ in rows))
    lines = [
        f"Measured on {document['date']} on {document['machine']}: random weights in the "
        "published shapes, one text, greedy choice included, one launch a token. In brackets "
        "the weights read a second. The 8 SMs are no Orin figure.",
        "Raw rows: [`docs/measurements/decode.json`](docs/measurements/decode.json), made by "
        f"`{document['command']}`.",
        "",
        "| ms a token | " + " | ".join(f"{name} whole GPU | 8 SMs" for name in precisions) + " |",
        "|---" * (1 + 2 * len(precisions)) + "|",
    ]
    for model in models:
        cells = [f"| {model}"]
        for precision in precisions:
            for sms in (132, 8):
                row = rows[model, precision, sms]
                cells.append(
                    f"**{three_digits(row['ms_per_token'])}** ({row['read_gbps']:,.0f} GB/s)"
                )
        lines.append(" | ".join(cells) + " |")
    return "\n".join(lines)


def expected() -> str:
    """What a token may take on the largest board in its fastest mode. Predicted."""
    board = "orin-nano-8gb"
    precisions = ("fp16", "int8", "int4")
    lines = [
        f"**Predicted**, for {BOARDS[board].title}, in {BOARDS[board].modes[-1].name}: "
        "milliseconds a token, from all of the board's bandwidth to "
        f"{100 * BUS_SHARE:.0f} % of it.",
        "",
        "| ms a token, predicted | " + " | ".join(precisions) + " |",
        "|---" * (1 + len(precisions)) + "|",
    ]
    for model in dict.fromkeys(model for model, _ in MILLISECONDS):
        ranges = [
            expected_decoding(PUBLISHED[model], precision, board)[-1] for precision in precisions
        ]
        cells = [f"{three_digits(r.fastest_ms)} to {three_digits(r.slowest_ms)}" for r in ranges]
        lines.append(f"| {model} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def prefill() -> str:
    """A prefill of the cuda backend in the published shapes, with what it spends its time on."""
    document = json.loads((MEASUREMENTS / "prefill.json").read_text())
    rows = document["rows"]
    lines = [
        f"Measured on {document['date']} on {document['machine']}: {rows[0]['tokens']:,} tokens of "
        "one text from its beginning to its state and last logits, random weights. The last two "
        "columns are of fp16.",
        "Raw rows: [`docs/measurements/prefill.json`](docs/measurements/prefill.json), made by "
        f"`{document['command']}`.",
        "",
        "| ms | fp16 | int8 | int4 | of it the scan | memory of the GPU, MB |",
        "|---|---|---|---|---|---|",
    ]
    for model in dict.fromkeys(row["model"] for row in rows):
        of = {row["precision"]: row for row in rows if row["model"] == model}
        cells = [
            f"**{three_digits(of[precision]['prefill_ms'])}**"
            for precision in ("fp16", "int8", "int4")
        ]
        cells += [f"{of['fp16']['scan_pct']:.0f} %", f"{of['fp16']['peak_device_mb']:,.0f}"]
        lines.append(f"| {model} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def gpu_energy() -> str:
    """Records of the cuda backend with the energy that NVML counts."""
    names = [
        f"gpu_mamba-{model}-{precision}.json"
        for model in ("130m", "2.8b")
        for precision in ("fp16", "int4")
    ]
    records = [read_record(MEASUREMENTS / name) for name in names]
    titles = [
        f"{record.model.name.removeprefix('random-')} {record.model.precision}"
        for record in records
    ]
    first = records[0]
    lines = [
        f"Measured on {first.date_utc[:10]} on one {first.board.gpus[0].name} by `mamba-orin "
        f"bench` ({first.settings.sequence_length:,} tokens of prompt, random weights, one text, "
        "medians; ± holds half of the samples, of joules it is the bound that the readings give). "
        "Power is the GPU's, idling included, without the host.",
        "Raw records: "
        + ", ".join(
            f"[{title}](docs/measurements/{name})"
            for title, name in zip(titles, names, strict=True)
        )
        + f"; the first was made by `{first.command}`.",
        "",
        "| | first token, ms | each further, ms | J a token | W decoding (idle) | checks failed |",
        "|---|---|---|---|---|---|",
    ]
    for title, record in zip(titles, records, strict=True):
        decode, power = record.timings.decode, record.power
        assert power is not None
        assert power.idle_w is not None
        failed = [check.name for check in record.checks if check.passed is False]
        cells = [
            title,
            three_digits(record.timings.first_token.median_ms),
            f"**{three_digits(decode.median_ms)}** ±{decode.spread_percent:.1f} %",
            f"**{three_digits(power.energy_per_token_j)}**"
            f" ±{power.energy_per_token_uncertainty_j:.1g}",
            f"{power.mean_w:.0f} ({power.idle_w:.0f})",
            ", ".join(failed) or "none",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def gpu_peers() -> str:
    """Records of the cuda backend with another implementation measured in the same run."""
    names = [f"gpu_mamba-130m-fp16_{peer}.json" for peer in ("mamba-ssm", "tensorrt")]
    records = [read_record(MEASUREMENTS / name) for name in names]
    first = records[0]
    lines = [
        f"Measured on {first.date_utc[:10]} on one {first.board.gpus[0].name} by `mamba-orin bench "
        "--compare`: mamba-130m in fp16, random weights, one text, host included, medians of one "
        "run each; in brackets how many times ours.",
        "Raw records: " + ", ".join(f"[{name}](docs/measurements/{name})" for name in names) + ".",
        "",
        "| peer | tokens of prompt | its first token, ms | ours | its each further, ms | ours |",
        "|---|---|---|---|---|---|",
    ]
    for record in records:
        (peer,) = record.comparisons
        assert peer.timings is not None
        theirs, ours = peer.timings, record.timings
        cells = [
            f"{peer.peer} {peer.version}",
            f"{record.settings.sequence_length:,}",
            f"{three_digits(theirs.first_token.median_ms)}"
            f" ({three_digits(peer.first_token_ratio)} x)",
            f"**{three_digits(ours.first_token.median_ms)}**",
            f"{three_digits(theirs.decode.median_ms)} ({three_digits(peer.ms_per_token_ratio)} x)",
            f"**{three_digits(ours.decode.median_ms)}**",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def tensorrt() -> str:
    """The TensorRT engine beside the cuda backend and beside plain layers."""
    document = json.loads((MEASUREMENTS / "tensorrt.json").read_text())
    rows = document["rows"]
    lines = [
        f"Measured on {document['date']} on one {document['machine']}, TensorRT "
        f"{document['versions']['tensorrt']}: fp16, one text, host included. Raw rows: "
        f"[`tensorrt.json`](measurements/tensorrt.json), made by `{document['command']}`.",
        "",
        "| | ms a token: TensorRT | `cuda` | plain layers | prefill of 2,048, ms: TensorRT "
        "| `cuda` | build, s | GPU memory: build, MB | running, MB | log-probabilities off by "
        "| same greedy tokens |",
        "|---" * 11 + "|",
    ]
    for model in dict.fromkeys(row["model"] for row in rows):
        of = {row["backend"]: row for row in rows if row["model"] == model}
        ours, beside = of["tensorrt"], of["cuda"]
        plain = of.get("tensorrt, plain layers")
        ratios = [ours[key] / beside[key] - 1 for key in ("ms_per_token", "prefill_ms")]
        cells = [
            f"**{three_digits(ours['ms_per_token'])}** ({ratios[0]:+.0%})",
            three_digits(beside["ms_per_token"]),
            three_digits(plain["ms_per_token"]) if plain else "",
            f"**{three_digits(ours['prefill_ms'])}** ({ratios[1]:+.0%})",
            three_digits(beside["prefill_ms"]),
            f"{ours['build_s']:.0f}",
            f"{ours['build_gpu_mb']:,}",
            f"{ours['session_gpu_mb']:,}",
            f"{ours['logprob_error']:.3f}" if "logprob_error" in ours else "",
            f"{ours['same_tokens']} of 200" if "same_tokens" in ours else "",
        ]
        lines.append(f"| {model} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def quality() -> str:
    """What int8 and int4 cost the demo model on text it has not seen."""
    document = json.loads((MEASUREMENTS / "quality.json").read_text())
    lines = [
        f"Measured on {document['date']} on {document['machine']}: the demo model "
        f"({document['parameters'] / 1e6:.1f} M parameters), {document['text']['tokens']:,} "
        "held-out tokens, weights alone (activations in float32). In brackets the interval: "
        f"{document['interval']}.",
        "Raw rows: [`quality.json`]({docs}measurements/quality.json), made by `make quality`.",
        "",
        "| weights | MB | perplexity | change, % | divergence from fp16 (KL), nats "
        "| same likeliest token, % |",
        "|---|---|---|---|---|---|",
    ]
    for row in document["rows"]:
        cells = [
            _version(row["name"]),
            f"{row['weight_bytes'] / 1e6:.2f}",
            f"{row['perplexity']['value']:.2f}",
            _interval(row["perplexity_change_percent"], "+.2f"),
            _interval(row["kl_nats"], ".5f"),
            _interval(row["top1_percent"], ".1f"),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def quality_by_size() -> str:
    """What each kind of quantisation costs models of different sizes on the same text."""
    names = ("quality-demo-1m", "quality", "quality-demo-29m")
    documents = [json.loads((MEASUREMENTS / f"{name}.json").read_text()) for name in names]
    lines = [
        "Change of perplexity in percent, on the same held-out text. Raw rows: "
        + ", ".join(f"[`{name}.json`]({{docs}}measurements/{name}.json)" for name in names)
        + ".",
        "",
        "| weights | "
        + " | ".join(f"{document['parameters'] / 1e6:.1f} M" for document in documents)
        + " |",
        "|---" * (1 + len(documents)) + "|",
        "| fp16: perplexity | "
        + " | ".join(f"{document['rows'][0]['perplexity']['value']:.2f}" for document in documents)
        + " |",
    ]
    for index, row in enumerate(documents[0]["rows"][1:], start=1):
        cells = []
        for document in documents:
            of_this = document["rows"][index]
            assert _version(of_this["name"]) == _version(row["name"])
            cells.append(_interval(of_this["perplexity_change_percent"], "+.2f"))
        lines.append(f"| {_version(row['name'])} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _version(name: str) -> str:
    words = name.replace("-", ", ", 1).replace("-", " ")
    return f"**{words}**" if name in {"int8", "int4-calibrated"} else words


def _interval(measured: dict[str, float] | None, form: str) -> str:
    if measured is None:
        return ""
    return f"{measured['value']:{form}} ({measured['low']:{form}} … {measured['high']:{form}})"


def int8_activations() -> str:
    """What int8 activations cost, by how many inputs share a scale."""
    document = json.loads((MEASUREMENTS / "int8_activations.json").read_text())
    models = document["rows"]
    lines = [
        "Change of perplexity against float16 weights in percent and its interval, as above; "
        f"measured on {document['date']} on {document['machine']}, {models[0]['tokens']:,} "
        "held-out tokens.",
        "Raw rows: [`int8_activations.json`]({docs}measurements/int8_activations.json), made by "
        f"`{document['command']}`.",
        "",
        "| int8 weights, activations | "
        + " | ".join(f"{model['parameters'] / 1e6:.1f} M" for model in models)
        + " |",
        "|---" * (1 + len(models)) + "|",
    ]
    for index, row in enumerate(models[0]["rows"][1:], start=1):
        name = "float32" if row["name"] == "int8 weights" else f"int8, {row['name']}"
        cells = [
            _interval(model["rows"][index]["perplexity_change_percent"], "+.2f") for model in models
        ]
        built = row["name"].startswith("groups")
        lines.append(f"| {f'**{name}**' if built else name} | " + " | ".join(cells) + " |")
    lines += [
        "",
        "| inputs of | model | largest of a token over its root mean square: median, 99th "
        "percentile, largest | error of rounding over signal, %: groups of 128 | one scale "
        "| after Hadamard |",
        "|---|---|---|---|---|---|",
    ]
    for product in models[0]["inputs"]:
        for model in models:
            found = model["inputs"][product]
            peaks = (found[f"peak_{key}"] for key in ("median", "99_percent", "largest"))
            errors = (found[f"error_{key}_pct"] for key in ("groups", "tokens", "rotated"))
            cells = [
                product.removesuffix(".weight"),
                f"{model['parameters'] / 1e6:.1f} M",
                ", ".join(f"{peak:.1f}" for peak in peaks),
                *(f"{error:.2f}" for error in errors),
            ]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def prefill_w8a8() -> str:
    """A prefill with int8 activations beside float16 ones, and its two large products."""
    document = json.loads((MEASUREMENTS / "prefill_w8a8.json").read_text())
    by_model: dict[str, dict[str, Any]] = {}
    for row in document["rows"]:
        by_model.setdefault(row["model"], {})[row["precision"]] = row
    lines = [
        f"Measured on {document['date']} on one {document['gpu']}: 2,048 tokens, batch 1, random "
        "weights in the published shapes, as a replayed CUDA graph.",
        "Raw rows: [`prefill_w8a8.json`]({docs}measurements/prefill_w8a8.json), made by "
        f"`{document['command']}`.",
        "",
        "| ms; in brackets µs a block for norm + in_proj, rounding + out_proj | fp16 "
        "| int8 weights | int8 weights and activations | against int8 weights |",
        "|---|---|---|---|---|",
    ]
    for model, of in by_model.items():
        cells = []
        for precision in ("fp16", "int8", "w8a8"):
            phases = of[precision]["phase_us_per_layer"]
            into = phases["norm"] + phases["in_proj"]
            out = phases.get("rounding", 0.0) + phases["out_proj"]
            cells.append(f"{three_digits(of[precision]['prefill_ms'])} ({into:.0f}, {out:.0f})")
        change = of["w8a8"]["prefill_ms"] / of["int8"]["prefill_ms"] - 1
        lines.append(f"| {model} | " + " | ".join(cells) + f" | {change:+.0%} |")
    return "\n".join(lines)


def sizes() -> str:
    """Sizes of the published shapes, computed."""
    document = json.loads((MEASUREMENTS / "sizes.json").read_text())
    versions = list(dict.fromkeys(row["version"] for row in document["rows"]))
    lines = [
        "Megabytes on disk, to the byte from the plan of the weight file; in brackets what device "
        "memory holds for one text, its float32 state included; after the slash what the same "
        "shape comes to elsewhere (16 bits; 8 with one scale a row; 4 with one a group of 128; all "
        "else in 16). Raw rows: [`sizes.json`]({docs}measurements/sizes.json), made by "
        f"`{document['command']}`.",
        "",
        "| | " + " | ".join(versions) + " |",
        "|---" * (1 + len(versions)) + "|",
    ]
    for model in dict.fromkeys(row["model"] for row in document["rows"]):
        cells = [
            f"{row['file_bytes'] / 1e6:,.1f} ({row['device_bytes'] / 1e6:,.1f}) / "
            f"{row['others_mb']:,.1f}"
            for row in document["rows"]
            if row["model"] == model
        ]
        lines.append(f"| {model} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def conversion() -> str:
    """Time and memory of conversions."""
    document = json.loads((MEASUREMENTS / "conversion.json").read_text())
    lines = [
        f"Measured on {document['date']} on {document['machine']}, other work running beside it "
        "(the last column is the load when it ended). Anonymous memory is what must be there; "
        "mapped files come and go. Raw rows: "
        "[`conversion.json`]({docs}measurements/conversion.json).",
        "",
        "| model, random weights | to | calibration | minutes | anonymous memory, MB "
        "| with mapped files, MB | load |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in document["rows"]:
        tokens = row["calibration_tokens"]
        cells = [
            row["model"].removeprefix("random:"),
            row["precision"],
            f"{tokens:,} tokens" if tokens else "none",
            f"{row['seconds'] / 60:.1f}",
            f"{row['peak_anonymous_mb']:,.0f}",
            f"{row['peak_resident_mb']:,.0f}",
            f"{row['load_average']:.0f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def serve_load() -> str:
    """The server under many clients for minutes."""
    document = json.loads((MEASUREMENTS / "serve_load.json").read_text())
    (load,) = (row for row in document["rows"] if row["what"] == "load")
    speeds = [
        f"{statistics.mean(row['tokens_per_s'] for row in rows):,.0f} with {clients}"
        for clients, rows in _by_clients(document["rows"]).items()
    ]
    lines = [
        f"Measured on {document['date'][:10]} on {document['machine']}, the demo model: "
        f"{document['note']}. Raw rows: [`serve_load.json`]({{docs}}measurements/serve_load.json), "
        f"made by `{document['command']}`.",
        "",
        f"| {load['clients']} clients, streaming, {load['seconds']:.0f} s | |",
        "|---|---|",
        f"| answers; clients that left mid-stream | {load['answers']:,}; "
        f"{load['clients_that_left']:,} |",
        f"| faults; answers unlike the same request's alone | {load['faults']}; "
        f"{load['answers_that_differ_from_alone']} |",
        f"| time to the first token, half of them; 99 % | {load['ttft_p50_ms']:,.0f} ms; "
        f"{load['ttft_p99_ms']:,.0f} ms |",
        f"| tokens a second, all clients together | {load['tokens_per_s']:,.0f} |",
        f"| tokens a second, fewer clients | {'; '.join(speeds)} |",
        "| resident memory, medians of the first and last third after the warm-up | "
        f"{load['rss_first_third_mb']:,.0f} MB; {load['rss_last_third_mb']:,.0f} MB |",
    ]
    return "\n".join(lines)


def _by_clients(rows: list[dict[str, Any]]) -> dict[int, list[dict[str, Any]]]:
    found: dict[int, list[dict[str, Any]]] = {}
    for row in rows:
        if row["what"] == "throughput":
            found.setdefault(row["clients"], []).append(row)
    return found


def prefixes() -> str:
    """Three ways to come to the end of a long beginning."""
    document = json.loads((MEASUREMENTS / "serve_load.json").read_text())
    rows = {row["how"]: row for row in document["rows"] if "how" in row}
    names = {
        "read": "read whole",
        "reused": "read before in another prompt, kept without any name",
        "named": "restored from a named state on disk",
    }
    first = rows["read"]
    lines = [
        f"Time to the first token after {first['prefix_tokens']:,} tokens and eight more, median "
        f"of {first['repeats']} texts, from the same run:",
        "",
        "| the beginning is | first token | | its answer |",
        "|---|---|---|---|",
    ]
    for how, name in names.items():
        row = rows[how]
        ratio = f"{first['median_ms'] / row['median_ms']:.0f} x faster" if row != first else ""
        lines.append(f"| {name} | {row['median_ms']:,.1f} ms | {ratio} | {_equality(row, how)} |")
    return "\n".join(lines)


def _equality(row: dict[str, Any], how: str) -> str:
    if how == "read":
        return "the measure"
    if row["equal_to_the_bit"]:
        return "the same, log-probabilities to the last bit"
    return "the same text" if row["equal_text"] else "another text"


def provisioning() -> str:
    """One run over thirty simulated boards, and a second one."""
    document = json.loads((MEASUREMENTS / "provisioning.json").read_text())
    rows = document["rows"]
    lines = [
        f"Measured on {document['date']} on {document['machine']}: {rows[0]['boards']} boards of "
        f"all kinds in one batch, {rows[0]['forks']} at a time (load average before: "
        f"{document['load_before']}). Raw rows: [`provisioning.json`]"
        f"({{docs}}measurements/provisioning.json), made by `{document['command']}`.",
        "",
        "| | " + " | ".join(row["phase"] for row in rows) + " |",
        "|---" * (1 + len(rows)) + "|",
    ]
    for title, cells in (
        ("minutes", [f"**{row['seconds'] / 60:.1f}**" for row in rows]),
        (
            "memory of Ansible and its workers at the peak, MiB",
            [f"**{row['controller_peak_mib']:,}**" for row in rows],
        ),
        (
            "boards done; of them changed",
            [f"{row['boards_done']}; {row['boards_changed']}" for row in rows],
        ),
        (
            "boards not done, named with the reason",
            [", ".join(f"`{name}`" for name in row["boards_not_done"]) for row in rows],
        ),
    ):
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    reasons = rows[0]["boards_not_done"]
    lines += ["", "What the first run's summary said of those:", ""]
    lines += [f"* `{name}`: {' '.join(reason.split())}" for name, reason in reasons.items()]
    return "\n".join(lines)


def operators() -> str:
    """The operators of domain `s6`, from their contract."""
    contract = json.loads((ROOT / "plugin" / "ops.json").read_text())
    lines = ["| operator | form | inputs → outputs | meaning |", "|---|---|---|---|"]
    for op in contract["ops"]:
        tensors = [
            ", ".join(f"{t['name']}[{t['shape'].replace(' ', ', ')}]" for t in op[side])
            for side in ("inputs", "outputs")
        ]
        forms = " and ".join(op["forms"])
        lines.append(f"| `{op['name']}` | {forms} | {' → '.join(tensors)} | {op['meaning']} |")
    return "\n".join(lines)


TABLES: dict[str, Callable[[], str]] = {
    "embedded": embedded,
    "scan": scan,
    "decode": decode,
    "expected": expected,
    "prefill": prefill,
    "gpu_energy": gpu_energy,
    "gpu_peers": gpu_peers,
    "tensorrt": tensorrt,
    "quality": quality,
    "quality_by_size": quality_by_size,
    "int8_activations": int8_activations,
    "prefill_w8a8": prefill_w8a8,
    "sizes": sizes,
    "conversion": conversion,
    "serve_load": serve_load,
    "prefixes": prefixes,
    "provisioning": provisioning,
    "operators": operators,
}
"""What makes the table between `<!-- table: NAME -->` and `<!-- end -->`."""

_PLACE = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def rendered(path: Path) -> str:
    """A document's text with every table made anew."""
    # Links lead from the document's own folder.
    docs = "docs/" if path.parent == ROOT else ""

    def table(match: re.Match[str]) -> str:
        return match[1] + TABLES[match[2]]().replace("{docs}", docs) + "\n" + match[3]

    return _PLACE.sub(table, path.read_text())


if __name__ == "__main__":
    for document in DOCUMENTS:
        document.write_text(rendered(document))
