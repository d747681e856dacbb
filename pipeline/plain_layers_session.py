# SPDX-License-Identifier: MIT
"""TensorRT without our plugin, as a peer.

What a user without the plugin can build, to measure ours beside. A recurrence has no other form in
such layers than one token after another, so a prompt is read that way.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import onnx

from pipeline.architecture import MambaArchitecture
from pipeline.cuda_driver import DeviceMemory, Graph, open_gpu
from pipeline.plain_layers import plain_step_graph
from pipeline.session import Floats, TokenIds
from pipeline.tensorrt_runtime import Plan, Run, build_plan
from pipeline.weights import WEIGHT_FILE, read_weights

_WORKSPACE_BYTES = 1 << 30


class PlainLayersSession:
    """Reads one text, one token at a time, by a plan of plain layers that is built first.

    States stay on the GPU; the one that came last is the one a step goes on from.

    Attributes:
        plan_bytes: Size of the plan.

    Args:
        bundle: Folder of the step graph and the weights, fp16 or fp32.
        architecture: Sizes of the model.

    Raises:
        BackendError: There is no GPU, or TensorRT cannot build or run the graph.
        ModuleNotFoundError: The package cuda-bindings is not installed.
    """

    def __init__(self, bundle: Path, architecture: MambaArchitecture) -> None:
        self._gpu = open_gpu()
        self._stream = self._gpu.new_stream()
        self._architecture = architecture
        model = plain_step_graph(bundle)
        built = build_plan(model.SerializeToString(), None, [], _WORKSPACE_BYTES)
        self.plan_bytes = len(built.plan)
        with tempfile.NamedTemporaryFile(suffix=".plan") as file:
            file.write(built.plan)
            file.flush()
            self._plan = Plan(Path(file.name), None)
        self._scratch = self._gpu.allocate(self._plan.scratch_bytes, "a plan")
        self._memory = self._allocate(model, bundle)
        self._states = [name for name in self._memory if "_state_" in name]
        # What one step writes the next one reads: the addresses change places. A graph needs the
        # memory of the run that it was recorded from.
        self._runs = [self._new_run(swapped=False), self._new_run(swapped=True)]
        self._graphs = [self._capture(run) for run in self._runs]
        self._steps = 0

    def prefill(self, token_ids: TokenIds) -> tuple[Floats, None]:
        """Reads a text (1, l) from its beginning; logits (1, vocab) after its last token."""
        for name in self._states:
            self._stream.clear(self._memory[name].pointer, self._memory[name].size)
        self._steps = 0
        for position in range(token_ids.shape[1]):
            self.enqueue(token_ids[:, position])
        return self._logits(), None

    def step(self, token_ids: TokenIds, state: None) -> tuple[Floats, None]:
        """Reads one token (1,) more; logits (1, vocab)."""
        del state
        self.enqueue(token_ids)
        return self._logits(), None

    def enqueue(self, token_ids: TokenIds) -> None:
        """Enqueues a step as one launch; token ids (1,)."""
        self._stream.write(self._memory["token_ids"].pointer, token_ids.astype(np.int32))
        self._stream.launch(self._graphs[self._steps % 2])
        self._steps += 1

    def finish(self) -> None:
        """Waits for all steps."""
        self._stream.finish()

    def _logits(self) -> Floats:
        logits = np.empty((1, self._architecture.vocab_size), np.float32)
        self._stream.read(logits.ctypes.data, self._memory["logits"].pointer, logits.nbytes)
        self._stream.finish()
        return logits

    def _allocate(self, model: onnx.ModelProto, bundle: Path) -> dict[str, DeviceMemory]:
        weights = dict(read_weights(bundle / WEIGHT_FILE))
        memory = {}
        for value in (*model.graph.input, *model.graph.output):
            kind = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
            shape = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
            array = np.ascontiguousarray(weights.get(value.name, np.zeros(shape, kind)))
            memory[value.name] = self._gpu.allocate(array.nbytes, value.name)
            self._stream.write(memory[value.name].pointer, array.reshape(-1).view(np.uint8))
        return memory

    def _new_run(self, *, swapped: bool) -> Run:
        run = self._plan.new_run(0, self._scratch.pointer, self._scratch.size, self._stream.handle)
        for name in self._memory:
            run.set_address(name, self._memory[_other(name) if swapped else name].pointer)
        return run

    def _capture(self, run: Run) -> Graph:
        stream = self._stream
        run.enqueue(stream.handle)
        return stream.capture(lambda: run.enqueue(stream.handle))


def _other(name: str) -> str:
    """The output of a state's input, and the other way around; any other name is its own."""
    if "_state_in." in name:
        return name.replace("_state_in.", "_state_out.")
    return name.replace("_state_out.", "_state_in.")
