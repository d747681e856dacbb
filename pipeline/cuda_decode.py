# SPDX-License-Identifier: MIT
"""One token of a few texts on the GPU, and many tokens of one text without the host between."""

from __future__ import annotations

import struct
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from pipeline import s6_decode
from pipeline.architecture import MambaArchitecture
from pipeline.cuda_driver import DeviceMemory, Gpu, Graph, Stream
from pipeline.cuda_prefill import Prefill
from pipeline.cuda_state import StateBuffer
from pipeline.cuda_weights import DeviceMatrix, DeviceVector, DeviceWeights
from pipeline.errors import PluginError
from pipeline.gpu_parts import StateAddresses, Stepper
from pipeline.s6_library import call
from pipeline.s6_prefill import SampleProblem
from pipeline.session import Floats

# The host hears of tokens in bursts of about this long, so that fast models cost it little and
# slow ones still stream token by token.
_BURST_MS = 2.0
_LONGEST_BURST = 16
# Fewer bursts than this are not worth a graph.
_BURSTS_WORTH_A_GRAPH = 4
_KEPT_GRAPHS = 4

# temperature, top_k, top_p, padding, seed, draws: one array of one element each.
_SAMPLING = struct.Struct("<fifxxxxQQ")
_TEMPERATURE, _TOP_K, _TOP_P, _SEED, _DRAWS = 0, 4, 8, 16, 24


class WholeTokenStepper:
    """Steps by the kernel that does a whole token in one launch; see `gpu_parts.Stepper`.

    Models that it refuses go the way of a prefill of one token.

    Attributes:
        refusal: Why the kernel does not take this model; None when it does.
        most_texts: Texts that it takes at once: fewer than `s6_decode.MAX_BATCH` where a wide model
            meets little shared memory.
        workspace_bytes: Memory it holds so far.

    Args:
        gpu: Where to run.
        stream: Where to enqueue.
        architecture: Sizes of the model.
        weights: On the GPU.
        prefill: For models that the kernel refuses.
    """

    def __init__(
        self,
        gpu: Gpu,
        stream: Stream,
        architecture: MambaArchitecture,
        weights: DeviceWeights,
        prefill: Prefill,
    ) -> None:
        self._gpu, self._stream, self._architecture = gpu, stream, architecture
        self._weights, self._prefill = weights, prefill
        self._problems: dict[int, tuple[s6_decode.DecodeProblem, DeviceMemory]] = {}
        self.workspace_bytes = 0
        self.refusal: str | None = None
        self.most_texts = s6_decode.MAX_BATCH
        try:
            s6_decode.check(self._problem(1))
        except PluginError as error:
            self.refusal = str(error)
            return
        most = most_texts(gpu, architecture, weights)
        if most == 0:
            self.refusal = "a token needs more shared memory than a block of this GPU may have"
        else:
            self.most_texts = most

    def enqueue(
        self,
        buffer: StateAddresses,
        token_ids: int,
        logits: int | None,
        next_ids: int | None = None,
    ) -> None:
        """See `gpu_parts.Stepper`."""
        if self.refusal is None:
            problem = self._ready_problem(buffer.batch)
            problem.token_ids, problem.next_ids = token_ids, next_ids
            problem.conv_state, problem.ssm_state = buffer.conv, buffer.ssm
            problem.logits = logits
            s6_decode.decode(problem, self._stream.handle)
            return
        batch, vocab = buffer.batch, self._architecture.vocab_size
        self._prefill.state.enter(batch, buffer.conv, buffer.ssm)
        self._stream.copy(self._prefill.token_ids, token_ids, 4 * batch)
        self._prefill.enqueue(batch, 1)
        self._prefill.state.leave(batch, buffer.conv, buffer.ssm)
        if logits is not None:
            self._stream.copy(logits, self._prefill.logits, 4 * batch * vocab)

    def _ready_problem(self, batch: int) -> s6_decode.DecodeProblem:
        if batch not in self._problems:
            problem = self._problem(batch)
            size = s6_decode.workspace_bytes(problem)
            memory = self._gpu.allocate(size, f"decoding {batch} texts")
            self._stream.clear(memory.pointer, size)
            problem.workspace = memory.pointer
            self.workspace_bytes += size
            self._problems[batch] = problem, memory
        return self._problems[batch][0]

    def _problem(self, batch: int) -> s6_decode.DecodeProblem:
        return _problem_of(self._gpu, self._architecture, self._weights, batch)


def most_texts(gpu: Gpu, architecture: MambaArchitecture, weights: DeviceWeights) -> int:
    """Texts that one call of the decode kernel takes on this GPU; 0 where not even one fits."""
    problem = _problem_of(gpu, architecture, weights, 1)
    return s6_decode.most_texts(problem, gpu.facts.shared_bytes)


def _problem_of(
    gpu: Gpu, architecture: MambaArchitecture, weights: DeviceWeights, batch: int
) -> s6_decode.DecodeProblem:
    """All but the addresses of one call; those are any that the check takes."""
    a, w = architecture, weights
    anywhere = w.memory.pointer
    return s6_decode.DecodeProblem(
        b=batch,
        m=a.d_model,
        d=a.d_inner,
        n=a.d_state,
        k=a.d_conv,
        r=a.dt_rank,
        layers=a.n_layer,
        vocab=a.vocab_size,
        vocab_rows=a.vocab_rows,
        sm_count=gpu.facts.multiprocessors,
        norm_eps=a.norm_eps,
        mixer_norm_eps=a.mixer_norm_eps or 0.0,
        embedding=_matrix(w.matrices["embedding.weight"]),
        in_proj=_matrix(w.matrices["in_proj.weight"]),
        x_proj=_matrix(w.matrices["x_proj.weight"]),
        dt_proj=_matrix(w.matrices["dt_proj.weight"]),
        out_proj=_matrix(w.matrices["out_proj.weight"]),
        head=_matrix(w.matrices["head.weight"]),
        norm=_vector(w.vectors["norm.weight"]),
        conv_weight=_vector(w.vectors["conv.weight"]),
        conv_bias=_vector(w.vectors["conv.bias"]),
        dt_bias=_vector(w.vectors["dt_proj.bias"]),
        A=_vector(w.vectors["A"]),
        D=_vector(w.vectors["D"]),
        final_norm=w.vectors["final_norm"].data,
        token_ids=anywhere,
        conv_state=anywhere,
        ssm_state=anywhere,
        logits=anywhere,
        workspace=anywhere,
    )


