# SPDX-License-Identifier: MIT
"""Trains a small Mamba language model and writes it in the -hf layout.

The model is `pipeline.model.Mamba`, the same code that every backend is compared with. On a
GPU its slow reference scan is replaced by triton_scan.py, which is first checked against it.

The corpus folder comes from corpus.py (train, validation and heldout as uint16 token files).
Training reads the text as parallel streams and carries the state of the model from chunk to
chunk, so that it learns to read texts far longer than one chunk; now and then a stream starts
from an empty state, as a prompt does. The weights that are kept are an exponential moving
average, at the step where it has the best validation loss. The held-out text is scored once,
at the end, with the rounded weights that are written.

Writes config.json, model.safetensors, tokenizer.json, tokenizer_config.json,
generation_config.json and training_log.json (options, loss curve, results).
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import sys
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from hf_layout import END_OF_TEXT_ID, round_matrices, write_checkpoint
from token_files import Corpus, Streams
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from pipeline.architecture import MambaArchitecture
from pipeline.model import Mamba, ModelState, SelectiveScan, selective_scan

logger = logging.getLogger("train")

EXAMPLES = """examples:
  the shipped demo model (two minutes on one H200):
    python models/demo/corpus.py --output build/demo-corpus
    python models/demo/train.py --corpus build/demo-corpus --output build/demo-model

  does everything work? (half a minute on a CPU, speaks gibberish)
    python models/demo/train.py --corpus build/demo-corpus --output build/tiny \\
        --d-model 32 --n-layer 2 --batch 4 --chunk 64 --max-steps 20

  a model of about 30 M parameters:
    python models/demo/train.py --corpus build/large-corpus --output build/large \\
        --d-model 512 --n-layer 16 --learning-rate 1.5e-3 --dropout 0.1

The shell must find the package `pipeline`: run from the repository's virtual environment, or
with PYTHONPATH=. in its root.
"""


class NegativeExponential(nn.Module):
    """Keeps A negative while log(-A) is trained, as in the Mamba paper."""

    def forward(self, log: Tensor) -> Tensor:
        """log(-A) -> A."""
        return -torch.exp(log)

    def right_inverse(self, a: Tensor) -> Tensor:
        """A -> log(-A)."""
        return torch.log(-a)


def initialise(model: Mamba) -> None:
    """Start values of the Mamba paper (arXiv:2312.00752, sections 3.6 and E.2).

    A starts as S4D-real in the model itself. Step sizes start log-uniform in [1e-3, 1e-1]
    through the bias of dt_proj; out_proj is scaled down with depth, as in GPT-2.
    """
    nn.init.normal_(model.embedding.weight, std=0.02)
    for block in model.layers:
        for matrix in (block.in_proj.weight, block.x_proj.weight, block.out_proj.weight):
            nn.init.normal_(matrix, std=matrix.shape[1] ** -0.5 / math.sqrt(3.0))
        with torch.no_grad():
            block.out_proj.weight /= math.sqrt(2 * len(model.layers))
        bound = block.dt_proj.weight.shape[1] ** -0.5
        nn.init.uniform_(block.dt_proj.weight, -bound, bound)
        low, high = math.log(1e-3), math.log(1e-1)
        step_size = torch.exp(torch.empty_like(block.dt_proj.bias).uniform_(low, high))
        inverse_softplus = step_size + torch.log(-torch.expm1(-step_size))
        with torch.no_grad():
            block.dt_proj.bias.copy_(inverse_softplus)
        parametrize.register_parametrization(block, "A", NegativeExponential())


def add_dropout(model: Mamba, rate: float) -> None:
    """Drops parts of the embedding and of every block's output, without touching the model."""

    def drop(module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
        return functional.dropout(output, rate, module.training)

    for module in (model.embedding, *(block.out_proj for block in model.layers)):
        module.register_forward_hook(drop)


def plain_weights(model: Mamba) -> dict[str, Tensor]:
    """Weights named as in `architecture.weights()`, parametrised ones as their value."""
    weights = {}
    for name in model.architecture.weights():
        value: Any = model
        for part in name.split("."):
            value = getattr(value, part)
        weights[name] = value.detach().float().clone()
    return weights


def carried(state: ModelState, reset_rate: float) -> ModelState:
    """Cuts the gradient and empties a random share of the rows."""
    keep = (torch.rand(state.ssm.shape[1], device=state.ssm.device) >= reset_rate)[:, None, None]
    return ModelState(conv=state.conv.detach() * keep, ssm=state.ssm.detach() * keep)


@torch.no_grad()
def negative_log_likelihood(model: Mamba, ids: Tensor, chunk: int = 4096) -> float:
    """Reads a text once from an empty state.

    Args:
        model: In evaluation mode.
        ids: (l,) token ids.
        chunk: Tokens at a time; the state is carried, so that it changes memory use only.

    Returns:
        Sum over all tokens but the first, in nats.
    """
    total, state = 0.0, None
    for begin in range(0, len(ids) - 1, chunk):
        end = min(begin + chunk, len(ids) - 1)
        logits, state = model(ids[None, begin:end], state)
        targets = ids[begin + 1 : end + 1]
        losses = functional.cross_entropy(logits[0], targets, reduction="none")
        total += losses.double().sum().item()
    return total


@torch.no_grad()
def continuation(
    model: Mamba, prompt: list[int], length: int, temperature: float, seed: int
) -> list[int]:
    """Samples from the model; temperature 0 takes the likeliest token.

    Args:
        model: In evaluation mode.
        prompt: Token ids to continue.
        length: Most tokens to add.
        temperature: Divides the logits.
        seed: Of the sampling.

    Returns:
        The new ids, up to the end of the text.
    """
    device = model.embedding.weight.device
    generator = torch.Generator(device).manual_seed(seed)
    scan, model.scan = model.scan, selective_scan
    ids, state, new = torch.tensor([prompt], device=device), None, []
    for _ in range(length):
        logits, state = model(ids, state)
        if temperature > 0:
            chances = torch.softmax(logits[:, -1] / temperature, dim=-1)
            ids = torch.multinomial(chances, 1, generator=generator)
        else:
            ids = logits[:, -1].argmax(dim=-1, keepdim=True)
        if ids.item() == END_OF_TEXT_ID:
            break
        new.append(int(ids.item()))
    model.scan = scan
    return new


def choose_scan(name: str, device: torch.device) -> SelectiveScan:
    """The Triton kernel where it can run, after a comparison with the reference.

    Raises:
        SystemExit: The kernel is wrong on this GPU; a model trained with it would be, too.
    """
    if name == "reference" or (name == "auto" and device.type != "cuda"):
        return selective_scan
    from triton_scan import triton_selective_scan, worst_error

    error = worst_error(str(device))
    logger.info("Triton scan against the reference: worst relative error %.1e", error)
    # float32 rounding over a few dozen steps stays well under this; a wrong mask does not.
    if not error < 1e-4:
        message = f"triton_scan.py is wrong on this GPU (error {error:.1e}); use --scan reference"
        raise SystemExit(message)
    return triton_selective_scan


def optimiser(model: Mamba, options: argparse.Namespace) -> torch.optim.AdamW:
    """AdamW; weight decay on matrices only (decay on A, D, biases or norms does harm)."""
    owners = (module for module in model.modules() if isinstance(module, nn.Linear | nn.Embedding))
    matrices = [owner.weight for owner in owners]
    chosen = {id(parameter) for parameter in matrices}
    rest = [parameter for parameter in model.parameters() if id(parameter) not in chosen]
    groups = [
        {"params": matrices, "weight_decay": options.weight_decay},
        {"params": rest, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        groups, lr=options.learning_rate, betas=(0.9, 0.98), fused=torch.cuda.is_available()
    )


def learning_rate(progress: float, options: argparse.Namespace) -> float:
    """Linear warm-up over 5 % of the training, then half a cosine down to 2 %."""
    warm_up, floor = 0.05, 0.02
    if progress < warm_up:
        return options.learning_rate * (progress + 1e-3) / warm_up
    phase = min(1.0, (progress - warm_up) / (1 - warm_up))
    return options.learning_rate * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * phase)))


