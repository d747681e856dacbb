# SPDX-License-Identifier: MIT
"""Shared by the benches: a stream on a share of the GPU, timing by graph replay, a header."""

from __future__ import annotations

import datetime
import statistics
import subprocess
from collections.abc import Callable
from typing import Any

import torch

#: Multiprocessors that stand in for a Jetson Orin Nano's.
PROXY_SMS = 8


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


def whole_and_proxy() -> dict[int, tuple[torch.cuda.Stream, Any]]:
    """By their number of multiprocessors, streams on the whole GPU and on the stand-in.

    Each comes with what keeps it alive.
    """
    whole = torch.cuda.get_device_properties(0).multi_processor_count
    return {whole: (torch.cuda.Stream(), None), PROXY_SMS: share_of_gpu(PROXY_SMS)}


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


_READ = r"""
extern "C" __global__ void read_all(const uint4* from, long long count, unsigned* to) {
  unsigned found = 0;
  const long long step = (long long)gridDim.x * blockDim.x;
  long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x;
  for (; i + 7 * step < count; i += 8 * step) {
    uint4 v[8];
    #pragma unroll
    for (int j = 0; j < 8; ++j) v[j] = __ldcs(from + i + j * step);
    #pragma unroll
    for (int j = 0; j < 8; ++j) found ^= v[j].x ^ v[j].y ^ v[j].z ^ v[j].w;
  }
  if (found == 0x9e3779b9u) *to = found;  // Keeps the loads; practically never true.
}
"""


def stream_read_gbps(stream: torch.cuda.Stream) -> float:
    """Bytes a second that a kernel which only reads gets on this stream: the best of some grids."""
    import cupy

    source = torch.empty(1 << 28, dtype=torch.int32, device="cuda").random_()
    target = torch.zeros(1, dtype=torch.int32, device="cuda")
    kernel = cupy.RawKernel(_READ, "read_all")
    count = source.nbytes // 16
    best = 0.0
    for blocks in (132, 264, 528, 1056, 2112):

        def launch(_: int, blocks: int = blocks) -> None:
            with cupy.cuda.ExternalStream(stream.cuda_stream):
                kernel((blocks,), (512,), (source.data_ptr(), count, target.data_ptr()))

        microseconds, _ = time_us(launch, stream, 1, replays=5)
        best = max(best, source.nbytes / microseconds / 1e3)
    return best


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
