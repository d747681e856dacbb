# SPDX-License-Identifier: MIT
"""Shared by the benches: a stream on a share of the GPU, timing by graph replay, a header."""

from __future__ import annotations

import datetime
import statistics
import subprocess
from collections.abc import Callable
from typing import Any

import torch


def share_of_gpu(sms: int) -> tuple[torch.cuda.Stream, Any]:
    """Returns a stream whose kernels run on `sms` multiprocessors only, and what keeps it alive.

    A green context: 8 multiprocessors are the stand-in for a Jetson Orin Nano's compute side.
    """
    from cuda.bindings import driver

    def checked(result: tuple[Any, ...]) -> Any:
        if int(result[0]) != 0:
            message = f"green context: {result[0]}"
            raise RuntimeError(message)
        return result[1] if len(result) == 2 else result[1:]

    torch.zeros(1, device="cuda")  # The primary context must exist.
    device = checked(driver.cuDeviceGet(torch.cuda.current_device()))
    kind = driver.CUdevResourceType.CU_DEV_RESOURCE_TYPE_SM
    whole = checked(driver.cuDeviceGetDevResource(device, kind))
    groups, _, _ = checked(driver.cuDevSmResourceSplitByCount(1, whole, 0, sms))
    if groups[0].sm.smCount != sms:
        message = f"asked for {sms} multiprocessors, got {groups[0].sm.smCount}"
        raise RuntimeError(message)
    description = checked(driver.cuDevResourceGenerateDesc([groups[0]], 1))
    flags = driver.CUgreenCtxCreate_flags.CU_GREEN_CTX_DEFAULT_STREAM
    context = checked(driver.cuGreenCtxCreate(description, device, flags))
    non_blocking = driver.CUstream_flags.CU_STREAM_NON_BLOCKING
    stream = checked(driver.cuGreenCtxStreamCreate(context, non_blocking, 0))
    return torch.cuda.ExternalStream(int(stream)), context


def time_us(
    launch: Callable[[int], None], stream: torch.cuda.Stream, buffers: int, replays: int = 9
) -> tuple[float, float]:
    """Times launch(i), i counting buffers round, inside a replayed graph.

    Returns:
        Median microseconds a launch, and the spread (max - min) / median in percent.
    """
    with torch.cuda.stream(stream):
        for i in range(2):
            launch(i % buffers)
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record(stream)
        launch(0)
        stop.record(stream)
        stream.synchronize()
        # About 4 ms a replay, whole rounds of the buffers, at least one.
        rounds = max(1, min(64, int(4.0 / max(start.elapsed_time(stop), 1e-3) / buffers)))
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            for i in range(rounds * buffers):
                launch(i % buffers)
        graph.replay()
        samples = []
        for _ in range(replays):
            start.record(stream)
            graph.replay()
            stop.record(stream)
            stream.synchronize()
            samples.append(start.elapsed_time(stop) * 1e3 / (rounds * buffers))
    middle = statistics.median(samples)
    return middle, 100.0 * (max(samples) - min(samples)) / middle


def copy_gbps(stream: torch.cuda.Stream) -> float:
    """Bytes read plus written a second by a large elementwise kernel on this stream."""
    source, target = (torch.empty(1 << 28, dtype=torch.float32, device="cuda") for _ in range(2))
    # Not copy_: that would be the copy engine, which knows no multiprocessors.
    microseconds, _ = time_us(lambda _: torch.mul(source, 2.0, out=target), stream, 1)
    return 2 * source.nbytes / microseconds / 1e3


def header(subject: str, command: str) -> dict[str, Any]:
    """The first fields of a measurement file."""
    driver = subprocess.run(
        ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()
    name = torch.cuda.get_device_name()
    return {
        "subject": subject,
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "machine": f"one {name}",
        "gpu": name,
        "versions": {"torch": torch.__version__, "cuda": torch.version.cuda, "driver": driver},
        "command": command,
    }