def train(
    model: Mamba, corpus: Corpus, options: argparse.Namespace
) -> tuple[dict[str, Tensor], list[dict[str, float]]]:
    """Trains.

    Args:
        model: Initialised, on its device.
        corpus: Token ids.
        options: The command line.

    Returns:
        The best weights, named as in `architecture.weights()`, and the loss curve.
    """
    device = model.embedding.weight.device
    streams = Streams(corpus.train, options.batch, options.chunk)
    steps = options.max_steps or round(options.passes * streams.steps_per_pass)
    evaluate_every = options.evaluate_every or max(1, steps // 40)
    adamw = optimiser(model, options)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(options.ema))
    best_loss, best, curve = math.inf, plain_weights(model), []
    state: ModelState | None = None
    loss_sum, began = torch.zeros((), device=device), time.perf_counter()
    for step in range(steps):
        elapsed = time.perf_counter() - began
        progress = max(step / steps, elapsed / options.max_seconds)
        if progress >= 1:
            break
        for group in adamw.param_groups:
            group["lr"] = learning_rate(progress, options)
        ids = streams.read(step)
        if state is not None:
            fresh = step % streams.steps_per_pass == 0
            state = None if fresh else carried(state, options.reset_rate)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            logits, state = model(ids[:, :-1], state)
        loss = functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adamw.step()
        adamw.zero_grad()
        average.update_parameters(model)
        loss_sum += loss.detach()
        if (step + 1) % evaluate_every == 0 or step + 1 == steps:
            average.eval()
            nats = negative_log_likelihood(average.module, corpus.validation)
            point = {
                "step": step + 1,
                "passes": round((step + 1) / streams.steps_per_pass, 2),
                "seconds": round(time.perf_counter() - began, 1),
                "learning_rate": round(adamw.param_groups[0]["lr"], 7),
                "train_loss": round(loss_sum.item() / ((step % evaluate_every) + 1), 4),
                "validation_loss": round(nats / (len(corpus.validation) - 1), 4),
            }
            loss_sum.zero_()
            curve.append(point)
            logger.info("%s", "  ".join(f"{key} {value}" for key, value in point.items()))
            if point["validation_loss"] < best_loss:
                best_loss = point["validation_loss"]
                best = plain_weights(average.module)
    return best, curve


