# SPDX-License-Identifier: MIT
"""Times scan, step and convolution on the whole GPU and on 8 multiprocessors, mamba-ssm beside.

Shapes are those of the five published models, batch 1. Inputs rotate through buffers larger than
the L2 cache together. Needs torch, cuda-python, libs6.so and a GPU; the peer is timed when its
compiled extension can be imported. Where it cannot, --peer-from takes its times from an earlier
file of the same GPU, and each row says of which date they are. Writes the file itself.

    python plugin/bench/scan_bench.py --output docs/measurements/scan.json
"""

from __future__ import annotations

import argparse
import datetime
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from gpu_clock import copy_gbps, header, time_us, whole_and_proxy

from pipeline import s6_library

CHANNELS = (1536, 2048, 3072, 4096, 5120)  # d_inner of mamba-130m, 370m, 790m, 1.4b, 2.8b
LENGTHS = (1, 16, 128, 512, 2048, 8192, 16384)
STATE = 16
EXP_PER_CLOCK = 16  # ex2 results a clock and multiprocessor
COLD_BYTES = 150e6  # more than the L2 cache holds
PEER = "mamba-ssm selective_scan_cuda"


def peer_module() -> Any:
    """mamba-ssm's compiled extension, or None."""
    try:
        import selective_scan_cuda
    except ImportError:
        return None
    return selective_scan_cuda


def make(length: int, d: int) -> dict[str, Any]:
    """One set of inputs with the step sizes of a trained model (dt between 1e-3 and 0.1)."""

    def half(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, device="cuda").half()

    return {
        "u": half(1, length, d),
        "delta": half(1, length, d) * 0.5,
        "A": -torch.arange(1.0, STATE + 1, device="cuda")[:, None].repeat(1, d),
        "B": half(1, length, STATE),
        "C": half(1, length, STATE),
        "y": torch.empty(1, length, d, device="cuda", dtype=torch.float16),
        "D": torch.ones(d, device="cuda"),
        "z": half(1, length, d),
        "delta_bias": torch.randn(d, device="cuda") * 0.5 - 4.5,
        "state_in": torch.randn(1, STATE, d, device="cuda"),
        "state_out": torch.empty(1, STATE, d, device="cuda"),
    }


def to_peer(inputs: dict[str, Any]) -> tuple[Any, ...]:
    """The same inputs in mamba-ssm's channels-first layout; it takes no initial state."""

    def first(name: str) -> torch.Tensor:
        return inputs[name].transpose(1, 2).contiguous()

    return (
        first("u"), first("delta"), inputs["A"].t().contiguous(), first("B")[:, None].contiguous(),
        first("C")[:, None].contiguous(), inputs["D"], first("z"), inputs["delta_bias"], True,
    )  # fmt: skip


def row(op: str, d: int, length: int, sms: int, timing: tuple[float, float], **bounds: Any) -> dict:
    """One line of the measurement file, derived shares included."""
    microseconds, spread = timing
    bytes_moved = bounds.pop("bytes_moved")
    gbps, exps = bounds.pop("copy_gbps"), bounds.pop("exps")
    bytes_bound = bytes_moved / gbps / 1e3
    exp_bound = exps / (EXP_PER_CLOCK * sms * bounds.pop("clock_mhz"))
    return {
        "op": op,
        "dtype": "float16",
        "d": d,
        "l": length,
        "n": STATE,
        "sms": sms,
        "time_us": round(microseconds, 2),
        "spread_pct": round(spread, 1),
        "gbps": round(bytes_moved / microseconds / 1e3, 1),
        "bytes_bound_us": round(bytes_bound, 2),
        "bytes_bound_pct": round(100 * bytes_bound / microseconds, 1),
        "exp_bound_us": round(exp_bound, 2),
        "exp_bound_pct": round(100 * exp_bound / microseconds, 1),
        "peer": None,
        "peer_us": None,
        "peer_date": None,
        **bounds,
    }


class EarlierPeer:
    """The peer's times in an earlier file of this bench, by operator and shape."""

    def __init__(self, path: Path, gpu: str) -> None:
        document = json.loads(path.read_text())
        if document["gpu"] != gpu:
            message = f"{path} was measured on {document['gpu']}, this is {gpu}"
            raise ValueError(message)
        self._date = document["date"]
        self._rows = {self._key(line): line for line in document["rows"] if line["peer_us"]}

    @staticmethod
    def _key(line: dict) -> tuple[Any, ...]:
        return tuple(line[name] for name in ("op", "dtype", "d", "l", "n", "sms"))

    def fill(self, line: dict) -> None:
        """Gives a row without a peer the earlier one's time and date."""
        earlier = self._rows.get(self._key(line))
        if earlier is not None and line["peer_us"] is None:
            line["peer"], line["peer_us"] = earlier["peer"], earlier["peer_us"]
            line["peer_date"] = earlier.get("peer_date") or self._date


