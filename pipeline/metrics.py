# SPDX-License-Identifier: MIT
"""What the server tells Prometheus. The only module that imports prometheus_client."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from pipeline.errors import TelemetryError
from pipeline.sysfs_sampler import SysfsSampler
from pipeline.telemetry import POWER, TEMPERATURE

CONTENT_TYPE = CONTENT_TYPE_LATEST

# From one step of a small model to a prompt of many thousand tokens on a board.
_TTFT_BUCKETS_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0)
_TOKEN_BUCKETS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)
# Long enough for the sampler to read everything each time it is asked.
_EACH_TIME_S = 1.0


class Metrics:
    """The metrics of one server, in a registry of their own.

    Args:
        root: Root of the file tree in which a board's sensors are.
    """

    def __init__(self, root: Path = Path("/")) -> None:
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        registry.register(_BoardCollector(root))
        self._requests = Counter(
            "mamba_orin_http_requests",
            "HTTP requests that were answered",
            ["method", "route", "status"],
            registry=registry,
        )
        self._completions = Counter(
            "mamba_orin_completions",
            "Answers by what ended them",
            ["reason"],
            registry=registry,
        )
        self._prompt_tokens = Counter(
            "mamba_orin_prompt_tokens", "Prompt tokens that were read", registry=registry
        )
        self._reused_tokens = Counter(
            "mamba_orin_prefix_reused_tokens",
            "Prompt tokens that a kept state made it unnecessary to read",
            registry=registry,
        )
        self._lookups = Counter(
            "mamba_orin_prefix_lookups",
            "Prompts for which a kept beginning was looked for",
            ["result"],
            registry=registry,
        )
        self._generated_tokens = Counter(
            "mamba_orin_generated_tokens", "Tokens that were produced", registry=registry
        )
        self._ttft = Histogram(
            "mamba_orin_time_to_first_token_seconds",
            "From the arrival of a request to its first token, waiting included",
            buckets=_TTFT_BUCKETS_S,
            registry=registry,
        )
        self._token_time = Histogram(
            "mamba_orin_time_per_token_seconds",
            "Between two tokens of an answer, prompts of others included",
            buckets=_TOKEN_BUCKETS_S,
            registry=registry,
        )

    def watch(self, name: str, explanation: str, value: Callable[[], float]) -> None:
        """Adds a gauge that is read when Prometheus asks."""
        Gauge(f"mamba_orin_{name}", explanation, registry=self._registry).set_function(value)

    def answered(self, method: str, route: str, status: int) -> None:
        """An HTTP request was answered; `route` is a pattern, so its values are few."""
        self._requests.labels(method, route, str(status)).inc()

    def prompt_begun(self, tokens: int, reused: int) -> None:
        """A prompt is about to be read, but for the tokens that a kept state covers."""
        self._lookups.labels("hit" if reused else "miss").inc()
        self._reused_tokens.inc(reused)
        self._prompt_tokens.inc(tokens - reused)

    def first_token(self, seconds: float) -> None:
        """A request got its first token."""
        self._generated_tokens.inc()
        self._ttft.observe(seconds)

    def next_token(self, seconds: float) -> None:
        """An answer got another token."""
        self._generated_tokens.inc()
        self._token_time.observe(seconds)

    def completed(self, reason: str) -> None:
        """An answer ended: stop, length, cancelled, timeout or error."""
        self._completions.labels(reason).inc()

    def render(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self._registry)


class _BoardCollector(Collector):
    """Power and heat of a board, read at each scrape; nothing on other machines.

    The names are those of the exporter that provisioning installs, so a dashboard reads either.

    Args:
        root: Root of the file tree.
    """

    def __init__(self, root: Path = Path("/")) -> None:
        try:
            self._sampler: SysfsSampler | None = SysfsSampler(_EACH_TIME_S, root)
        except TelemetryError:
            self._sampler = None

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """See `prometheus_client.registry.Collector`."""
        values = {} if self._sampler is None else self._sampler.read()
        for name, explanation, label, beginning in (
            ("mamba_orin_power_watts", "Power of a rail", "rail", POWER),
            ("mamba_orin_temperature_celsius", "Temperature of a zone", "zone", TEMPERATURE),
        ):
            family = GaugeMetricFamily(name, explanation, labels=[label])
            for channel, value in values.items():
                if channel.startswith(beginning):
                    family.add_metric([channel.removeprefix(beginning)], value)
            if family.samples:
                yield family