@dataclass(frozen=True)
class Choice:
    """How tokens are chosen; see `session.DecodesAhead.decode_tokens`."""

    temperature: float
    top_k: int
    top_p: float
    seed: int

    @property
    def is_greedy(self) -> bool:
        """Whether the most likely token is taken each time."""
        return self.temperature == 0


class Lane:
    """Room on the GPU and on the host for one text that is being continued.

    The chosen token stands in one place on the GPU, where the next step reads it and from where
    it is copied to pinned memory of the host. The host reads one burst of tokens while the GPU
    computes the next.
    """

    def __init__(self, gpu: Gpu, stream: Stream, stepper: Stepper, vocab_size: int) -> None:
        self._gpu, self._stream = gpu, stream
        self._stepper, self._vocab_size = stepper, vocab_size
        self._logits = gpu.allocate(4 * vocab_size, "logits")
        self._token = gpu.allocate(4, "a token")
        self._sampling = gpu.allocate(_SAMPLING.size, "sampling")
        self._arrived = gpu.allocate_pinned((2, _LONGEST_BURST), np.int32)
        self._begun = gpu.new_event(timed=True)
        self._done = [gpu.new_event(timed=True) for _ in range(2)]
        self._graphs: OrderedDict[tuple[int, int, int, bool], Graph] = OrderedDict()

    def run(self, logits: Floats, buffer: StateBuffer, count: int, choice: Choice) -> Iterator[int]:
        """Yields `count` tokens: the first from the logits, the others by steps."""
        self._stream.write(self._logits.pointer, np.ascontiguousarray(logits, np.float32))
        packed = _SAMPLING.pack(choice.temperature, choice.top_k, choice.top_p, choice.seed, 0)
        self._stream.write(self._sampling.pointer, np.frombuffer(packed, np.uint8))
        self._choose()
        self._fetch(0, 0)
        self._stream.record(self._done[0])
        self._stream.record(self._begun)
        half, waiting, left, burst = 0, 1, count - 1, 1
        is_timed = False
        while waiting:
            self._gpu.use_here()  # whoever asks for the next token may be another thread
            following = min(burst, left)
            if following:
                self._enqueue_burst(buffer, choice, 1 - half, following, left)
                left -= following
            self._done[half].wait()
            tokens = self._arrived.array[half, :waiting].tolist()
            if half == 1 and not is_timed:  # the first burst that is one step
                step_ms = max(self._done[1].milliseconds_since(self._begun), 1e-3)
                burst = min(max(int(_BURST_MS / step_ms), 1), _LONGEST_BURST)
                is_timed = True
            yield from tokens
            half, waiting = 1 - half, following

    def _enqueue_burst(
        self, buffer: StateBuffer, choice: Choice, half: int, count: int, left: int
    ) -> None:
        key = (buffer.conv, half, count, choice.is_greedy)
        graph = self._graphs.pop(key, None)
        if graph is None and count > 1 and left >= _BURSTS_WORTH_A_GRAPH * count:
            graph = self._stream.capture(lambda: self._enqueue(buffer, choice, half, count))
        if graph is None:
            self._enqueue(buffer, choice, half, count)
        else:
            self._stream.launch(graph)
            self._graphs[key] = graph
            while len(self._graphs) > _KEPT_GRAPHS:
                self._graphs.popitem(last=False)
        self._stream.record(self._done[half])

    def _enqueue(self, buffer: StateBuffer, choice: Choice, half: int, count: int) -> None:
        token = self._token.pointer
        for place in range(count):
            if choice.is_greedy and self._stepper.refusal is None:
                self._stepper.enqueue(buffer, token, None, next_ids=token)
            else:
                self._stepper.enqueue(buffer, token, self._logits.pointer)
                self._choose()
            self._fetch(half, place)

    def _choose(self) -> None:
        """Enqueues the choice of a token from the logits."""
        sampling = self._sampling.pointer
        problem = SampleProblem(
            b=1,
            vocab=self._vocab_size,
            logits=self._logits.pointer,
            temperature=sampling + _TEMPERATURE,
            top_k=sampling + _TOP_K,
            top_p=sampling + _TOP_P,
            seed=sampling + _SEED,
            draws=sampling + _DRAWS,
            next_ids=self._token.pointer,
        )
        call("s6_sample", problem, self._stream.handle)

    def _fetch(self, half: int, place: int) -> None:
        """Enqueues the copy of the token to the host."""
        to = self._arrived.pointer + 4 * (half * _LONGEST_BURST + place)
        self._stream.read(to, self._token.pointer, 4)


def _matrix(matrix: DeviceMatrix) -> s6_decode.Matrix:
    return s6_decode.Matrix(
        bits=matrix.bits,
        group_size=matrix.group_size,
        data=matrix.data,
        scales=matrix.scales,
        layer_bytes=matrix.layer_bytes,
        scales_layer_bytes=matrix.layer_bytes,
    )


def _vector(vector: DeviceVector) -> s6_decode.Vector:
    return s6_decode.Vector(data=vector.data, layer_bytes=vector.layer_bytes)