def judge(model: Mamba, corpus: Corpus, options: argparse.Namespace) -> dict[str, Any]:
    """Scores the texts kept away from training and continues the prompt.

    Args:
        model: With the weights that are shipped.
        corpus: Token ids.
        options: The command line.

    Returns:
        "results" (perplexity a token, bits a byte, by text) and "samples".
    """
    results = {}
    for name, ids in (("validation", corpus.validation), ("heldout", corpus.heldout)):
        nats = negative_log_likelihood(model, ids)
        results[name] = {
            "tokens": len(ids),
            "perplexity": math.exp(nats / (len(ids) - 1)),
            "bits_per_byte": nats / math.log(2) / corpus.summary[name]["bytes"],
        }
    prompt = corpus.tokenizer.encode(options.prompt).ids
    samples = []
    for temperature in (0.0, 0.8):
        added = continuation(model, prompt, 120, temperature, options.seed)
        samples.append(
            {"temperature": temperature, "text": corpus.tokenizer.decode([*prompt, *added])}
        )
    return {"results": results, "samples": samples}


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )

    def option(name: str, default: Any, explanation: str, **more: Any) -> None:
        if default is not None:
            more.setdefault("type", type(default))
            explanation += " (%(default)s)"
        parser.add_argument(name, default=default, help=explanation, **more)

    option("--corpus", Path("build/demo-corpus"), "folder that corpus.py wrote")
    option("--output", Path("build/demo-model"), "folder to write the model to")
    option("--d-model", 256, "width; parameters grow with its square")
    option("--n-layer", 8, "blocks; parameters grow in proportion")
    option("--batch", 16, "streams read in parallel")
    option("--chunk", 512, "tokens a gradient reaches back; the state reaches further")
    option("--passes", 14.0, "times to read the corpus; small corpora overfit, watch the log")
    option("--max-steps", 0, "stop after so many steps; 0: as --passes says")
    option("--max-seconds", 1e9, "shorten the schedule to end, fully annealed, by this time")
    option("--learning-rate", 2e-3, "peak; smaller for wider models")
    option("--weight-decay", 0.1, "on matrices")
    option("--dropout", 0.3, "of the embedding and block outputs; more for less text")
    option("--reset-rate", 0.1, "share of streams that start a chunk from an empty state")
    option("--ema", 0.995, "decay of the averaged weights that are evaluated and kept")
    option("--evaluate-every", 0, "steps; 0: forty times in all")
    option("--scan", "auto", "auto: Triton on a GPU", choices=("auto", "triton", "reference"))
    option("--device", "auto", "auto, cpu or cuda")
    option("--seed", 0, "of start values, data order, dropout")
    option("--prompt", "It was a truth", "to continue at the end, as a sample")
    return parser.parse_args()


def main() -> None:
    """Trains, writes, scores, speaks."""
    options = parse_arguments()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.manual_seed(options.seed)
    chosen = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(chosen if options.device == "auto" else options.device)
    corpus = Corpus.read(options.corpus, device)
    vocabulary = corpus.tokenizer.get_vocab_size()
    architecture = MambaArchitecture(
        d_model=options.d_model,
        n_layer=options.n_layer,
        d_inner=2 * options.d_model,
        d_state=16,
        d_conv=4,
        dt_rank=-(-options.d_model // 16),
        vocab_size=vocabulary,
        vocab_rows=vocabulary,
    )
    model = Mamba(architecture, choose_scan(options.scan, device))
    initialise(model)
    add_dropout(model, options.dropout)
    model.to(device)
    logger.info("%d parameters on %s", architecture.parameters, device)
    began = time.perf_counter()
    weights, curve = train(model, corpus, options)
    seconds = time.perf_counter() - began

    write_checkpoint(weights, architecture, options.corpus / "tokenizer.json", options.output)
    shipped = Mamba(architecture, model.scan).to(device).eval()
    shipped.load_state_dict(round_matrices(weights, architecture))
    report = judge(shipped, corpus, options)
    places = {"corpus", "output", "device", "prompt"}
    log = {
        "date": datetime.now(timezone.utc).date().isoformat(),
        "machine": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
        "versions": {"torch": torch.__version__},
        "parameters": architecture.parameters,
        "training_seconds": round(seconds, 1),
        "options": {k: v for k, v in vars(options).items() if k not in places},
        "corpus": corpus.summary,
        **report,
        "curve": curve,
    }
    text = json.dumps(log, indent=1, ensure_ascii=False)
    (options.output / "training_log.json").write_text(text + "\n", encoding="utf-8")
    sys.stdout.write(json.dumps(report, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
