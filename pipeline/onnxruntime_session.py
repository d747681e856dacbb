# SPDX-License-Identifier: MIT
"""The embedded default: ONNX Runtime on the CPU. The only module that imports onnxruntime."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

# From 1.32 on, the published builds tell Microsoft how they are used unless this is set before
# they are loaded. Whoever wants that sets it to 0.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime

from pipeline.architecture import MambaArchitecture
from pipeline.errors import BackendError, UsageError
from pipeline.manifest import PREFILL_GRAPH, STEP_GRAPH
from pipeline.session import Floats, State, TokenIds

VERSION: str = onnxruntime.__version__

# Errors and above; warnings of the graph optimiser mean nothing to a user.
_LOG_ERRORS = 3


class OnnxRuntimeSession:
    """Runs a bundle's two graphs; see `session.Session`.

    Args:
        graphs: Folder that holds the graphs.
        weights: Folder that holds the weight file they point into.
        architecture: Sizes of the model.
        max_batch: Texts at once.
        max_length: Tokens of one prefill call; longer stretches are read in pieces, because
            the scan's temporaries should stay in the cache.
        threads: CPU threads.
        pack_for_prefill: Whether the prefill shall pack the weights too: it must for matrices
            of 8 or 4 bits, whose fast products read only packed weights.

    Raises:
        BackendError: ONNX Runtime refuses a graph.
    """

    backend = "onnxruntime"

    def __init__(
        self,
        graphs: Path,
        weights: Path,
        architecture: MambaArchitecture,
        max_batch: int,
        max_length: int,
        threads: int,
        *,
        pack_for_prefill: bool = False,
    ) -> None:
        self._architecture = architecture
        self._max_batch = max_batch
        self._max_length = max_length
        # The step multiplies one row by each matrix and gains from weights packed for that;
        # the prefill of wider ones packs as it goes, and so reads the weight file where it lies.
        self._prefill = _open(
            graphs / PREFILL_GRAPH, weights, threads, pack_weights=pack_for_prefill
        )
        self._step = _open(graphs / STEP_GRAPH, weights, threads, pack_weights=True)

    @property
    def architecture(self) -> MambaArchitecture:
        """Sizes of the loaded model."""
        return self._architecture

    def prefill(
        self, token_ids: TokenIds, state: State | None = None, *, all_logits: bool = False
    ) -> tuple[Floats, State]:
        """See `session.Session.prefill`."""
        batch, length = token_ids.shape
        if batch > self._max_batch:
            raise UsageError(
                f"{batch} texts at once; the engine was built for {self._max_batch}",
                fix="build it again with a larger --max-batch",
            )
        state = state or State.zeros(self._architecture, batch)
        pieces = []
        for start in range(0, length, self._max_length):
            # The rows of a slice do not adjoin in memory, as a bound buffer's must.
            piece = np.ascontiguousarray(token_ids[:, start : start + self._max_length])
            is_last = start + piece.shape[1] == length
            if all_logits:
                positions = np.arange(piece.shape[1], dtype=np.int64)
            else:
                positions = np.full(int(is_last), piece.shape[1] - 1, dtype=np.int64)
            logits, state = self._prefill_piece(piece, positions, state)
            pieces.append(logits)
        logits = np.concatenate(pieces, axis=1)
        return (logits if all_logits else logits[:, -1]), state

    def _prefill_piece(
        self, token_ids: TokenIds, positions: TokenIds, state: State
    ) -> tuple[Floats, State]:
        after = State.zeros(self._architecture, token_ids.shape[0])
        logits = np.empty(
            (token_ids.shape[0], len(positions), self._architecture.vocab_size), dtype=np.float32
        )
        binding = self._prefill.io_binding()
        _bind(binding.bind_input, "token_ids", token_ids)
        _bind(binding.bind_input, "logit_positions", positions)
        _bind(binding.bind_output, "logits", logits)
        _bind_states(binding, state, after)
        self._run(self._prefill, binding)
        return logits, after

    def step(self, token_ids: TokenIds, state: State) -> tuple[Floats, State]:
        """See `session.Session.step`."""
        if not isinstance(state, _StepState):
            state = _StepState.around(state, self._step, self._architecture)
        state.token_ids[:] = token_ids
        self._run(self._step, state.binding)
        return state.logits.copy(), state.twin

    def _run(self, session: onnxruntime.InferenceSession, binding: onnxruntime.IOBinding) -> None:
        try:
            session.run_with_iobinding(binding)
        except Exception as error:  # the library raises its own types from a C extension
            raise BackendError(
                f"ONNX Runtime {VERSION} failed: {error}",
                fix="if memory ran out, use a smaller --max-length or batch; otherwise build the "
                "engine again",
            ) from error


class _StepState(State):
    """A state whose buffers are bound to the step graph once, with a twin to swap with.

    A step reads this state and writes its twin; the next step does the reverse. So a step
    copies no state and binds no buffer.
    """

    binding: onnxruntime.IOBinding
    twin: _StepState
    token_ids: TokenIds
    logits: Floats

    @classmethod
    def around(
        cls,
        state: State,
        session: onnxruntime.InferenceSession,
        architecture: MambaArchitecture,
    ) -> _StepState:
        """A pair of bound states, the first holding what `state` holds."""
        here = cls(conv=state.conv.copy(), ssm=state.ssm.copy())
        there = cls(conv=np.empty_like(here.conv), ssm=np.empty_like(here.ssm))
        here.twin, there.twin = there, here
        here.token_ids = there.token_ids = np.zeros(state.batch, dtype=np.int64)
        here.logits = there.logits = np.empty(
            (state.batch, architecture.vocab_size), dtype=np.float32
        )
        for one in (here, there):
            one.binding = session.io_binding()
            _bind(one.binding.bind_input, "token_ids", one.token_ids)
            _bind(one.binding.bind_output, "logits", one.logits)
            _bind_states(one.binding, one, one.twin)
        return here


def _open(
    graph: Path, weights: Path, threads: int, *, pack_weights: bool
) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = _LOG_ERRORS
    options.add_session_config_entry("session.disable_prepacking", str(int(not pack_weights)))
    # A graph given as bytes may have its weights in another folder than its own.
    options.add_session_config_entry(
        "session.model_external_initializers_file_folder_path", str(weights)
    )
    try:
        return onnxruntime.InferenceSession(
            graph.read_bytes(), sess_options=options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # the library raises its own types from a C extension
        raise BackendError(
            f"ONNX Runtime {VERSION} cannot load {graph}: {error}",
            fix="convert and build again with this version of mamba-orin",
        ) from error


def _bind(bind: Callable[..., None], name: str, array: npt.NDArray[Any]) -> None:
    bind(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)


def _bind_states(binding: onnxruntime.IOBinding, before: State, after: State) -> None:
    for kind in ("conv", "ssm"):
        for layer, (source, target) in enumerate(
            zip(getattr(before, kind), getattr(after, kind), strict=True)
        ):
            _bind(binding.bind_input, f"{kind}_state_in.{layer}", source)
            _bind(binding.bind_output, f"{kind}_state_out.{layer}", target)