def scan_row(d: int, length: int, sms: int, stream: Any, peer: Any, limits: dict) -> dict:
    """Times one shape of the scan (the step kernel at l = 1) and of the peer."""
    # u, delta, z in and y out; B and C; the state twice and A.
    moved = 8 * d * length + 4 * STATE * length + 12 * d * STATE
    buffers = max(2, min(16, int(COLD_BYTES / moved) + 1))
    sets = [make(length, d) for _ in range(buffers)]
    handle = stream.cuda_stream

    def launch(i: int) -> None:
        s6_library.selective_scan(**sets[i], sm_count=sms, stream=handle, step=length == 1)

    timing = time_us(launch, stream, buffers)
    line = row(
        "selective_scan_step" if length == 1 else "selective_scan", d, length, sms, timing,
        bytes_moved=moved, exps=d * length * STATE, **limits,
    )  # fmt: skip
    if peer is not None:
        theirs = [to_peer(inputs) for inputs in sets]
        line["peer"], line["peer_date"] = PEER, datetime.date.today().isoformat()
        line["peer_us"] = round(time_us(lambda i: peer.fwd(*theirs[i]), stream, buffers)[0], 2)
    return line


def conv_row(d: int, length: int, sms: int, stream: Any, limits: dict) -> dict:
    """Times one shape of the convolution, k = 4."""
    moved = 4 * d * length + 2 * 2 * 3 * d + 4 * 5 * d
    buffers = max(2, min(16, int(COLD_BYTES / moved) + 1))

    def half(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, device="cuda").half()

    sets = [(half(1, length, d), half(1, length, d), half(1, 3, d)) for _ in range(buffers)]
    weight, bias = torch.randn(4, d, device="cuda"), torch.randn(d, device="cuda")

    def launch(i: int) -> None:
        x, y, state = sets[i]
        s6_library.causal_conv1d(
            x, weight, y, bias=bias, state_in=state, state_out=state, stream=stream.cuda_stream
        )

    timing = time_us(launch, stream, buffers)
    return row(
        "causal_conv1d", d, length, sms, timing, bytes_moved=moved, exps=d * length, **limits
    )


def main() -> int:
    """Measures everything, prints a line each, writes the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--peer-from", type=Path, help="an earlier file of this bench")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    earlier = arguments.peer_from and EarlierPeer(arguments.peer_from, torch.cuda.get_device_name())
    peer = peer_module()
    clock = boost_clock_mhz()
    rows, rates = [], {}
    streams = whole_and_proxy()
    for sms, (stream, _) in streams.items():
        rates[str(sms)] = round(copy_gbps(stream), 1)
        limits = {"copy_gbps": rates[str(sms)], "clock_mhz": clock}
        for d in CHANNELS:
            for length in LENGTHS:
                rows.append(scan_row(d, length, sms, stream, peer, dict(limits)))
                rows.append(conv_row(d, length, sms, stream, dict(limits)))
                for line in rows[-2:]:
                    if earlier is not None:
                        earlier.fill(line)
                    sys.stdout.write(
                        "{op:20} d={d} l={l} sms={sms} {time_us} us +-{spread_pct}% {gbps} GB/s "
                        "bytes {bytes_bound_pct}% exp {exp_bound_pct}% peer {peer_us}\n".format(
                            **line
                        )
                    )
                sys.stdout.flush()
    command = "python plugin/bench/scan_bench.py --output docs/measurements/scan.json"
    if earlier is not None:
        command += " --peer-from docs/measurements/scan.json"
    document = header("scan", command)
    document |= {"copy_gbps": rates, "clock_mhz": clock, "rows": rows}
    arguments.output.write_text(json.dumps(document, indent=1) + "\n")
    return 0


def boost_clock_mhz() -> int:
    """The SM clock the GPU boosts to."""
    query = ["nvidia-smi", "--query-gpu=clocks.max.sm", "--format=csv,noheader,nounits"]
    return int(subprocess.run(query, check=True, capture_output=True, text=True).stdout)


if __name__ == "__main__":
    sys.exit(main())
